"""What a run leaves behind in the mirror's state, so that the next one knows what it may rely on."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from columns import Column, loses_literals
from deciding import Outcome, feed_digest, should_switch_to_canonical
from definitions import Source
from gathering import Gathered
from models import Validators
from store import mirrors, shapes
from store.mirrors import Mirror

log = structlog.get_logger()


async def leave_state(
    session: AsyncSession,
    source: Source,
    gathered: Gathered,
    mirror: Mirror,
    columns: Sequence[Column],
    outcome: Outcome,
    *,
    run: int,
    rejected: Sequence[int],
) -> None:
    """Write down what a run found and did; the table has these columns by now.

    `rejected` are the places of records that were not stored, as far as they could be read at all.
    """
    kind = _kind_from_now_on(gathered, mirror, outcome)
    validators = _validators(source, gathered, mirror, outcome, keeps_kind=kind == mirror.state.fingerprint_kind)
    state = {
        "fingerprint_kind": kind,
        "stored_kind": mirror.state.fingerprint_kind,
        "feed": feed_digest(source),
        "etag": validators.etag,
        "last_modified": validators.last_modified,
        "live_rows": outcome.live_rows,
        "cursor": await gathered.track.reached(rejected) if gathered.track else None,
        "last_run": run,
    }
    if gathered.is_increment and mirror.has_rows:
        state |= _untouched(mirror, columns)
    await mirrors.upsert_mirror(session, mirror, columns, watched=await _watch(session, mirror, columns), **state)
    if not (gathered.is_increment and source.mode == "both"):  # the next snapshot has to heed the notes
        await mirrors.delete_foreign_writes(session, mirror)


def _untouched(mirror: Mirror, columns: Sequence[Column]) -> dict[str, str]:
    """Return what an increment leaves as it is: it says nothing of the rows whose records it does not hold."""
    types = {column.field: column.sql_type for column in mirror.columns}
    has_lost = any(loses_literals(types.get(column.field, column.sql_type), column.sql_type) for column in columns)
    stored_kind = {"stored_kind": mirror.state.stored_kind}
    return stored_kind if mirror.trusted and not has_lost else {**stored_kind, "signature": ""}


def _validators(
    source: Source, gathered: Gathered, mirror: Mirror, outcome: Outcome, *, keeps_kind: bool
) -> Validators:
    """Return what may be asked about the next time: a 304 would hide what was left undone, or was done since."""
    counts = outcome.counts
    if gathered.is_increment:
        has_changed = counts.created or counts.updated or counts.restored
        keeps = not has_changed and mirror.state.feed == feed_digest(source)
        return mirror.state.validators if keeps else Validators()
    settled = not counts.held and not counts.rejected and keeps_kind
    return gathered.validators if settled else Validators()


async def _watch(session: AsyncSession, mirror: Mirror, columns: Sequence[Column]) -> bool:
    if mirror.scope_id:
        return mirror.watched  # seen to when the table's shape was settled
    if mirror.watched and set(columns) == set(mirror.columns):
        return True
    watched = await shapes.watch(session, mirror, columns)
    if not watched and mirror.may_watch:
        log.warning("triggers_refused", table=mirror.name, consequence="a 304 is never relied on")
    return watched


def _kind_from_now_on(gathered: Gathered, mirror: Mirror, outcome: Outcome) -> str:
    kind = mirror.state.fingerprint_kind
    counts = outcome.counts
    if not gathered.trusted or not should_switch_to_canonical(
        decoded=gathered.spool.records - gathered.without_fingerprint,
        differing=counts.created + counts.updated + counts.restored + counts.rejected + counts.duplicates,
        kind=kind,
    ):
        return kind
    log.warning(
        "fingerprints_switched",
        decoded=gathered.spool.records,
        reason="the source spells the same records differently from fetch to fetch",
    )
    return "canonical"
