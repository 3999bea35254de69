"""Decode a whole frame at once, where it is certain that nothing would be lost by it.

msgspec decodes into typed structs, a field for a column. Columns of types that it does not decode exactly travel as
raw JSON text; they are looked over together, a column at a time, and converted one by one only where they have to be.
Whenever something is not certain, no rows come back, and the frame has to go the exact way of rows.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import UNSET, Raw, UnsetType

from columns import (
    BIGINT,
    BIGINT_MAX,
    BIGINT_MIN,
    BOOLEAN,
    DOUBLE,
    FIRST_INSTANT,
    JSONB,
    LAST_INSTANT,
    TEXT,
    TIMESTAMPTZ,
    Column,
    key_type,
)
from records import parse_scalar
from spool import DIGEST_BYTES, Frame
from values import Fit

Int64 = Annotated[int, msgspec.Meta(ge=BIGINT_MIN, le=BIGINT_MAX)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]

EXACT_TYPES: Mapping[str, Any] = {BOOLEAN: bool, BIGINT: Int64, TEXT: str}
"""Types that msgspec decodes without ever losing anything; those beyond SWIFT_TYPES travel as raw JSON text."""

SWIFT_TYPES: Mapping[str, Any] = {**EXACT_TYPES, DOUBLE: float, TIMESTAMPTZ: Instant}
"""Types that msgspec decodes exactly as long as their literals are short and the values not extreme."""

KEY_TYPES = (BIGINT, TEXT)
"""Types of which msgspec takes no value that cannot be a key; keys of other types travel as raw text."""

COLON = b'":'
SPACE = b" \t\r\n"
SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
LONG_FRACTION = (b".0000000",)
LONG_NUMBER = (b"0" * 16, b"000000000.", *LONG_FRACTION)
"""Shapes (digits as 0) without which no literal has 16 digits: it has nine of them before the point or seven behind."""
LONG_EXPONENT = re.compile(rb"0e[+-]?0{3,}[,}\]\s]")
"""The shape of a number that may lie beyond the range of a double."""
SMALLEST_NORMAL = sys.float_info.min
ESCAPED_FRACTION = re.compile(rb"\\u00(?:3[0-9]|2[eE])")
"""A digit or a point in a text, escaped, so that the shape of a long fraction does not show."""
ESCAPED_NAME_END = re.compile(rb"\\u00(?:22|3[aA])")
"""A quote or a colon in a text, escaped: msgspec writes it unescaped, which looks like the end of a name."""
LONG_NUMBER_IN_JSON = re.compile(rb"[eE][+-]?[0-9]{3}|[0-9]{300}")
HAZARDS: Mapping[str, tuple[bytes, ...]] = {DOUBLE: LONG_NUMBER, TIMESTAMPTZ: LONG_FRACTION}


@dataclass(kw_only=True)
class Rows:
    """Decoded records, column by column."""

    columns: list[list[Any]]
    positions: list[int] = field(default_factory=list)
    digests: list[UUID] = field(default_factory=list)

    def append(self, values: Iterable[Any], position: int, digest: bytes) -> None:
        """Add one record."""
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)
        self.positions.append(position)
        self.digests.append(UUID(digest))

    def extend(self, other: Rows) -> None:
        """Add all records of another batch."""
        for column, values in zip(self.columns, other.columns, strict=True):
            column.extend(values)
        self.positions.extend(other.positions)
        self.digests.extend(other.digests)


class FastWay:
    """The way for one set of columns."""

    def __init__(
        self,
        decoder: msgspec.json.Decoder[list[Any]],
        columns: int,
        nulls: int,
        raw: Mapping[int, Callable[[Sequence[str | None]], list[Any]] | None],
        checks: Mapping[int, Callable[[Sequence[Any], bytes], None]],
        raw_keys: Sequence[int],
    ) -> None:
        self._decoder = decoder
        self._checks = checks
        self._raw_keys = raw_keys
        self._fields = [attrgetter(f"f{place}") for place in range(columns)]
        self._nulls = [attrgetter(f"n{number}") for number in range(nulls)]
        self._raw = raw

    @classmethod
    def make(
        cls,
        columns: Sequence[Column],
        key: Sequence[str],
        fits: Sequence[Fit],
        nulls: Sequence[str],
        typed: Mapping[str, Any],
    ) -> FastWay | None:
        """Build the way for columns, and for fields that have only been null; None for names that msgspec refuses.

        `typed` are the column types that msgspec decodes; those of other types travel as raw text.
        """
        fields: list[tuple[str, Any, Any] | tuple[str, Any]] = []
        raw: dict[int, Callable[[Sequence[str | None]], list[Any]] | None] = {}
        for place, (column, fit) in enumerate(zip(columns, fits, strict=True)):
            is_key = column.field in key
            kind = Raw if is_key and column.sql_type not in KEY_TYPES else typed.get(column.sql_type, Raw)
            if kind is Raw:
                raw[place] = None if column.sql_type == JSONB and not is_key else _converter(fit, is_key=is_key)
            optional = Raw | UnsetType if kind is Raw else kind | None | UnsetType
            fields.append((f"f{place}", kind) if is_key else (f"f{place}", optional, UNSET))
        fields += [(f"n{number}", None | UnsetType, UNSET) for number in range(len(nulls))]
        names = {f"f{place}": column.field for place, column in enumerate(columns)}
        names |= {f"n{number}": name for number, name in enumerate(nulls)}
        if not all(map(can_be_read_fast, names.values())):
            return None
        struct = msgspec.defstruct(
            "Record", fields, rename=names, kw_only=True, gc=False, eq=False, forbid_unknown_fields=True
        )
        checks = {
            place: CHECKS[column.sql_type]
            for place, column in enumerate(columns)
            if place not in raw and column.sql_type in CHECKS
        }
        raw_keys = [place for place in raw if columns[place].field in key]
        decoder = msgspec.json.Decoder(list[struct])  # type: ignore[valid-type]
        return cls(decoder, len(columns), len(nulls), raw, checks, raw_keys)

    def rows(self, frame: Frame) -> Rows | None:
        """Decode a frame; None, or an error that is a ValueError or msgspec's, where something is not certain."""
        structs = self._decoder.decode(frame.payload)
        columns = [list(map(get, structs)) for get in self._fields]
        missing = [column.count(UNSET) for column in columns]
        nulls = sum([value is None for get in self._nulls for value in map(get, structs)])
        names = len(structs) * len(columns) - sum(missing) + nulls
        for place, convert in self._raw.items():
            columns[place], nested = _texts(columns[place], missing[place])
            names += nested
            if convert is not None:
                columns[place] = convert(columns[place])
            missing[place] = 0
        if count_names(frame.payload) != names or any(None in columns[place] for place in self._raw_keys):
            return None
        for place, check in self._checks.items():
            check(columns[place], frame.payload)
        for place, count in enumerate(missing):
            if count:
                columns[place] = [None if value is UNSET else value for value in columns[place]]
        return Rows(columns=columns, positions=frame.positions.tolist(), digests=uuids(frame.digests))


def can_be_read_fast(field: str) -> bool:
    """Tell whether msgspec can give a struct's field this name."""
    return field.isprintable() and '"' not in field and "\\" not in field


def count_names(text: bytes) -> int:
    """Count what looks like a field name and its colon; more than expected means that a name may be repeated.

    White space is taken out because a name may stand apart from its colon. Whatever else looks like one, in a text
    say, makes the count too high, which only sends the frame the exact way.
    """
    return text.translate(None, SPACE).count(COLON)


def _check_doubles(values: Sequence[Any], payload: bytes) -> None:
    """Raise ValueError if a number may be smaller than a double tells from its neighbours, or from zero."""
    smallest = min([abs(value) for value in values if value.__class__ is float], default=1.0)
    if smallest < SMALLEST_NORMAL and LONG_EXPONENT.search(payload.translate(SHAPE)):
        raise ValueError("a number may be too small for a double")


def _check_instants(values: Sequence[Any], payload: bytes) -> None:
    """Raise ValueError if an instant may be too fine, or so close to the calendar's ends that it may not be stored."""
    if ESCAPED_FRACTION.search(payload):
        raise ValueError("a fraction may be long")
    moments = [value for value in values if value.__class__ is datetime]
    if moments and (min(moments) < FIRST_INSTANT + ONE_DAY or max(moments) > LAST_INSTANT - ONE_DAY):
        raise ValueError("an instant may be outside of the calendar")


ONE_DAY = timedelta(days=1)
"""More than any offset from UTC."""
CHECKS: Mapping[str, Callable[[Sequence[Any], bytes], None]] = {DOUBLE: _check_doubles, TIMESTAMPTZ: _check_instants}
"""What has to be looked at in the values that msgspec has decoded."""


def _texts(raws: Sequence[Any], missing: int) -> tuple[list[Any], int]:
    """Return the raw values of a column as text, None for null or missing ones, and how many names they hold.

    Raises ValueError if one may hold a number that is too large, or an object that repeats a name.
    """
    present = [raw for raw in raws if raw is not UNSET] if missing else raws
    joined = b",".join(present)
    if LONG_NUMBER_IN_JSON.search(joined):
        raise ValueError("a number may be too large")
    names = count_names(joined)
    if b"{" in joined and (
        ESCAPED_NAME_END.search(joined)
        or msgspec.json.encode(msgspec.json.decode(b"[%b]" % joined)).count(COLON) != names
    ):
        raise ValueError("an object may repeat a name")
    texts = [str(raw, "utf-8") for raw in present]
    if b"null" in joined:
        texts = [None if text == "null" else text for text in texts]  # type: ignore[misc]
    if missing:
        rest = iter(texts)
        return [None if raw is UNSET else next(rest) for raw in raws], names
    return list(texts), names


def _converter(fit: Fit, *, is_key: bool) -> Callable[[Sequence[str | None]], list[Any]]:
    """Return what turns the texts of single values into the column's; it raises ValueError where one is no fit."""
    convert = fit.convert

    def from_text(text: str) -> Any:
        value = parse_scalar(text)
        if is_key and key_type(value) is None:
            raise ValueError("not a key")
        return convert(value, text)

    def from_texts(texts: Sequence[str | None]) -> list[Any]:
        at_once = fit.convert_all(texts) if fit.convert_all else None
        return at_once or [from_text(text) if text is not None else None for text in texts]

    return from_texts


def uuids(digests: bytes) -> list[UUID]:
    """Return digests as the driver takes them."""
    return [UUID(digests[start : start + DIGEST_BYTES]) for start in range(0, len(digests), DIGEST_BYTES)]
