"""Pauses: while a source is paused, its mirror is left as it is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from definitions import Source
from models import MirrorRow
from store.cooldowns import delete_cooldown
from store.database import Database
from store.mirrors import mirror_name
from store.schedules import unpark


async def pause(database: Database, source: Source, *, reason: str) -> bool:
    """Have a source not synced from now on; return False if it is paused already."""
    async with database.transaction() as session:
        # Its mirror need not have been made yet.
        await session.execute(
            insert(MirrorRow)
            .values(name=mirror_name(source), scope=source.scope_id, key=list(source.key))
            .on_conflict_do_nothing()
        )
        paused = await session.execute(
            sa.update(MirrorRow)
            .where(*_is_of(source), MirrorRow.paused_since.is_(None))
            .values(**paused_because(reason))
            .returning(MirrorRow.name)
        )
        return paused.scalar_one_or_none() is not None


async def resume(database: Database, source: Source) -> bool:
    """Have a source synced again that was paused, parked or cooling; return False if it was none of these."""
    async with database.transaction() as session:
        resumed = await session.execute(
            sa.update(MirrorRow)
            .where(*_is_of(source), MirrorRow.paused_since.is_not(None))
            .values(paused_since=None, pause_reason=None)
            .returning(MirrorRow.name)
        )
        cooled = await delete_cooldown(session, source)
        unparked = await unpark(session, source.name)
        return resumed.scalar_one_or_none() is not None or cooled or unparked


async def update_undone(session: AsyncSession, source: Source, *, run: int, undone: int, more_rows: int) -> None:
    """Write down that a run has undone another: the mirror is no longer what the source last said, and is to stay so.

    `more_rows` is how many live rows were added by that.
    """
    await session.execute(
        sa.update(MirrorRow)
        .where(*_is_of(source))
        .values(
            etag=None,
            last_modified=None,
            cursor=None,
            last_run=run,
            live_rows=MirrorRow.live_rows + more_rows,
            **paused_because(f"run {run} undid run {undone}"),
        )
    )


def _is_of(source: Source) -> tuple[sa.ColumnElement[bool], ...]:
    return MirrorRow.name == mirror_name(source), MirrorRow.scope == source.scope_id


def paused_because(reason: str) -> dict[str, Any]:
    """Return the values of a pause that begins now."""
    return {"paused_since": sa.func.now(), "pause_reason": reason}
