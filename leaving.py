"""What a run leaves behind in the mirror's state, so that the next one knows what it may rely on."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from columns import Column
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
    run: int,
) -> None:
    """Write down what a run found and did; the table has these columns by now."""
    used, kind = mirror.state.fingerprint_kind, _kind_from_now_on(gathered, mirror, outcome)
    counts = outcome.counts
    # A 304 would hide what was left undone, so the source is only asked for one when nothing was.
    settled = not counts.held and not counts.rejected and kind == used
    validators = gathered.validators if settled else Validators()
    await mirrors.upsert_mirror(
        session,
        mirror,
        columns,
        watched=await _watch(session, mirror, columns),
        fingerprint_kind=kind,
        stored_kind=used,
        feed=feed_digest(source),
        etag=validators.etag,
        last_modified=validators.last_modified,
        live_rows=outcome.live_rows,
        last_run=run,
    )
    await mirrors.delete_foreign_writes(session, mirror)


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
