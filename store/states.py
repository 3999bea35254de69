"""How sources stand: when each is due, what keeps it from being synced, how its last run ended, what it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from definitions import Source
from models import Cooldown, MirrorRow, Pause, Report, RunRow
from store.cooldowns import select_cooldowns
from store.database import Database
from store.mirrors import mirror_name
from store.runs import report_of
from store.schedules import Due, Parked, select_due, select_parked


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """How a source stands."""

    due: tuple[Due, ...] = ()
    """Rows of its schedules, those that its file does not have any more among them."""
    parked: tuple[Parked, ...] = ()
    cooldown: Cooldown | None = None
    pause: Pause | None = None
    live_rows: int | None = None
    """None if nothing was ever mirrored."""
    last_run: Report | None = None


async def select_states(database: Database, sources: Sequence[Source]) -> dict[str, SourceState]:
    """Return how sources stand, by name."""
    names = [source.name for source in sources]
    async with database.transaction() as session:
        due, parked = await select_due(session, names), await select_parked(session, names)
        cooldowns = await select_cooldowns(session, names)
        mirrors, last_runs = await _select_mirrors(session, sources), await _select_last_runs(session, names)
    return {
        name: SourceState(
            due=tuple(due.get(name, ())),
            parked=tuple(parked.get(name, ())),
            cooldown=cooldowns.get(name),
            pause=mirrors[name][0] if name in mirrors else None,
            live_rows=mirrors[name][1] if name in mirrors else None,
            last_run=last_runs.get(name),
        )
        for name in names
    }


async def _select_mirrors(
    session: AsyncSession, sources: Sequence[Source]
) -> Mapping[str, tuple[Pause | None, int | None]]:
    """Return by source whether it is paused, and how many live rows it has."""
    places = {(mirror_name(source), source.scope_id): source.name for source in sources}
    row = MirrorRow
    columns = (row.name, row.scope, row.paused_since, row.pause_reason, row.live_rows, row.last_run)
    query = sa.select(*columns).where(row.name == sa.any_(sa.literal([name for name, _ in places], ARRAY(sa.Text))))
    return {
        places[name, scope]: (
            Pause(since=since, reason=reason or "") if since else None,
            None if last_run is None else live_rows,
        )
        for name, scope, since, reason, live_rows, last_run in await session.execute(query)
        if (name, scope) in places
    }


async def _select_last_runs(session: AsyncSession, names: Collection[str]) -> dict[str, Report]:
    """Return the newest run of each source; one step into an index for each, however many runs there are."""
    asked = sa.func.unnest(sa.literal(list(names), ARRAY(sa.Text))).table_valued("name").render_derived("asked")
    newest = (
        sa.select(RunRow.id).where(RunRow.source == asked.c.name).order_by(RunRow.id.desc()).limit(1).lateral("newest")
    )
    ids = sa.select(newest.c.id).select_from(asked.join(newest, sa.true()))
    rows = await session.scalars(sa.select(RunRow).where(RunRow.id.in_(ids)))
    return {row.source: report_of(row) for row in rows}
