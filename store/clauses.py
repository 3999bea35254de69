"""From what is asked of rows to SQL: names are quoted by SQLAlchemy, values are bound and cast by PostgreSQL.

Whether a value can be cast is asked of the database before: see Clauses.casts.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from errors import BadRequest
from models import BOOKKEEPING, DELETED_AT, FINGERPRINT, SqlType
from store.query import Condition, Field, Filter, Group, Ordering, Query, Shown

JSON_TYPES = frozenset({"json", "jsonb"})
TEXT_TYPES = frozenset({"text", "character varying"})
NUMBERS = "N"
"""PostgreSQL's category of types that are numbers (documentation, "pg_type")."""
TRUTHS: Mapping[str, Any] = {"null": sa.null(), "not_null": sa.null(), "true": sa.true(), "false": sa.false()}
COMPARISONS: Mapping[str, Any] = {
    "eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
NAMED = 3


@dataclass(frozen=True, kw_only=True)
class ReadColumn:
    """A column that can be read."""

    name: str
    sql_type: str
    """As format_type() spells it, type modifier included."""
    bare_type: str
    """The same without modifier: values to compare with are neither cut nor rounded."""
    category: str
    not_null: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """A column, or what lies inside of it, as SQL knows it."""

    value: sa.ColumnElement[Any]
    bare_type: str
    not_null: bool
    is_text: bool
    """Whether a spreadsheet could take it for a formula: whatever is no number, no truth and no JSON."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """What rows are ordered by."""

    part: Part
    ordering: Ordering


class Clauses:
    """The parts of a SELECT over rows of which the columns are known."""

    def __init__(self, rows: sa.FromClause, columns: Mapping[str, ReadColumn], key: Sequence[str], table: str) -> None:
        self.rows = rows
        self.columns = columns
        self.key = tuple(key)
        self.table = table
        self.casts: list[tuple[str, str, str]] = []
        """Values that were asked for: the value, the type it has to fit, and the field that has this type."""

    def shown(self, query: Query) -> list[Shown]:
        """Return the fields of the answer; bookkeeping columns only where they are named, or tell what is deleted."""
        found: list[Shown] = []
        for item in query.shown:
            found += self._all(query) if isinstance(item, str) else [item]
        names = [item.name for item in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise BadRequest(
                f"Two fields of the answer would be called {twice!r}.",
                remedy="Give one of them another name, as in select=name:column.",
            )
        return found

    def _all(self, query: Query) -> list[Shown]:
        tells = query.deleted != "exclude" and not any(
            isinstance(item, Shown) and item.name == DELETED_AT for item in query.shown
        )
        names = [name for name in self.columns if name not in BOOKKEEPING or (name == DELETED_AT and tells)]
        return [Shown(field=Field(column=name), name=name) for name in names]

    def part(self, field: Field) -> Part:
        """Return what a field stands for; BadRequest if there is no such column, or none that has a path."""
        column = self.columns.get(field.column) if field.column != FINGERPRINT else None
        if column is None:
            raise self._unknown(field.column)
        value: sa.ColumnElement[Any] = self.rows.c[column.name]
        if not field.path:
            return Part(
                value=value,
                bare_type=column.bare_type,
                not_null=column.not_null,
                is_text=column.category not in (NUMBERS, "B") and column.bare_type not in JSON_TYPES,
            )
        if column.bare_type not in JSON_TYPES:
            raise BadRequest(
                f"The column {column.name!r} is {column.sql_type}, so there is nothing inside of it.",
                remedy="Paths lead into columns of the type jsonb or json.",
            )
        for place, step in enumerate(field.path, 1):
            arrow = "->>" if field.as_text and place == len(field.path) else "->"
            bound = sa.literal(step, sa.Integer if isinstance(step, int) else sa.Text)
            value = value.op(arrow, precedence=15)(bound)
        spelled = "text" if field.as_text else column.bare_type
        return Part(value=value, bare_type=spelled, not_null=False, is_text=field.as_text)

    def comparable(self, field: Field) -> Part:
        """Return what a field stands for where it is compared: json, which knows no order, as jsonb."""
        part = self.part(field)
        if part.bare_type != "json":
            return part
        return Part(
            value=sa.cast(part.value, SqlType("jsonb")), bare_type="jsonb", not_null=part.not_null, is_text=False
        )

    def _unknown(self, name: str) -> BadRequest:
        known = [column for column in self.columns if column != FINGERPRINT]
        near = difflib.get_close_matches(name, known, n=NAMED)
        remedy = f"Did you mean {' or '.join(near)}?" if near else f"Its columns: {', '.join(known)[:1000]}."
        return BadRequest(f"{self.table} has no column {name[:63]!r} that could be asked for.", remedy=remedy)

    def condition(self, asked: Filter) -> sa.ColumnElement[bool]:
        """Return what a filter says."""
        if isinstance(asked, Group):
            joined = (sa.and_ if asked.every else sa.or_)(*map(self.condition, asked.members))
            return sa.not_(joined.self_group()) if asked.negated else joined.self_group()
        found = self._comparison(asked)
        return sa.not_(found) if asked.negated else found

    def _comparison(self, asked: Condition) -> sa.ColumnElement[bool]:
        if asked.operator == "is":
            return self._is(asked)
        part = self.comparable(asked.field)
        if asked.operator in ("like", "ilike"):
            text = part.value if part.bare_type in TEXT_TYPES else sa.cast(part.value, sa.Text)
            pattern = sa.literal(asked.values[0].replace("*", "%"), sa.Text)
            return text.like(pattern) if asked.operator == "like" else text.ilike(pattern)
        values = [self._cast(value, part, asked.field) for value in asked.values]
        if asked.operator == "in":
            return part.value.in_(values) if values else sa.false()
        compared: sa.ColumnElement[bool] = COMPARISONS[asked.operator](part.value, values[0])
        return compared

    def _is(self, asked: Condition) -> sa.ColumnElement[bool]:
        part, word = self.part(asked.field), asked.values[0].lower()
        if word not in ("null", "not_null") and part.bare_type != "boolean":
            raise BadRequest(
                f"{asked.field} is {part.bare_type}, so it is neither true nor false.",
                remedy="Ask for is.null, or compare it with eq.",
            )
        if word == "not_null":
            return part.value.is_not(None)
        return part.value.is_(TRUTHS.get(word, sa.null()))

    def _cast(self, value: str, part: Part, field: Field) -> sa.ColumnElement[Any]:
        if part.bare_type != "text":
            self.casts.append((value, part.bare_type, str(field)))
        return sa.cast(sa.literal(value, sa.Text), SqlType(part.bare_type))

    def terms(self, query: Query) -> list[Term]:
        """Return what rows are ordered by: as asked, and then by the key, so that no two rows are alike."""
        named = [ordering.field for ordering in query.ordering]
        missing = [Field(column=name) for name in self.key if Field(column=name) not in named]
        completed = (*query.ordering, *(Ordering(field=field) for field in missing))
        return [Term(part=self.comparable(each.field), ordering=each) for each in completed]

    def after(self, terms: Sequence[Term], cursor: str) -> sa.ColumnElement[bool]:
        """Return the condition that holds for rows that come after the one where a page ended."""
        values = [
            None if text is None else self._cast(text, term.part, term.ordering.field)
            for term, text in zip(terms, read_cursor(cursor, terms), strict=True)
        ]
        alternatives: list[sa.ColumnElement[bool]] = []
        same: list[sa.ColumnElement[bool]] = []
        for term, value in zip(terms, values, strict=True):
            alternatives.append(sa.and_(*same, _beyond(term, value)))
            same.append(term.part.value.is_(None) if value is None else term.part.value == value)
        return sa.and_(_not_before(terms, values), sa.or_(*alternatives))


def _beyond(term: Term, value: sa.ColumnElement[Any] | None) -> sa.ColumnElement[bool]:
    """Tell whether a row comes after another by this term alone."""
    part, ordering = term.part, term.ordering
    if value is None:
        return part.value.is_not(None) if ordering.has_nulls_first else sa.false()
    further = part.value < value if ordering.descending else part.value > value
    return further if part.not_null or ordering.has_nulls_first else sa.or_(further, part.value.is_(None))


def _not_before(terms: Sequence[Term], values: Sequence[sa.ColumnElement[Any] | None]) -> sa.ColumnElement[bool]:
    """Return a condition that follows from the others, and that an index can be searched by.

    Rows are compared as such, by as many terms as go the same way and have no nulls that would come later.
    """
    descending = terms[0].ordering.descending
    pairs: list[tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]] = []
    for term, value in zip(terms, values, strict=True):
        may_be_later = not (term.part.not_null or term.ordering.has_nulls_first)
        if value is None or may_be_later or term.ordering.descending != descending:
            break
        pairs.append((term.part.value, value))
    if not pairs:
        return sa.true()
    here, there = (sa.tuple_(*side) for side in zip(*pairs, strict=True))
    return here <= there if descending else here >= there


def order_by(terms: Iterable[Term]) -> list[sa.ColumnElement[Any]]:
    """Return the terms for ORDER BY; where nulls come is left out where there are none, so that indexes fit."""
    clauses: list[sa.ColumnElement[Any]] = []
    for term in terms:
        ordered: sa.ColumnElement[Any] = term.part.value.desc() if term.ordering.descending else term.part.value.asc()
        if not term.part.not_null:
            ordered = ordered.nulls_first() if term.ordering.has_nulls_first else ordered.nulls_last()
        clauses.append(ordered)
    return clauses


def write_cursor(terms: Sequence[Term], values: Sequence[str | None]) -> str:
    """Return what tells where a page ended: the values of its last row, as text."""
    content = msgspec.json.encode([_digest(terms), *values])
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def read_cursor(cursor: str, terms: Sequence[Term]) -> list[str | None]:
    """Return the values of the row where a page ended; BadRequest if it was no page of this order."""
    wrong = BadRequest(
        "The parameter after is not what a page with this order has given for the next one.",
        remedy="Follow the header Link of that page, without another order; or leave after out to begin anew.",
    )
    try:
        content = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        digest, *values = msgspec.json.decode(content, type=list[str | None])
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError) as exc:
        raise wrong from exc
    if digest != _digest(terms) or len(values) != len(terms) or any("\0" in value for value in values if value):
        raise wrong
    return values


def _digest(terms: Sequence[Term]) -> str:
    spelled = "\n".join(str(term.ordering) for term in terms)
    return hashlib.blake2s(spelled.encode(errors="replace"), digest_size=4).hexdigest()


def as_json(clauses: Clauses, shown: Sequence[Shown]) -> tuple[sa.ColumnElement[Any], sa.FromClause]:
    """Return a row's fields as one JSON text, and what has to be joined for that.

    PostgreSQL writes it, so that every value is exact: numbers with all their digits, instants as in RFC 3339.
    """
    alias = "_lockstep_row"
    fields = sa.select(*(clauses.part(item.field).value.label(item.name) for item in shown)).correlate(clauses.rows)
    # The star keeps a column of the same name from being meant instead of the row.
    whole: sa.ColumnElement[Any] = sa.literal_column(f"{alias}.*")
    return sa.cast(sa.func.row_to_json(whole), sa.Text), fields.lateral(alias)


def as_texts(parts: Iterable[Part]) -> list[sa.ColumnElement[Any]]:
    """Return a row's fields as texts, spelled as JSON would spell them, but without quotes around them."""
    return [_as_text(part) for part in parts]


def _as_text(part: Part) -> sa.ColumnElement[Any]:
    if part.bare_type in TEXT_TYPES:
        return part.value
    if part.bare_type in JSON_TYPES or not part.is_text:
        return sa.cast(part.value, sa.Text)
    return sa.func.to_json(part.value).op("#>>")(sa.literal_column("'{}'"))


def same_key(clauses: Clauses, values: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that one row alone meets."""
    fields = [Field(column=name) for name in clauses.key]
    return [
        clauses.condition(Condition(field=field, operator="eq", values=(value,)))
        for field, value in zip(fields, values, strict=True)
    ]
