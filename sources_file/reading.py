"""The sources file: read once at the start, checked as a whole, every mistake told with file and line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from definitions import Source
from errors import SourcesFileWrong
from presets import PRESETS, preset_entry
from sources_file.checks import check_entry, check_together, near
from sources_file.entries import TABLES, Entry
from sources_file.lines import Place, TomlLines
from sources_file.variables import expand

USUAL_NAME = "sources.toml"
"""Read from the working directory if it is there and no other file is named."""

SOURCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62})")
RESERVED_NAMES = frozenset({"all"})
"""`?source=all` means every source."""

MERGED = frozenset({"headers", "params"})
"""Tables that defaults, preset and entry fill together; anything else is taken from one of them."""
INSTEAD_OF_EACH_OTHER = (("every", "cron"), ("snapshot_every", "snapshot_cron"))
DEFAULTS = "defaults"
NOT_A_DEFAULT = frozenset({"preset"})

UNKNOWN_URL = "http://unknown.invalid"
"""Stands for a URL that is wrong, while the rest of its entry is looked at."""
HIDES: Mapping[str | int, set[str]] = {
    "body": {"method"},
    "cursor": {"mode"},
    "key": {"fields", "nested"},
    "mode": {"cursor"},
    "paging": {"records", "format"},
    "snapshot_cron": {"mode"},
    "snapshot_every": {"mode"},
    "total": {"records", "format"},
    "types": {"fields", "nested", "scope"},
}
"""For a setting, those without whose values nothing can be said about how they go together."""
DECIDES_THE_TABLE = frozenset({"table", "db_schema", "scope", "key", "fields", "nested", "types", "schema"})

SYNTAX_ERROR = re.compile(r"(.*) \(at (?:line ([0-9]+), column [0-9]+|end of document)\)", re.DOTALL)

WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be a text in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "tuple_type": "must be an array",
    "union_tag_not_found": "needs a type: one of {known}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "finite_number": "must be a finite number",
}
"""What pydantic's kinds of mistakes are called here."""


@dataclass(frozen=True, kw_only=True)
class SourcesFile:
    """What a sources file says."""

    path: Path
    sources: tuple[Source, ...]
    secrets: frozenset[str] = field(repr=False)
    """Values of variables that must not show in a log or an answer."""


def read_sources_file(
    path: Path, *, otherwise: Source, variables: Mapping[str, str], first: Source | None = None
) -> SourcesFile:
    """Return the sources that a file names, in its order; raise SourcesFileWrong with all of its mistakes.

    `otherwise` is a source with the values that hold where neither an entry, nor its preset, nor [defaults] sets one;
    `first` the one that the environment describes, if it does.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        line = exc.object[: exc.start].count(b"\n") + 1
        raise SourcesFileWrong(path.name, [f"{path}:{line}: is not UTF-8"]) from exc
    except OSError as exc:
        raise SourcesFileWrong(path.name, [f"{path}: cannot be read ({exc.strerror or type(exc).__name__})"]) from exc
    try:
        return _Reading(path, _parsed(path, text), text, variables).read(otherwise, first)
    except RecursionError as exc:
        raise SourcesFileWrong(path.name, [f"{path}: is nested too deeply"]) from exc


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SourcesFileWrong(path.name, [_syntax_error(path, str(exc), text)]) from exc
    except ValueError as exc:
        raise SourcesFileWrong(path.name, [f"{path}: holds a number of more digits than can be read"]) from exc


def _syntax_error(path: Path, message: str, text: str) -> str:
    match = SYNTAX_ERROR.fullmatch(message)
    if match is None:
        return f"{path}: {message}"
    return f"{path}:{match[2] or len(text.rstrip().splitlines())}: is not TOML: {match[1]}"


class _Layers:
    """An entry over its preset over [defaults]: what it says altogether, and where each part of that stands."""

    def __init__(self, *layers: tuple[Place, Mapping[str, Any]]) -> None:
        """Take the layers, the weakest first, each with its place in the file."""
        self._own = layers[-1][0]
        self.values: dict[str, Any] = {}
        self._places: dict[Place, Place] = {}
        for place, layer in layers:
            self._put(place, layer)

    def place(self, inside: Place) -> Place:
        """Return where in the file something stands, or would stand if it were not missing."""
        for length in range(len(inside), 0, -1):
            if (layer := self._places.get(inside[:length])) is not None:
                return (*layer, *inside)
        return (*self._own, *inside)

    def _put(self, place: Place, layer: Mapping[str, Any]) -> None:
        for pair in INSTEAD_OF_EACH_OTHER:
            if layer.keys() & set(pair):
                for key in pair:
                    self.values.pop(key, None)
        for key, value in layer.items():
            self._places[key,] = place
            if key in MERGED and isinstance(value, Mapping):
                self._places |= dict.fromkeys([(key, name) for name in value], place)
                before = self.values.get(key)
                self.values[key] = {**(before if isinstance(before, Mapping) else {}), **value}
            else:
                self.values[key] = value


class _Reading:
    """One reading of a file: it goes on after a mistake, and tells all of them at the end."""

    def __init__(self, path: Path, document: dict[str, Any], text: str, variables: Mapping[str, str]) -> None:
        self._path = path
        self._document = document
        self._text = text
        self._variables = variables
        self._mistakes: dict[str, int] = {}
        self._secrets: set[str] = set()

    @cached_property
    def _lines(self) -> TomlLines:
        """Where things stand; only somebody who has made a mistake has to wait for it."""
        return TomlLines(self._text)

    def read(self, otherwise: Source, first: Source | None) -> SourcesFile:
        defaults = self._defaults()
        layers = {name: self._layers(name, entry, defaults) for name, entry in self._entries().items()}
        entries = {name: entry for name, layer in layers.items() if (entry := self._checked(name, layer)) is not None}
        sources = [entry.built(name, otherwise=otherwise) for name, entry in entries.items()]
        for name, place, message in check_together(entries, [*([first] if first else []), *sources]):
            self._note(layers[name].place(place), message, of=name)
        if self._mistakes:
            raise SourcesFileWrong(self._path.name, sorted(self._mistakes, key=self._mistakes.__getitem__))
        return SourcesFile(path=self._path, sources=tuple(sources), secrets=frozenset(self._secrets))

    def _entries(self) -> dict[str, dict[str, Any]]:
        for name in self._document.keys() - {"sources", DEFAULTS}:
            self._note((name,), f"is not known; {near(name, ('sources', 'defaults'))}")
        named = self._document.get("sources", {})
        if not isinstance(named, dict) or not named:
            self._note(("sources",), "must be tables [sources.NAME], one for each source")
            return {}
        for name, entry in named.items():
            if not isinstance(entry, dict):
                self._note(("sources", name), "must be a table")
            elif name in RESERVED_NAMES:
                self._note(("sources", name), "cannot be the name of a source, since it means every source")
            elif not SOURCE_NAME.fullmatch(name):
                self._note(("sources", name), "must be 1 to 63 letters, digits, - or _, and begin with neither - nor _")
        return {name: entry for name, entry in named.items() if isinstance(entry, dict)}

    def _defaults(self) -> dict[str, Any]:
        """Return the table [defaults] once it has been checked by itself, so that its mistakes are told once."""
        defaults = self._document.get(DEFAULTS, {})
        if not isinstance(defaults, dict):
            self._note((DEFAULTS,), "must be a table")
            return {}
        for key in NOT_A_DEFAULT:
            if key in defaults:
                self._note((DEFAULTS, key), "is a matter of each source, and has no default")
        layers = _Layers(((DEFAULTS,), {key: value for key, value in defaults.items() if key not in NOT_A_DEFAULT}))
        self._sound(DEFAULTS, layers, may_lack_url=True)
        return layers.values

    def _layers(self, name: str, entry: dict[str, Any], defaults: dict[str, Any]) -> _Layers:
        own: Place = ("sources", name)
        preset = entry.get("preset")
        known: Mapping[str, Any] = {}
        if isinstance(preset, str):
            if preset in PRESETS:
                known = preset_entry(preset, self._variables)
            else:
                self._note((*own, "preset"), f"is not known; {near(preset, sorted(PRESETS))}")
        return _Layers(((DEFAULTS,), defaults), ((*own, "preset"), known), (own, entry))

    def _checked(self, name: str, layers: _Layers) -> Entry | None:
        """Note what is wrong in an entry; return it unless that hides how it goes with others of its table."""
        sound = self._sound(name, layers, may_lack_url=layers.values.get("preset") not in {None, *PRESETS})
        broken = {"url", *layers.values} - sound.keys()
        entry = Entry.model_validate({"url": UNKNOWN_URL} | sound)
        for place, message in check_entry(entry):
            if not broken & HIDES.get(place[0], set()):
                self._note(layers.place(place), message, of=name)
        return None if broken & DECIDES_THE_TABLE else entry

    def _sound(self, name: str, layers: _Layers, *, may_lack_url: bool) -> dict[str, Any]:
        """Note what is wrong with single values, and return the others."""
        expanded = expand(layers.values, self._variables, name=name)
        self._secrets |= expanded.secrets
        for place, message in expanded.mistakes:
            self._note(layers.place(place), message)
        told = {place for place, _ in expanded.mistakes}
        broken: set[str | int] = set()
        try:
            Entry.model_validate(expanded.values)
        except ValidationError as exc:
            for error in exc.errors(include_input=False, include_url=False):
                place, message = _in_words(error, expanded.values)
                broken.add(place[0])
                if place not in told and not (may_lack_url and place == ("url",) and error["type"] == "missing"):
                    self._note(layers.place(place), message)
        return {key: value for key, value in expanded.values.items() if key not in broken}

    def _note(self, place: Place, message: str, *, of: str | None = None) -> None:
        """Remember a mistake; `of` names the source in which it shows, in case it stands elsewhere."""
        where = ".".join(str(part) for part in place)
        shows_in = f" (in sources.{of})" if of is not None and place[:2] != ("sources", of) else ""
        line = self._lines.line(place)
        self._mistakes.setdefault(f"{self._path}:{line}: {where}: {message}{shows_in}", line)


def _in_words(error: Any, values: dict[str, Any]) -> tuple[Place, str]:
    """Return where in an entry pydantic found a mistake, and what it is."""
    kind, where = error["type"], tuple(part for part in error["loc"] if part != "[key]")
    place = _without_tags(where, values)
    if kind == "extra_forbidden":
        table = TABLES[tuple(str(part) for part in where[:-1])]
        known = [field.alias or name for name, field in table.model_fields.items()]
        return place, f"is not known; {near(str(place[-1]), known)}"
    if kind.startswith("union_tag"):
        types = ", ".join(kind for table, *kinds in filter(None, TABLES) if (table,) == place for kind in kinds)
        return (*place, "type"), f"must be one of {types}"
    if kind == "value_error":
        return place, str(error["ctx"]["error"])
    return place, WORDS[kind].format(**error.get("ctx", {})) if kind in WORDS else str(error["msg"])


def _without_tags(where: Place, values: Any) -> Place:
    """Return a place without the types of tables, which pydantic tells as if they were keys."""
    place: Place = ()
    for number, part in enumerate(where):
        if isinstance(values, dict) and part not in values and values.get("type") == part and number:
            continue
        place = (*place, part)
        inside = isinstance(values, dict | list) and (part in values if isinstance(values, dict) else True)
        values = values[part] if inside else None
    return place
