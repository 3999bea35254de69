"""What a run decides, in pure functions: what is withheld, what the columns become, what the counts are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from columns import Column, after_change, loses_literals, plan_change
from definitions import RunMode, Source
from errors import BadRequest, SchemaConflict
from models import Counts, Difference, Problem
from rows import ColumnMisfit

MANY_EQUAL = 20
"""A run that decodes fewer records in vain than this does not call for another kind of fingerprint."""
MOSTLY_EQUAL = 0.9


@dataclass(frozen=True, kw_only=True)
class Approach:
    """How a run goes about fetching its source."""

    mode: RunMode = "snapshot"
    conditional: bool = False
    """Whether the source may answer a snapshot run that nothing was modified."""
    trust: bool = True
    """Whether to rely on what earlier runs left: fingerprints or, in an incremental run, the cursor."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done with a snapshot once it is there."""

    run: int | None
    """The run that applies it; None only looks."""
    plan: str | None = None
    """Hash of the plan that may be applied and no other."""
    approved: int | None = None
    """How many deletions were approved."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a snapshot, or would become of it."""

    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)
    first_load: bool = False
    held_because: str | None = None
    differences: tuple[Difference, ...] = ()
    hash: str = ""
    live_rows: int = 0


def demand_mode(source: Source, mode: RunMode | None) -> RunMode:
    """Return how a run goes about it: as it is told, or as is usual; raise BadRequest where the source cannot."""
    if mode is not None and source.mode not in (mode, "both"):
        raise BadRequest(
            f"{source.name} cannot be synced in the mode {mode}; it has the mode {source.mode}.",
            remedy='Leave the mode out, or give the source mode = "both".',
        )
    return mode or source.usual_mode


def reason_to_hold(
    *, deletions: int, live: int, records: int, unidentified: int, approved: int | None, source: Source
) -> str | None:
    """Say why deletions are withheld, or None if they may be carried out.

    `live` rows are those before the run, tombstones not counted; `approved` is how many deletions were approved.
    """
    if deletions == 0 or (records == 0 and source.allow_empty):
        return None
    if approved is not None:
        return None if deletions <= approved else f"{deletions} rows would be deleted, {approved} were approved"
    if records == 0:
        return f"the source answered with no records, but the mirror has {live} live rows"
    if unidentified:
        return f"{unidentified} rejected records have no usable key, so the {deletions} missing rows may be theirs"
    share = deletions / live
    if deletions > source.max_delete_rows and share > source.max_delete_share:
        return (
            f"{deletions} of {live} live rows ({share:.0%}) would be deleted, more than MAX_DELETE_ROWS"
            f" ({source.max_delete_rows}) and MAX_DELETE_SHARE ({source.max_delete_share:.0%}) allow"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class NewColumns:
    """The columns that hold what the present ones could not."""

    columns: tuple[Column, ...]
    must_fetch_all: bool
    """Values of unchanged records have to be written anew, in a spelling that their column had not kept."""


def decide_columns(
    columns: Sequence[Column],
    wanted: Mapping[str, str | None],
    misfits: Mapping[str, ColumnMisfit],
    table_types: Mapping[str, str],
    source: Source,
) -> NewColumns:
    """Decide which columns a run needs; raise SchemaConflict where they may not become so.

    `misfits` are the first ones of each wanted field. `table_types` are all columns of the mirror's table, by name; it
    is empty for a table that is yet to be made.
    """
    change = plan_change(columns, wanted, source.types, table_types)
    changed = {column.field for column in (*change.added, *change.widened)}
    for name in wanted:
        if name not in changed:
            raise _conflict(name, misfits[name], source)
        if table_types and source.on_schema_change == "freeze":
            remedy = "Set SCHEMA=evolve to let the table follow the source."
            raise _conflict(name, misfits[name], source, remedy=remedy)
    before = {column.name: column.sql_type for column in columns}
    return NewColumns(
        columns=after_change(columns, change),
        must_fetch_all=any(loses_literals(before[column.name], column.sql_type) for column in change.widened),
    )


def _conflict(field: str, misfit: ColumnMisfit, source: Source, remedy: str | None = None) -> SchemaConflict:
    key = ", ".join(f"{name}={value!r}" for name, value in misfit.key.items())
    where = f"column {misfit.column.name!r} ({misfit.column.sql_type})" if misfit.column else f"field {field!r}"
    return SchemaConflict(
        f"The record with key {key} does not fit table {source.table}: its value for {where} {misfit.reason}.",
        remedy=remedy,
    )


def should_switch_to_canonical(*, decoded: int, differing: int, kind: str) -> bool:
    """Tell whether a source spells the same records differently from fetch to fetch.

    `decoded` are the records whose fingerprints were compared in vain, `differing` those that turned out to be new.
    Then fingerprints of the canonical form spare the decoded records the way to the database.
    """
    equal = decoded - differing
    return kind == "raw" and equal >= MANY_EQUAL and equal >= MOSTLY_EQUAL * decoded


def feed_digest(source: Source) -> str:
    """Return a digest of whatever makes an answer of the source mean something else."""
    parts = (
        *(source.url, source.key, source.records, source.format, sorted(source.types.items()), source.nul_characters),
        *(source.shape, sorted(source.params.items()), sorted(source.headers.items())),
        *(source.method, source.body, source.cursor),
    )
    return hashlib.blake2s(repr(parts).encode(), digest_size=16).hexdigest()


def total(counts: Counts) -> Counts:
    """Fill in how many records were unchanged: those that nothing else became of."""
    others = counts.created + counts.updated + counts.restored + counts.rejected + counts.duplicates
    return replace(counts, unchanged=counts.records - others)
