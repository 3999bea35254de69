"""What becomes of a record between feed and mirror: fields selected and renamed, objects flattened, the scope added.

Values travel as the text that they came as and are never decoded, so nothing is rounded on the way. Where a record
cannot be projected without losing something, it is not: it is rejected, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from definitions import Source

SEPARATOR = "_"
"""Stands between the name of an object and that of its member, once they have become one name."""
DEEPEST = 32
"""How many objects inside each other are flattened; every level is read once more than the one around it."""

COLON = b'":'
SPACE = b" \t\r\n"
OPENING_BRACE = ord("{")

Value = TypeVar("Value")
Opener = Callable[[Value], Mapping[str, Value] | None]
"""Returns the members of an object, and None for any other value."""

_object = msgspec.json.Decoder(dict[str, Raw])
_objects = msgspec.json.Decoder(list[dict[str, Raw]])
_encode = msgspec.json.Encoder().encode


class Unprojectable(ValueError):
    """A record that cannot become what the source's settings ask for; the message is the reason that is reported."""


@dataclass(kw_only=True, slots=True)
class Projected:
    """Records after projection, and what has to be said about some of them, by their places."""

    records: list[bytes] = field(default_factory=list)
    """As many as there were before; one that was rejected is empty."""
    rejected: dict[int, str] = field(default_factory=dict)
    """The reasons."""
    repeated: dict[int, str] = field(default_factory=dict)
    """Names that stand twice in one object of a record; the last one counts."""


class Projection:
    """What a source's settings `scope`, `fields` and `nested` make of its records.

    Objects are flattened first: `{"address": {"city": 1}}` has the field `address_city`. Then `fields` names fields, or
    whole objects, whose members keep their own names behind the new one. An empty object has no members, and so leaves
    nothing behind. Arrays stay as they are. A field that the scope has too is no contradiction if it says the same.
    """

    def __init__(self, source: Source) -> None:
        self._fields = source.fields
        self._scope = source.scope
        self._scope_texts = {name: Raw(_encode(value)) for name, value in source.scope.items()}
        self._flattens = source.nested == "flatten"
        self._holders = {path for name in source.fields for path in _beginnings(name)}
        keeps_others = not source.fields or source.other_fields == "keep"
        self._top = "" if keeps_others else None

    @classmethod
    def of(cls, source: Source) -> Projection | None:
        """Return a source's projection, None where its records are mirrored as they are."""
        is_needed = source.scope or source.fields or source.nested == "flatten"
        return cls(source) if is_needed else None

    def project(self, records: Sequence[Raw]) -> Projected:
        """Project raw JSON objects, all at once or, where that may lose something, one by one."""
        payload = b"[%b]" % b",".join(records)
        leaves: list[Raw | bytes] = []
        with suppress(msgspec.DecodeError, ValueError, RecursionError):
            taken = [self._take(members, leaves) for members in _objects.decode(payload)]
            if _is_every_name_there(payload, leaves):
                return Projected(records=[_encode(values) for values in taken])
        projected = Projected()
        for place, raw in enumerate(records):
            try:
                projected.records.append(self._project_exactly(projected, place, raw))
            except Unprojectable as reason:
                projected.rejected[place] = str(reason)
                projected.records.append(b"")
        return projected

    def read_key(self, record: Mapping[str, Any], key: Sequence[str]) -> dict[str, Any]:
        """Return the mirror's key of a parsed record of the feed; None stands for what cannot be told."""
        return self._read_key(record, self._scope, _members_of, key)

    def read_key_texts(self, record: Mapping[str, Raw], key: Sequence[str]) -> dict[str, Raw | None]:
        """Return the mirror's key of a record of the feed as JSON texts; None stands for what cannot be told."""
        return self._read_key(record, self._scope_texts, _members_of_text, key)

    def _read_key(
        self, record: Mapping[str, Value], scope: Mapping[str, Value], opener: Opener[Value], key: Sequence[str]
    ) -> dict[str, Value | None]:
        found: dict[str, list[Value]] = {name: [scope[name]] if name in scope else [] for name in key}
        with suppress(Unprojectable, msgspec.DecodeError, UnicodeDecodeError):
            for _, name, value in self._leaves(record, opener, above=self._top):
                if name in found and name not in scope and value is not None:
                    found[name].append(value)
            return {name: values[0] if len(values) == 1 else None for name, values in found.items()}
        return dict.fromkeys(key)

    def _project_exactly(self, projected: Projected, place: int, raw: Raw) -> bytes:
        leaves: list[Raw | bytes] = []
        try:
            text = _encode(self._take(_object.decode(raw), leaves))
            if not _is_every_name_there(bytes(raw), leaves) and (name := _repeated_name(raw)) is not None:
                projected.repeated[place] = name
        except UnicodeDecodeError as error:
            raise Unprojectable("it is not valid UTF-8") from error
        except RecursionError as error:
            raise Unprojectable("it is nested too deeply") from error
        except msgspec.DecodeError as error:
            raise Unprojectable("it is not an object that can be read") from error
        return text

    def _take(self, members: Mapping[str, Raw], leaves: list[Raw | bytes]) -> dict[str, Raw]:
        """Return the fields of the mirror; append one text for every name that was met, used or not."""
        chosen = None if self._flattens else self._choose(members)
        if chosen is not None:
            leaves.extend(members.values())
            return {**self._scope_texts, **chosen} if self._scope_texts else chosen
        values = dict(self._scope_texts)
        origins: dict[str, str] = {}
        for origin, name, value in self._leaves(members, _members_of_text, above=self._top):
            leaves.append(b"" if value is None else value)
            if value is None or name is None:
                continue
            if name in values:
                self._demand_same(name, origin, origins.get(name), value)
            else:
                values[name], origins[name] = value, origin
        return values

    def _choose(self, members: Mapping[str, Raw]) -> dict[str, Raw] | None:
        """Return the fields of a record that is not flattened by their new names; None if names meet."""
        if not self._fields:
            chosen = dict(members)
        elif self._top is None:
            chosen = {name: members[path] for path, name in self._fields.items() if path in members}
        else:
            chosen = {self._fields.get(path, path): value for path, value in members.items()}
        wanted = len(members) if self._top is not None else sum(map(members.__contains__, self._fields))
        return chosen if len(chosen) == wanted and self._scope_texts.keys().isdisjoint(chosen) else None

    def _leaves(
        self,
        members: Mapping[str, Value],
        opener: Opener[Value],
        *,
        above: str | None,
        origin: str = "",
        path: str = "",
        depth: int = 0,
    ) -> Iterator[tuple[str, str | None, Value | None]]:
        """Yield every name, with dots and as the mirror has it (None: not at all), and its value.

        An object that is flattened has no value itself. `above` begins the names of these members in the mirror, None
        if they are not in it unless they are named; `path` begins those in the feed.
        """
        for name, value in members.items():
            field_name = path + name
            becomes = self._becomes(field_name, name, above)
            may_open = self._flattens and (becomes is not None or field_name in self._holders)
            inner = opener(value) if may_open else None
            yield origin + name, becomes, value if inner is None else None
            if inner is not None:
                if depth == DEEPEST:
                    raise Unprojectable(f"its objects are nested more than {DEEPEST} deep, too deep to be flattened")
                yield from self._leaves(
                    inner,
                    opener,
                    origin=f"{origin}{name}.",
                    path=field_name + SEPARATOR,
                    above=None if becomes is None else becomes + SEPARATOR,
                    depth=depth + 1,
                )

    def _becomes(self, field_name: str, name: str, above: str | None) -> str | None:
        return self._fields.get(field_name, None if above is None else above + name)

    def _demand_same(self, name: str, origin: str, other: str | None, value: Raw) -> None:
        """Raise Unprojectable unless a record only repeats what its scope says."""
        if other is not None:
            raise Unprojectable(f"its fields {other!r} and {origin!r} would both become {name!r}")
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            own, scope = msgspec.json.decode(value), self._scope[name]
            if type(own) is type(scope) and own == scope:
                return
        raise Unprojectable(f"its field {origin!r} and the scope's {name!r} would both become {name!r}, and differ")


@dataclass(frozen=True, kw_only=True)
class FeedKey:
    """Where a record of the feed has its key: under the mirror's own names, unless the source is projected."""

    names: tuple[str, ...]
    projection: Projection | None = None

    @classmethod
    def of(cls, source: Source) -> FeedKey:
        """Return how to read the keys of a source's records."""
        return cls(names=source.key, projection=Projection.of(source))

    def read(self, record: Mapping[str, Raw]) -> dict[str, Raw]:
        """Return a key by the mirror's names, as JSON texts; raise KeyError unless every part of it can be told."""
        if self.projection is None:
            return {name: record[name] for name in self.names}
        texts = {name: text for name, text in self.projection.read_key_texts(record, self.names).items() if text}
        return {name: texts[name] for name in self.names}


def _beginnings(name: str) -> Iterator[str]:
    """Yield what an object may be called that holds a field of this flat name."""
    place = name.find(SEPARATOR)
    while place >= 0:
        yield name[:place]
        place = name.find(SEPARATOR, place + 1)


def _members_of(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


def _members_of_text(value: Raw) -> Mapping[str, Raw] | None:
    return _object.decode(value) if memoryview(value)[0] == OPENING_BRACE else None


def _is_every_name_there(text: bytes, leaves: Sequence[Raw | bytes]) -> bool:
    """Tell whether decoding has lost no name; `leaves` hold one text for each that is left.

    What looks like the end of a name counts alike on both sides inside of values. So only a name that was lost, being
    there twice, or a name that holds a quote and a colon makes the sides differ.
    """
    return _count_names(text) == len(leaves) + _count_names(b",".join(leaves))


def _count_names(text: bytes) -> int:
    return text.translate(None, SPACE).count(COLON)


def _repeated_name(raw: Raw) -> str | None:
    """Return a name that stands twice in one object of a record, whatever else the record holds."""
    found: list[str] = []

    def note(pairs: list[tuple[str, None]]) -> None:
        seen: set[str] = set()
        found.extend(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]

    text = bytes(raw).decode(errors="surrogateescape")
    json.loads(text, strict=False, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=note)
    return found[0] if found else None
