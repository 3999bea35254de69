"""Find the array of records inside a document, and prove afterwards that what surrounds it is sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from errors import SourceIncomplete, SourceInvalid, SourceTooLarge
from sources.verdict import excerpt, without_surrogates

MAX_DEPTH = 500
_SHOWN_FIELDS = 20
_TOKENS_PER_TURN = 20_000
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|[^"{}\[\],: \t\n\r]++|"', re.DOTALL)
_PLACEHOLDER = b'["the records"]'

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_name_decoder = msgspec.json.Decoder(str)


@dataclass(slots=True)
class _Level:
    is_object: bool
    awaits_name: bool
    name: bytes = b""


class ArrayFinder:
    """Follow a document's tokens to the array under `path`, and keep everything before it."""

    def __init__(self, path: tuple[str, ...], *, max_bytes: int) -> None:
        self.found = False
        self.prefix = b""
        """What stands before the array's opening bracket."""
        self.rest = b""
        """What followed that bracket in the piece that held it."""
        self._path = path
        self._max_bytes = max_bytes
        self._levels: list[_Level] = []
        self._text = b""
        self._place = 0
        self._resume_at_bytes = 0

    def feed(self, data: bytes, *, is_all: bool) -> Iterator[None]:
        """Take the next piece of input; yield wherever the event loop may be given a chance."""
        self._text += data
        if len(self._text) < self._resume_at_bytes and not is_all:
            return
        for count, token in enumerate(_TOKEN.finditer(self._text, self._place), 1):
            if token[0] == b'"':
                break  # a string that goes on in the next piece
            if self._take(token[0]):
                self.found = True
                self.prefix, self.rest = self._text[: token.start()], self._text[token.end() :]
                return
            self._place = token.end()
            if count % _TOKENS_PER_TURN == 0:
                yield None
        if len(self._text) > self._max_bytes:
            raise SourceTooLarge(
                f"More than MAX_RECORD_BYTES, or max_record_bytes of the source ({self._max_bytes:,}), precede the "
                f"array {describe(self._path)}."
            )
        # An unfinished string is read again from its beginning, so wait until it has grown in proportion.
        self._resume_at_bytes = len(self._text) + (len(self._text) - self._place)

    def explain_absence(self) -> SourceInvalid | SourceIncomplete:
        """Say why the array was not found in a document that has ended."""
        if not self._text.strip():
            return SourceInvalid("The answer is empty, which does not say that there are no records.")
        try:
            value = _follow(without_surrogates(self._text), self._path)
        except msgspec.ValidationError as exc:
            return SourceInvalid(f"The answer has no array {describe(self._path)}: {exc}")
        except msgspec.DecodeError as exc:
            if "truncated" in str(exc):
                return SourceIncomplete(
                    f"The answer ends before its array {describe(self._path)}: {excerpt(self._text)}"
                )
            return SourceInvalid(f"The answer is not valid JSON: {excerpt(self._text)}")
        except SourceInvalid as exc:
            return exc
        return SourceInvalid(f"What stands under {describe(self._path)} is not an array: {excerpt(value)}")

    def _take(self, token: bytes) -> bool:
        """Follow one token; tell whether it opens the array."""
        if not self._levels:
            self._check_beginning(token)
        if token in (b"{", b"["):
            if token == b"[" and self._is_at_path():
                return True
            self._open(is_object=token == b"{")
        elif token in (b"}", b"]"):
            if self._levels:
                self._levels.pop()
        elif self._levels:
            self._take_within(self._levels[-1], token)
        return False

    def _check_beginning(self, token: bytes) -> None:
        expected = b"{" if self._path else b"["
        if token == expected:
            return
        wanted = f"an object with an array {describe(self._path)}" if self._path else "an array of records"
        raise SourceInvalid(f"The answer is not {wanted}: {excerpt(self._text)}")

    def _open(self, *, is_object: bool) -> None:
        if len(self._levels) >= MAX_DEPTH:
            raise SourceInvalid(f"The answer is nested too deeply: {excerpt(self._text)}")
        self._levels.append(_Level(is_object, awaits_name=is_object))

    @staticmethod
    def _take_within(level: _Level, token: bytes) -> None:
        if token == b",":
            level.awaits_name = level.is_object
        elif token == b":":
            level.awaits_name = False
        elif level.awaits_name:
            level.name = token

    def _is_at_path(self) -> bool:
        if len(self._levels) != len(self._path):
            return False
        return all(
            level.is_object and not level.awaits_name and _reads(level.name, name)
            for level, name in zip(self._levels, self._path, strict=True)
        )


def check_frame(prefix: bytes, suffix: bytes, path: tuple[str, ...]) -> None:
    """Parse the document around the array strictly, and check that the array is where `path` leads.

    Raises:
        SourceIncomplete: the document ends early.
        SourceInvalid: it is malformed, or names the array's field twice.
    """
    if not path:
        return
    try:
        value = _follow(without_surrogates(prefix) + _PLACEHOLDER + without_surrogates(suffix), path)
    except msgspec.ValidationError:
        value = b""  # a field of the same name that comes later holds something else
    except msgspec.DecodeError as exc:
        if "truncated" in str(exc):
            raise SourceIncomplete("The answer ends after its array of records, before its own end.") from exc
        raise SourceInvalid(
            f"The answer is not valid JSON around its array of records: {excerpt(prefix)} … {excerpt(suffix)}"
        ) from exc
    if value != _PLACEHOLDER:
        raise SourceInvalid(f"The answer has more than one field {describe(path)}.")


def find_value(prefix: bytes, suffix: bytes, path: tuple[str, ...]) -> bytes | None:
    """Return the JSON that stands under `path` beside the array of a document that `check_frame` found sound.

    None where a field on the way is absent, or is no object.
    """
    document = prefix + _PLACEHOLDER + suffix
    try:
        return _find(document, path)
    except msgspec.DecodeError:  # an unpaired surrogate somewhere
        return _find(without_surrogates(document), path)


def _find(document: bytes, path: tuple[str, ...]) -> bytes | None:
    value: msgspec.Raw | None = msgspec.Raw(document)
    for name in path:
        try:
            value = _fields_decoder.decode(value or b"").get(name)
        except msgspec.ValidationError:
            return None
        if value is None:
            return None
    return bytes(value or b"")


def describe(path: tuple[str, ...]) -> str:
    """Return the path as a user writes it."""
    return ".".join(path) or "at its top level"


def _follow(document: bytes, path: tuple[str, ...]) -> bytes:
    """Return the value under `path`, checking the syntax of the whole document on the way."""
    value = msgspec.Raw(document)
    for depth, name in enumerate(path):
        try:
            fields = _fields_decoder.decode(value)
        except RecursionError as exc:
            raise SourceInvalid(f"The answer is nested too deeply: {excerpt(document)}") from exc
        if name not in fields:
            raise SourceInvalid(
                f"The answer has no field {describe(path[: depth + 1])}; the fields there are: {_list(list(fields))}."
            )
        value = fields[name]
    return bytes(value)


def _list(names: list[str]) -> str:
    shown = ", ".join(excerpt(name.encode()) for name in names[:_SHOWN_FIELDS])
    return (shown or "none") + (", …" if len(names) > _SHOWN_FIELDS else "")


def _reads(token: bytes, name: str) -> bool:
    try:
        return _name_decoder.decode(token) == name
    except msgspec.DecodeError:
        return False
