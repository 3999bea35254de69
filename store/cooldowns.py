"""Cooldowns: until when a source is not to be asked again.

They are kept in the database, so that every process on every machine minds what one of them was told.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from definitions import Source
from errors import SourceCooling
from models import Cooldown, CooldownRow
from store.database import Database

LONGEST = timedelta(days=3)
"""No source is believed when it wants to be left alone for longer; exchanges ban for up to three days."""


async def select_cooldown(database: Database, source: Source) -> Cooldown | None:
    """Return until when a source is not to be asked again, or None if it may be asked."""
    async with database.transaction() as session:
        return await _select(session, source.name)


async def demand_cooled(session: AsyncSession, source: str) -> None:
    """Raise SourceCooling if a source is not to be asked yet."""
    found = await _select(session, source)
    if found is not None:
        raise SourceCooling(source=source, until=found.until, reason=found.reason, seconds_left=found.seconds_left)


def is_cooling(source: sa.BindParameter[str] | InstrumentedAttribute[str]) -> sa.Exists:
    """Return the condition that a source is not to be asked yet."""
    return sa.exists().where(CooldownRow.source == source, _lies_ahead())


async def upsert_cooldown(database: Database, source: Source, *, wait: timedelta, reason: str) -> Cooldown | None:
    """Have nobody ask a source for as long as `wait`, within reason; what is longer already stays.

    Returns what holds now, None where that is over already.
    """
    wait = min(wait, LONGEST)
    until: sa.ColumnElement[object] = sa.func.clock_timestamp() + sa.literal(wait)
    statement = insert(CooldownRow).values(source=source.name, until=until, reason=reason)
    later = {name: statement.excluded[name] for name in ("since", "until", "reason")}
    async with database.transaction() as session:
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["source"], set_=later, where=CooldownRow.until < statement.excluded.until
            )
        )
        return await _select(session, source.name)


async def delete_cooldown(session: AsyncSession, source: Source) -> bool:
    """Let a source be asked at once; return False if it may be already."""
    deleted = await session.execute(
        sa.delete(CooldownRow).where(CooldownRow.source == source.name).returning(_lies_ahead())
    )
    return deleted.scalar_one_or_none() or False


async def select_cooldowns(session: AsyncSession, sources: Collection[str]) -> dict[str, Cooldown]:
    """Return which of these sources are not to be asked, and until when."""
    found = await session.execute(COOLING, {"sources": list(sources)})
    return {
        source: Cooldown(since=since, until=until, reason=reason, seconds_left=float(seconds))
        for source, since, until, reason, seconds in found
    }


async def _select(session: AsyncSession, source: str) -> Cooldown | None:
    return (await select_cooldowns(session, [source])).get(source)


def _lies_ahead() -> sa.ColumnElement[bool]:
    return CooldownRow.until > sa.func.clock_timestamp()


_row = CooldownRow.__table__.c
COOLING = sa.select(
    _row.source, _row.since, _row.until, _row.reason, sa.func.extract("epoch", _row.until - sa.func.clock_timestamp())
).where(_row.source == sa.any_(sa.bindparam("sources", type_=ARRAY(sa.Text))), _lies_ahead())
