"""Schedules: which ticks are due, which sources are parked, and the tables behind the jobs.

What is due is a matter of the database's clock. A row belongs to a source's name, its mode and the schedule in words,
so that nodes whose files differ keep rows of their own and leave each other's alone; a row that no node has named for
a day is removed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from models import ServiceBase, Timestamp
from store.cooldowns import is_cooling
from store.database import Database

UNNAMED_FOR = timedelta(days=1)
"""After how long a row that no node's file has any more is removed."""
NAMED_EVERY = timedelta(hours=6)
"""How old the mark that a node's file still has a row may grow before it is renewed."""

now = sa.func.statement_timestamp()
"""Stays the same within a statement, so that an index can be asked with it."""


class ScheduleRow(ServiceBase):
    """When a source is due next by one of its schedules."""

    __tablename__ = "schedules"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    source: Mapped[str] = mapped_column(sa.Text)
    mode: Mapped[str] = mapped_column(sa.Text)
    spelled: Mapped[str] = mapped_column(sa.Text)
    """The schedule in words; a source may have several."""
    due: Mapped[datetime] = mapped_column(Timestamp)
    last_tick: Mapped[datetime | None] = mapped_column(Timestamp)
    longest_wait: Mapped[timedelta | None] = mapped_column(sa.Interval)
    """How far away `due` may be; farther only if somebody has put the clock back since it was set."""
    named_at: Mapped[datetime] = mapped_column(Timestamp, server_default=sa.func.now())
    """When a node last said that its file has this row."""

    __table_args__ = (
        sa.UniqueConstraint("source", "mode", "spelled"),
        sa.Index("schedules_due_idx", "due"),
    )


class ParkedRow(ServiceBase):
    """A source that no job syncs any more, because its jobs ended the processes that ran them."""

    __tablename__ = "parked"

    source: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    mode: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    since: Mapped[datetime] = mapped_column(Timestamp, server_default=sa.func.now())
    reason: Mapped[str] = mapped_column(sa.Text)


class JobStartRow(ServiceBase):
    """A job that a worker has taken; the row goes when the job ends in an orderly way."""

    __tablename__ = "job_starts"

    job: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    worker: Mapped[UUID] = mapped_column(sa.Uuid)
    owner: Mapped[str] = mapped_column(sa.Text)
    """The worker's process, as in the rows of its runs."""
    started: Mapped[bool] = mapped_column(sa.Boolean)
    """Whether it works on the job, not just has it."""
    losses: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    """How many workers were lost while they worked on it."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A schedule that has no row yet."""

    identity: tuple[str, str, str]
    """The source's name, the mode, and the schedule in words."""
    due: datetime
    longest_wait: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """Rows that are due and locked."""

    ids: tuple[int, ...]
    moment: datetime
    wait_seconds: float
    """How long it is until another one is due."""


@dataclass(frozen=True, kw_only=True)
class Due:
    """When a source is synced next by one of its schedules."""

    mode: str
    spelled: str
    due: datetime
    last_tick: datetime | None


@dataclass(frozen=True, kw_only=True)
class Parked:
    """Why no job syncs a source in one mode, and since when."""

    mode: str
    since: datetime
    reason: str


async def select_now(database: Database) -> datetime:
    """Return what the database's clock says."""
    async with database.transaction() as session:
        moment: datetime = (await session.execute(sa.select(now))).scalar_one()
        return moment


async def select_ids(database: Database, sources: Collection[str]) -> dict[tuple[str, str, str], int]:
    """Return the ids of all rows of these sources, by source, mode and schedule."""
    row = ScheduleRow
    query = sa.select(row.source, row.mode, row.spelled, row.id).where(row.source == sa.any_(_texts(sources)))
    async with database.transaction() as session:
        return {(source, mode, spelled): id_ for source, mode, spelled, id_ in await session.execute(query)}


async def insert_schedules(database: Database, planned: Iterable[Planned]) -> None:
    """Add rows; those that another node has added meanwhile stay as they are."""
    names = ("source", "mode", "spelled")
    values = [
        {**dict(zip(names, new.identity, strict=True)), "due": new.due, "longest_wait": new.longest_wait}
        for new in planned
    ]
    async with database.transaction() as session:
        await session.execute(insert(ScheduleRow).on_conflict_do_nothing(), values)


async def keep_schedules(database: Database, ids: Collection[int]) -> int:
    """Say that a node's file has these rows, remove those that none has had for long, and mend what is too far away.

    Returns how many were removed.
    """
    row, mine = ScheduleRow, ScheduleRow.id == sa.any_(_numbers(ids))
    async with database.transaction() as session:
        await session.execute(
            sa.update(row).where(mine, row.named_at < now - sa.literal(NAMED_EVERY)).values(named_at=now)
        )
        await session.execute(sa.update(row).where(mine, row.due > now + row.longest_wait).values(due=now))
        gone = await session.execute(
            sa.delete(row).where(row.named_at < now - sa.literal(UNNAMED_FOR)).returning(row.id)
        )
        return len(gone.all())


async def claim_ticks(session: AsyncSession, *, foreign: Collection[int], limit: int) -> Claimed:
    """Lock rows that are due and that nobody else has locked; `foreign` are those that this node's file has not."""
    ids = (await session.scalars(due_query(foreign, limit))).all()
    following = next_query(foreign).scalar_subquery()
    moment, wait = (await session.execute(sa.select(now, sa.func.extract("epoch", following - now)))).one()
    return Claimed(ids=tuple(ids), moment=moment, wait_seconds=math.inf if wait is None else float(wait))


def due_query(foreign: Collection[int], limit: int) -> sa.Select[int]:
    """Return the query that locks rows that are due."""
    query = sa.select(ScheduleRow.id).where(ScheduleRow.due <= now, *_to_be_done(foreign))
    return query.order_by(ScheduleRow.due).limit(limit).with_for_update(of=ScheduleRow, skip_locked=True)


def next_query(foreign: Collection[int]) -> sa.Select[datetime]:
    """Return the query for the moment at which the next row will be due."""
    query = sa.select(ScheduleRow.due).where(ScheduleRow.due > now, *_to_be_done(foreign))
    return query.order_by(ScheduleRow.due).limit(1)


def _to_be_done(foreign: Collection[int]) -> tuple[sa.ColumnElement[bool], ...]:
    row = ScheduleRow
    parked = sa.exists().where(ParkedRow.source == row.source, ParkedRow.mode == row.mode)
    return row.id != sa.all_(_numbers(foreign)), ~parked, ~is_cooling(row.source)


async def update_ticks(session: AsyncSession, due: Mapping[int, datetime]) -> None:
    """Set when schedules that were claimed are due next."""
    await session.execute(
        sa.text("""
            UPDATE lockstep.schedules s
               SET due = n.due, last_tick = now(), named_at = now()
              FROM unnest(:ids, :due) AS n (id, due)
             WHERE s.id = n.id
        """).bindparams(
            sa.bindparam("ids", list(due), type_=ARRAY(sa.BigInteger)),
            sa.bindparam("due", list(due.values()), type_=ARRAY(sa.TIMESTAMP(timezone=True))),
        )
    )


async def park(session: AsyncSession, source: str, mode: str, *, reason: str) -> None:
    """Have no job sync a source in this mode until it is resumed."""
    await session.execute(insert(ParkedRow).values(source=source, mode=mode, reason=reason).on_conflict_do_nothing())


async def unpark(session: AsyncSession, source: str) -> bool:
    """Have jobs sync a source again; return False if it was not parked."""
    resumed = await session.execute(sa.delete(ParkedRow).where(ParkedRow.source == source).returning(ParkedRow.mode))
    return bool(resumed.all())


async def select_due(session: AsyncSession, sources: Collection[str]) -> dict[str, list[Due]]:
    """Return when each source is due by each of its schedules, the soonest first."""
    found = dict[str, list[Due]]()
    query = sa.select(ScheduleRow).where(ScheduleRow.source == sa.any_(_texts(sources))).order_by(ScheduleRow.due)
    for row in await session.scalars(query):
        due = Due(mode=row.mode, spelled=row.spelled, due=row.due, last_tick=row.last_tick)
        found.setdefault(row.source, []).append(due)
    return found


async def select_parked(session: AsyncSession, sources: Collection[str]) -> dict[str, list[Parked]]:
    """Return which of these sources are parked, and in which modes."""
    found = dict[str, list[Parked]]()
    query = sa.select(ParkedRow).where(ParkedRow.source == sa.any_(_texts(sources))).order_by(ParkedRow.mode)
    for row in await session.scalars(query):
        found.setdefault(row.source, []).append(Parked(mode=row.mode, since=row.since, reason=row.reason))
    return found


async def select_all_parked(database: Database) -> list[str]:
    """Return the names of all sources that are parked."""
    async with database.transaction() as session:
        return list(await session.scalars(sa.select(ParkedRow.source).distinct().order_by(ParkedRow.source)))


def _texts(values: Collection[str]) -> sa.BindParameter[Sequence[Any]]:
    return sa.literal(list(values), ARRAY(sa.Text))


def _numbers(values: Collection[int]) -> sa.BindParameter[Sequence[Any]]:
    return sa.literal(list(values), ARRAY(sa.BigInteger))
