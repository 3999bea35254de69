"""Column types: which one holds a JSON value exactly, and what becomes of two that disagree.

Everything here is pure. A value is never rounded, cut or reinterpreted: a type either holds it as it is, or the value
is a misfit, and the column is widened along one path, or the run fails.

    bigint ──┐
    double ──┴─► numeric ──┐
    timestamptz ─► text ───┼─► jsonb
    boolean ───────────────┘

`join` is a lattice join: the type found for a field does not depend on the order in which its values were seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any

from errors import SettingError

BOOLEAN = "boolean"
BIGINT = "bigint"
DOUBLE = "double precision"
NUMERIC = "numeric"
TIMESTAMPTZ = "timestamp with time zone"
TEXT = "text"
JSONB = "jsonb"

INFERRED_TYPES = (BOOLEAN, BIGINT, DOUBLE, NUMERIC, TIMESTAMPTZ, TEXT, JSONB)
"""The types that columns made by Lockstep have, as PostgreSQL's format_type() spells them."""

TYPE_ALIASES = {
    "bool": BOOLEAN, "int": BIGINT, "integer": BIGINT, "int8": BIGINT, "float": DOUBLE, "float8": DOUBLE,
    "double": DOUBLE, "decimal": NUMERIC, "timestamptz": TIMESTAMPTZ, "string": TEXT, "json": JSONB,
}  # fmt: skip

BIGINT_MIN, BIGINT_MAX = -(2**63), 2**63 - 1
MAX_EXPONENT = 308
"""A double's largest; a number beyond it is no interoperable JSON (RFC 8259, section 6), and is rejected."""
INTEGER_LIMIT: int = 10 ** (MAX_EXPONENT + 1)
NUMERIC_MIN_EXPONENT = -16_383
"""Most digits that PostgreSQL's numeric keeps behind the decimal point (documentation, "Numeric Types")."""

MAX_COLUMNS = 1_500
"""PostgreSQL allows 1,600 columns in a table, dropped ones included; the rest is head-room."""

MAX_NAME_BYTES = 63
RESERVED_PREFIX = "_sync_"
SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})

RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})"
)
"""Instants that timestamptz holds exactly: with an offset, and no finer than a microsecond."""
FIRST_INSTANT, LAST_INSTANT = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""The ends of the calendar, which asyncpg writes as -infinity and infinity."""

GENERATED_NAME = re.compile(r"field_.*_[0-9a-f]{8}", re.DOTALL)

_unrounded = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A mirrored column: the field it holds, and what it can hold."""

    name: str
    field: str
    sql_type: str
    """As PostgreSQL's format_type() spells it, type modifier included."""
    owned: bool
    """Made by Lockstep, which may therefore widen it; a user's own column is never altered."""


@dataclass(frozen=True, kw_only=True)
class SchemaChange:
    """What has to happen to a mirror's columns before its records fit."""

    added: tuple[Column, ...] = ()
    widened: tuple[Column, ...] = ()
    """Columns with the type they are to have."""

    def __bool__(self) -> bool:
        return bool(self.added or self.widened)


def infer(value: Any) -> str | None:
    """Return the narrowest type that holds a parsed JSON value exactly, or None for null.

    Numbers with a fraction or an exponent are expected as Decimal, so that no digit is lost before it was looked at.
    """
    match value:
        case None:
            return None
        case bool():
            return BOOLEAN
        case int():
            return BIGINT if BIGINT_MIN <= value <= BIGINT_MAX else NUMERIC
        case Decimal():
            return DOUBLE if fits_double(value) else NUMERIC
        case str():
            return TIMESTAMPTZ if _is_instant(value) else TEXT
        case _:
            return JSONB


def join(one: str | None, other: str | None) -> str | None:
    """Return the narrowest type that holds whatever either type holds; None is the type of null."""
    if one is None or other is None or one == other:
        return one or other
    both = {one, other}
    if both <= {BIGINT, DOUBLE, NUMERIC}:
        return NUMERIC
    if both == {TIMESTAMPTZ, TEXT}:
        return TEXT
    return JSONB


def instant(text: str) -> datetime:
    """Return the instant that an RFC 3339 text says; raise ValueError if timestamptz does not hold it exactly."""
    if not RFC3339.fullmatch(text):
        raise ValueError("no RFC 3339 time with an offset")
    moment = datetime.fromisoformat(text.upper())
    try:
        inside = FIRST_INSTANT < moment.astimezone(UTC) < LAST_INSTANT
    except OverflowError:
        inside = False
    if not inside:
        raise ValueError("an instant outside of the calendar")
    return moment


def _is_instant(text: str) -> bool:
    try:
        instant(text)
    except ValueError:
        return False
    return True


def shortest(value: Decimal) -> Decimal:
    """Return the same number without zeros at its end; the default context would round it to 28 digits."""
    return _unrounded.normalize(value)


def fits_double(value: Decimal | int) -> bool:
    """Tell whether a double gives the very same number back when it is printed in its shortest form."""
    try:
        return Decimal(repr(float(value))) == value
    except OverflowError:
        return False


def is_integral(value: Decimal | int) -> bool:
    """Tell whether a number is whole, without ever writing out one with a huge exponent."""
    return isinstance(value, int) or (value.adjusted() <= MAX_EXPONENT and value == value.to_integral_value())


def fits_numeric(value: Decimal | int) -> bool:
    """Tell whether a number is one that other programs take too, and numeric has room for all its digits."""
    if isinstance(value, int):
        return abs(value) < INTEGER_LIMIT
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and value.adjusted() <= MAX_EXPONENT and exponent >= NUMERIC_MIN_EXPONENT


def loses_literals(narrow: str, wide: str) -> bool:
    """Tell whether widening a stored column cannot give back what the source had written.

    A timestamptz keeps the instant, not the spelling: its text has to be fetched again.
    """
    return narrow == TIMESTAMPTZ and wide != narrow


def column_name(field: str) -> str:
    """Return the column for a field: its own name where PostgreSQL takes it, else one that cannot collide.

    Names that are empty, over 63 bytes, reserved by Lockstep or by PostgreSQL get a readable start and a hash; so do
    names that look as if they had got one.
    """
    encoded = field.encode()
    taken = field.startswith(RESERVED_PREFIX) or field in SYSTEM_COLUMNS or GENERATED_NAME.fullmatch(field)
    if 0 < len(encoded) <= MAX_NAME_BYTES and not taken and "\0" not in field:
        return field
    digest = hashlib.blake2s(encoded, digest_size=4).hexdigest()
    start = encoded.replace(b"\0", b"")[: MAX_NAME_BYTES - len("field__") - len(digest)].decode(errors="ignore")
    return f"field_{start}_{digest}"


def declared_type(name: str) -> str:
    """Return the type that a setting names; raise SettingError for one that Lockstep cannot make."""
    spelled = TYPE_ALIASES.get(name.strip().lower(), name.strip().lower())
    if spelled not in INFERRED_TYPES:
        known = ", ".join((*INFERRED_TYPES, *TYPE_ALIASES))
        raise SettingError(f"The column type {name!r} is unknown.", remedy=f"Use one of: {known}.")
    return spelled


class Inference:
    """Column types as they emerge from the records of a first load."""

    def __init__(self, key: Sequence[str], declared: Mapping[str, str]) -> None:
        self.key = tuple(key)
        self.declared = {field: declared_type(name) for field, name in declared.items()}
        self.types: dict[str, str | None] = {}
        self.key_votes: dict[str, dict[str, int]] = {field: {} for field in key}

    def observe(self, record: Mapping[str, Any]) -> None:
        """Take one parsed record into account."""
        for field, value in record.items():
            if field in self.key_votes:
                self._vote(field, value)
            else:
                self.types[field] = join(self.types.get(field), infer(value))

    def columns(self) -> tuple[Column, ...]:
        """Return the key's columns, then the others in the order in which they were met.

        A field that has only been null has no type yet, and so no column.
        """
        keys = [(field, self._key_type(field)) for field in self.key]
        others = [(field, self.declared.get(field, found)) for field, found in self.types.items()]
        return tuple(
            Column(name=column_name(field), field=field, sql_type=sql_type, owned=True)
            for field, sql_type in (*keys, *others)
            if sql_type
        )

    def _vote(self, field: str, value: Any) -> None:
        # The majority decides: one odd record must not turn all others into rejected ones.
        kind = key_type(value)
        if kind:
            votes = self.key_votes[field]
            votes[kind] = votes.get(kind, 0) + 1

    def _key_type(self, field: str) -> str:
        votes = self.key_votes[field]
        if field in self.declared:
            return self.declared[field]
        if set(votes) >= {BIGINT, NUMERIC} and votes.get(TEXT, 0) <= votes[BIGINT] + votes[NUMERIC]:
            return NUMERIC
        return max(votes, key=lambda kind: votes[kind]) if votes else TEXT


def key_type(value: Any) -> str | None:
    """Return the column type for a key value, None where it cannot be a key: only text and integers can."""
    match value:
        case str():
            return TEXT
        case bool() | None:
            return None
        case int() | Decimal() if is_integral(value):
            return BIGINT if BIGINT_MIN <= value <= BIGINT_MAX else NUMERIC
        case _:
            return None


def adopt(columns: Iterable[Column], table_types: Mapping[str, str]) -> tuple[Column, ...]:
    """Return columns as they are where the table has them already: those are the user's own, with their own types."""
    return tuple(
        replace(column, sql_type=table_types[column.name], owned=False) if column.name in table_types else column
        for column in columns
    )


def plan_change(
    columns: Iterable[Column],
    wanted: Mapping[str, str | None],
    declared: Mapping[str, str],
    table_types: Mapping[str, str],
) -> SchemaChange:
    """Decide which columns to add and which to widen so that `wanted` (field to type) is held.

    A column that the table has already is taken as it is. A field whose declared or user's own column cannot be
    widened is left out: its values are misfits.
    """
    have = {column.field: column for column in columns}
    added, widened = [], []
    for field, sql_type in wanted.items():
        column = have.get(field)
        if column is None and sql_type:
            spelled = declared_type(declared[field]) if field in declared else sql_type
            added.append(Column(name=column_name(field), field=field, sql_type=spelled, owned=True))
        elif column is not None and column.owned and field not in declared and sql_type:
            wide = join(column.sql_type, sql_type)
            if wide != column.sql_type and wide is not None:
                widened.append(replace(column, sql_type=wide))
    return SchemaChange(added=adopt(added, table_types), widened=tuple(widened))


def after_change(columns: Iterable[Column], change: SchemaChange) -> tuple[Column, ...]:
    """Return the columns as they are once a change was made."""
    widened = {column.field: column for column in change.widened}
    return (*(widened.get(column.field, column) for column in columns), *change.added)
