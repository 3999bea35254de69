"""What the service keeps: value types that travel between modules, and the tables behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

RunStatus = Literal["running", "succeeded", "unchanged", "held", "failed", "interrupted"]
Operation = Literal["created", "updated", "restored", "deleted"]
FeedFormat = Literal["auto", "json", "ndjson"]

KEPT_PROBLEMS = 100
"""How many rejected or duplicate records a run keeps in detail; the others are only counted."""

KEPT_DIFFERENCES = 100
"""How many field-level differences a plan or a verification shows."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named JSON feed: where it is, what identifies its records, where they go, how far it is trusted.

    `url` may carry credentials; never log it whole, log `sources.redact(url)`.
    """

    name: str
    url: str
    key: tuple[str, ...] = ("id",)
    table: str = "my_data"
    db_schema: str = "public"
    records: tuple[str, ...] = ()
    """Path to the array inside the document; empty means the top level."""
    format: FeedFormat = "auto"
    types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Declared column types by field name; they win over what would be inferred."""
    on_schema_change: Literal["evolve", "freeze"] = "evolve"
    nul_characters: Literal["reject", "strip"] = "reject"
    allow_empty: bool = False
    allow_private: bool = False
    """Whether addresses in private networks may be contacted even where `url` does not name one."""
    max_delete_rows: int = 10
    max_delete_share: float = 0.1
    """Deletions above both limits are held; the share is of the live rows, 0 to 1."""
    attempts: int = 3
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0
    total_timeout_seconds: float = 3600.0
    max_retry_after_seconds: float = 30.0
    max_body_bytes: int = 16 * 2**30
    """Cap on the decompressed body."""
    max_record_bytes: int = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Validators:
    """What a source said of the version it served, to be sent back as a condition."""

    etag: str | None = None
    last_modified: str | None = None

    def __bool__(self) -> bool:
        return bool(self.etag or self.last_modified)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record that was not applied as it stood: rejected, or one of several with the same key."""

    kind: Literal["rejected", "duplicate"]
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
    finished_at: datetime | None = None
    duration_ms: int | None = None
    body_bytes: int = 0
    first_load: bool = False
    not_modified: bool = False
    approves: int | None = None
    """The held run whose deletions this run was allowed to carry out."""
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
class Progress:
    """How far a fetch has come; `total_bytes` is unknown for chunked answers."""

    body_bytes: int
    records: int
    total_bytes: int | None = None
