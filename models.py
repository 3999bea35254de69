"""What the service keeps: value types that travel between modules, and the tables behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

RunStatus = Literal["running", "succeeded", "unchanged", "held", "failed", "interrupted"]
Operation = Literal["created", "updated", "restored", "deleted"]

KEPT_PROBLEMS = 100
"""How many rejected or duplicate records a run keeps in detail; the others are only counted."""

KEPT_DIFFERENCES = 100
"""How many field-level differences a plan or a verification shows."""


@dataclass(frozen=True, kw_only=True)
class Validators:
    """What a source said of the version it served, to be sent back as a condition."""

    etag: str | None = None
    last_modified: str | None = None

    def __bool__(self) -> bool:
        return bool(self.etag or self.last_modified)


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Why a source may not be synced for the time being."""

    since: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cooldown:
    """Until when a source is not to be asked again, and why."""

    since: datetime
    until: datetime
    reason: str
    seconds_left: float
    """By the database's clock, when this was read."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record that was not applied as it stood.

    It was rejected, or it is one of several with the same key, or it repeats a field name (the last one was taken).
    """

    kind: Literal["rejected", "duplicate", "repeated_field"]
    position: int
    """Zero-based place in the snapshot."""
    reason: str
    key: Mapping[str, Any] | None = None
    """Key fields and values, where the record has a usable key."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a run does, or would do, to one row."""

    key: Mapping[str, Any]
    op: Operation
    changes: Mapping[str, tuple[Any, Any]]
    """Old and new value of every field that differs."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many records or rows fared how in one run."""

    records: int = 0
    created: int = 0
    updated: int = 0
    restored: int = 0
    deleted: int = 0
    unchanged: int = 0
    held: int = 0
    rejected: int = 0
    duplicates: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a run ended: the answer of `/sync_data`, and a row of `/runs`."""

    run: int
    source: str
    table: str
    status: RunStatus
    counts: Counts
    started_at: datetime
    scope: str = ""
    finished_at: datetime | None = None
    duration_ms: int | None = None
    body_bytes: int = 0
    first_load: bool = False
    not_modified: bool = False
    approves: int | None = None
    """The held run whose deletions this run was allowed to carry out."""
    undoes: int | None = None
    """The run whose changes this run took back."""
    error: str | None = None
    """The code of the error that ended the run; see errors.py."""
    cause: str | None = None
    remedy: str | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do now; nothing was written."""

    source: str
    table: str
    counts: Counts
    differences: tuple[Difference, ...]
    hash: str
    problems: tuple[Problem, ...] = ()
    duration_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How the live rows compare with the source, value by value."""

    source: str
    table: str
    records: int
    live_rows: int
    differing: int
    differences: tuple[Difference, ...]
    """What a run would have to do to every row that differs; at most KEPT_DIFFERENCES."""
    problems: tuple[Problem, ...] = ()
    repaired: Report | None = None
    """The run that wrote what differed, if that was wanted."""
    duration_ms: int = 0

    @property
    def exact(self) -> bool:
        """Whether the live rows equal the snapshot."""
        return self.differing == 0 and not any(problem.kind == "rejected" for problem in self.problems)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One entry of the journal."""

    seq: int
    run: int
    table: str
    key: Mapping[str, Any]
    op: Operation
    changes: Mapping[str, tuple[Any, Any]]
    at: datetime


@dataclass(frozen=True, kw_only=True)
class FirstLoad:
    """A run that filled an empty mirror: one entry of the journal, in its place, for all the rows that it created."""

    seq: int
    run: int
    source: str
    table: str
    rows: int
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a fetch has come; `total_bytes` is unknown for chunked answers."""

    body_bytes: int
    records: int
    total_bytes: int | None = None


SERVICE_SCHEMA = "lockstep"
"""Where the service's own tables live; the mirrors live in the schema that the operator names."""

IS_RUNNING = sa.text("status = 'running'")
Timestamp = sa.TIMESTAMP(timezone=True)
now = sa.func.now()


class ServiceBase(DeclarativeBase):
    """Base of the service's own tables; their migrations are in store/migrations."""

    metadata = sa.MetaData(
        schema=SERVICE_SCHEMA,
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        },
    )


class RunRow(ServiceBase):
    """One attempt to sync a source. While it is running, its owner renews the lease."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    source: Mapped[str] = mapped_column(sa.Text)
    mirror: Mapped[str] = mapped_column(sa.Text)
    scope: Mapped[str] = mapped_column(sa.Text, server_default="")
    status: Mapped[str] = mapped_column(sa.Text, server_default="running")
    owner: Mapped[str] = mapped_column(sa.Text)
    lease_until: Mapped[datetime] = mapped_column(Timestamp)
    started_at: Mapped[datetime] = mapped_column(Timestamp, server_default=now)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
    duration_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    records: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    created: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    updated: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    restored: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    deleted: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    unchanged: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    held: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    rejected: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    duplicates: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    body_bytes: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    first_load: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    not_modified: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    approves: Mapped[int | None] = mapped_column(sa.BigInteger)
    undoes: Mapped[int | None] = mapped_column(sa.BigInteger)
    first_seq: Mapped[int | None] = mapped_column(sa.BigInteger)
    last_seq: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The journal's numbers that are this run's alone; a first load has one, and no entry under it."""
    error: Mapped[str | None] = mapped_column(sa.Text)
    cause: Mapped[str | None] = mapped_column(sa.Text)
    remedy: Mapped[str | None] = mapped_column(sa.Text)
    problems: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=sa.text("'[]'"))

    __table_args__ = (
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'unchanged', 'held', 'failed', 'interrupted')", name="status"
        ),
        # One run per mirror and scope, over all processes and through any connection pooler.
        sa.Index("runs_one_running_per_mirror", "mirror", "scope", unique=True, postgresql_where=IS_RUNNING),
        sa.Index("runs_source_id_idx", "source", "id"),
        # Where whose entries are in the journal: its readers are led by these, whatever they ask for.
        sa.Index("runs_last_seq_idx", "last_seq", postgresql_where=sa.text("last_seq IS NOT NULL")),
        sa.Index("runs_source_last_seq_idx", "source", "last_seq", postgresql_where=sa.text("last_seq IS NOT NULL")),
        sa.Index("runs_mirror_last_seq_idx", "mirror", "last_seq", postgresql_where=sa.text("last_seq IS NOT NULL")),
    )


class MirrorRow(ServiceBase):
    """What Lockstep knows of a mirror beyond its columns; where sources share a table, also of each of their scopes."""

    __tablename__ = "mirrors"

    name: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    scope: Mapped[str] = mapped_column(sa.Text, primary_key=True, server_default="")
    fields: Mapped[dict[str, dict[str, Any]]] = mapped_column(JSONB, server_default=sa.text("'{}'"))
    """By field name: its `column`, and whether Lockstep `owned` it, that is made it. Scopes leave it to the table."""
    key: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    signature: Mapped[str] = mapped_column(sa.Text, server_default="")
    """Of the columns as the last run left them; fingerprints are not trusted under another one."""
    fingerprint_kind: Mapped[str] = mapped_column(sa.Text, server_default="raw")
    stored_kind: Mapped[str] = mapped_column(sa.Text, server_default="raw")
    """The kind of the fingerprints in the rows; it lags `fingerprint_kind` until the run after a switch."""
    feed: Mapped[str | None] = mapped_column(sa.Text)
    """Digest of what the validators belong to: URL, path, key and types."""
    etag: Mapped[str | None] = mapped_column(sa.Text)
    last_modified: Mapped[str | None] = mapped_column(sa.Text)
    watched: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    """Whether triggers tell of foreign writes; without them, no 304 can be trusted."""
    live_rows: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    cursor: Mapped[str | None] = mapped_column(sa.Text)
    """The greatest value of the source's cursor field, as JSON and as the source wrote it."""
    last_run: Mapped[int | None] = mapped_column(sa.BigInteger)
    paused_since: Mapped[datetime | None] = mapped_column(Timestamp)
    pause_reason: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.CheckConstraint("fingerprint_kind IN ('raw', 'canonical')", name="fingerprint_kind"),
        sa.CheckConstraint("stored_kind IN ('raw', 'canonical')", name="stored_kind"),
    )


class CooldownRow(ServiceBase):
    """Until when a source is not to be asked again; a row whose moment has passed means nothing."""

    __tablename__ = "cooldowns"

    source: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    since: Mapped[datetime] = mapped_column(Timestamp, server_default=now)
    until: Mapped[datetime] = mapped_column(Timestamp)
    reason: Mapped[str] = mapped_column(sa.Text)


class ForeignWriteRow(ServiceBase):
    """A transaction that wrote to a mirror and was not a run; runs, of one scope or of all, remove what they know."""

    __tablename__ = "foreign_writes"

    mirror: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    scope: Mapped[str] = mapped_column(sa.Text, primary_key=True, server_default="")
    xid: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp, server_default=now)


class ChangeRow(ServiceBase):
    """One entry of the journal."""

    __tablename__ = "changes"

    seq: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    run: Mapped[int] = mapped_column(sa.BigInteger)
    mirror: Mapped[str] = mapped_column(sa.Text)
    op: Mapped[str] = mapped_column(sa.Text)
    key: Mapped[dict[str, Any]] = mapped_column(JSONB)
    changes: Mapped[dict[str, list[Any]]] = mapped_column(JSONB)

    __table_args__ = (
        sa.CheckConstraint("op IN ('created', 'updated', 'restored', 'deleted')", name="op"),
        sa.Index("changes_run_idx", "run"),
        sa.Index(
            "changes_key_idx",
            sa.text("jsonb_hash_extended(key, 0) int8_bloom_ops (n_distinct_per_range = 2500)"),
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
        ),
    )


class SqlType(sa.types.UserDefinedType[Any]):
    """A column type as PostgreSQL's format_type() spells it; values reach it by COPY, never as parameters."""

    cache_ok = True

    def __init__(self, spelled: str) -> None:
        self.spelled = spelled

    def get_col_spec(self, **_: Any) -> str:
        """Return the type as DDL and casts spell it."""
        return self.spelled


FINGERPRINT = "_sync_fingerprint"
CREATED_AT = "_sync_created_at"
UPDATED_AT = "_sync_updated_at"
DELETED_AT = "_sync_deleted_at"
BOOKKEEPING = (FINGERPRINT, CREATED_AT, UPDATED_AT, DELETED_AT)


def bookkeeping_columns() -> list[sa.Column[Any]]:
    """Return the columns that every mirror has besides those of its source."""
    return [
        sa.Column(FINGERPRINT, sa.Uuid),
        sa.Column(CREATED_AT, Timestamp, server_default=now, nullable=False),
        sa.Column(UPDATED_AT, Timestamp, server_default=now, nullable=False),
        sa.Column(DELETED_AT, Timestamp),
    ]


def mirror_table(name: str, db_schema: str, types: Mapping[str, str], key: tuple[str, ...] = ()) -> sa.Table:
    """Build the table of a mirror: its columns with their types, in order, then the bookkeeping ones.

    With `key`, the columns named become its primary key.
    """
    columns = [sa.Column(column, SqlType(sql_type)) for column, sql_type in types.items()]
    constraints = [sa.PrimaryKeyConstraint(*key)] if key else []
    return sa.Table(name, sa.MetaData(), *columns, *bookkeeping_columns(), *constraints, schema=db_schema)


class MyData:
    """A row of the default mirror: an attribute for every column of the table that `table_name` names.

    Its columns come from the feed, so they are known only once the table exists; `map_my_data` then maps them. A row
    with `_sync_deleted_at` set is a tombstone.
    """


def map_my_data(table: sa.Table) -> None:
    """Map MyData to a table that was read from the database, in place of what it was mapped to before."""
    _mirror_registry.dispose()
    _mirror_registry.map_imperatively(MyData, table)


_mirror_registry = registry()
