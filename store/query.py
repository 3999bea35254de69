"""What is asked of a mirror's rows: which of them, what of them, in what order, and from where on.

These are values alone: the web reads them from a request, and the database is asked by store/clauses.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "in", "is"]
Deleted = Literal["exclude", "include", "only"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column, or what lies under a path inside of a column of JSON."""

    column: str
    path: tuple[str | int, ...] = ()
    """Names of members and places in arrays."""
    as_text: bool = False
    """Whether what lies there is taken as text instead of as JSON."""

    def __str__(self) -> str:
        *inner, last = self.path or ("",)
        arrows = "".join(f"->{step}" for step in inner)
        return self.column + (f"{arrows}{'->>' if self.as_text else '->'}{last}" if self.path else "")

    @property
    def label(self) -> str:
        """What it is called in answers unless another name is given: the last member, or the column."""
        return next((step for step in reversed(self.path) if isinstance(step, str)), self.column)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison."""

    field: Field
    operator: Operator
    values: tuple[str, ...]
    """As they were written; several for `in` alone."""
    negated: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Conditions of which all must hold, or any."""

    every: bool
    members: tuple[Condition | Group, ...]
    negated: bool = False


Filter = Condition | Group


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A field of the answer."""

    field: Field
    name: str


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """What rows are ordered by; nulls come last, or first where the order is descending, unless it says otherwise."""

    field: Field
    descending: bool = False
    nulls_first: bool | None = None

    @property
    def has_nulls_first(self) -> bool:
        """Where nulls come."""
        return self.descending if self.nulls_first is None else self.nulls_first

    def __str__(self) -> str:
        direction = "desc" if self.descending else "asc"
        return f"{self.field}.{direction}.{'nullsfirst' if self.has_nulls_first else 'nullslast'}"


ALL = "*"
"""Stands for all columns that are shown unless others are named."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked for."""

    shown: tuple[Shown | str, ...] = (ALL,)
    filters: tuple[Filter, ...] = ()
    """All of them must hold."""
    ordering: tuple[Ordering, ...] = ()
    """Completed by the key, so that it is total."""
    limit: int | None = None
    after: str | None = None
    """Where the page before ended, as that page told."""
    deleted: Deleted = "exclude"
    as_of: int | None = None
    """The run whose state of the table is asked for instead of the present one."""
