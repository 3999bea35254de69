"""Ticks become jobs when they are due by the database's clock: once, and whatever happened meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.dialects import registry

from definitions import Schedule, Source, Sources
from schedules import ticks_of
from store import Database, cooldowns
from store.job_engine import Patience, install
from store.pauses import resume
from store.schedules import due_query, next_query, park
from tests.postgres import connect
from tests.working import HOURLY, Connection, all_due, source
from ticking import Ticker

QUEUED = "SELECT convert_from(payload, 'UTF8') FROM lockstep.pgqueuer ORDER BY id"


@pytest_asyncio.fixture
async def sql(database: Database, database_url: str) -> AsyncIterator[Connection]:
    """Connect to a database that has the job engine's tables."""
    await install(database)
    connection = await connect(database_url)
    yield connection
    await connection.close()


def ticker(database: Database, *sources: Source) -> Ticker:
    """Return a node's ticker."""

    async def wake() -> None:
        """Nobody is waiting for jobs."""

    return Ticker(database, ticks_of(Sources(sources)), patiently=Patience(asyncio.Event()), wake=wake)


async def tick(node: Ticker) -> float:
    """Do once what a ticker does again and again."""
    await node.keep()
    return await node.enqueue_due()


async def queued(sql: Connection) -> list[str]:
    """Return what the jobs are for."""
    return [row[0] for row in await sql.fetch(QUEUED)]


async def test_missed_ticks_run_once(database: Database, sql: Connection) -> None:
    """Whatever became due while nothing ran becomes one job, and the next tick is where it would have been."""
    node = ticker(database, source("shop", schedules=[Schedule(every_seconds=30)]))
    assert await tick(node) > 0
    assert await queued(sql) == []
    due = await sql.fetchval("SELECT due FROM lockstep.schedules")
    await sql.execute("UPDATE lockstep.schedules SET due = due - interval '5 hours'")
    await tick(node)
    await tick(node)
    assert await queued(sql) == ["snapshot:shop"]
    assert await sql.fetchval("SELECT due FROM lockstep.schedules") - due in {
        timedelta(seconds=0),
        timedelta(seconds=30),
    }


async def test_a_tick_during_its_own_job_is_skipped(
    database: Database, sql: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a source's job waits or is under way, a tick of the same mode adds none and is told; others are added."""
    node = ticker(database, source("shop"), source("other"))
    await node.keep()
    for _ in range(2):
        await sql.execute("UPDATE lockstep.schedules SET due = now() WHERE source = 'shop'")
        await node.enqueue_due()
    assert await queued(sql) == ["snapshot:shop"]
    assert "tick_skipped" in capsys.readouterr().out
    await all_due(sql)
    await node.enqueue_due()
    assert await queued(sql) == ["snapshot:shop", "snapshot:other"]


async def test_many_nodes_make_one_job_of_a_tick(database: Database, sql: Connection) -> None:
    """Several nodes that look for ticks at once claim each tick once between them."""
    sources = [source(f"s{number}") for number in range(60)]
    nodes = [ticker(database, *sources) for _ in range(4)]
    await asyncio.gather(*(node.keep() for node in nodes))
    assert await sql.fetchval("SELECT count(*) FROM lockstep.schedules") == 60
    await all_due(sql)
    await asyncio.gather(*(node.enqueue_due() for node in nodes))
    assert sorted(await queued(sql)) == sorted(f"snapshot:s{number}" for number in range(60))
    assert await sql.fetchval("SELECT count(*) FROM lockstep.schedules WHERE due < now()") == 0


async def test_a_clock_that_was_put_back_stops_no_schedule(database: Database, sql: Connection) -> None:
    """An interval whose next tick is farther away than the interval is long begins anew; cron's times stay."""
    node = ticker(
        database, source("shop", schedules=[HOURLY]), source("nightly", schedules=[Schedule(cron="0 3 * * *")])
    )
    await node.keep()
    await sql.execute("UPDATE lockstep.schedules SET due = due + interval '3 hours'")
    await tick(node)
    assert await queued(sql) == ["snapshot:shop"]


async def test_nodes_with_different_files_leave_each_other_alone(database: Database, sql: Connection) -> None:
    """A node makes jobs of its own file's schedules only, and removes none that another node still names."""
    mine, theirs = source("mine"), source("theirs", schedules=[Schedule(every_seconds=7200)])
    here, there = ticker(database, mine), ticker(database, theirs)
    await here.keep()
    await there.keep()
    await all_due(sql)
    await here.enqueue_due()
    await here.enqueue_due()
    assert await queued(sql) == ["snapshot:mine"]
    await there.enqueue_due()
    assert await queued(sql) == ["snapshot:mine", "snapshot:theirs"]
    await sql.execute("UPDATE lockstep.schedules SET named_at = now() - interval '25 hours'")
    await here.keep()
    assert [row[0] for row in await sql.fetch("SELECT source FROM lockstep.schedules")] == ["mine"]


async def test_a_changed_schedule_takes_effect_at_the_restart(database: Database, sql: Connection) -> None:
    """A schedule that reads differently has a row of its own; the old one makes no more jobs."""
    await ticker(database, source("shop")).keep()
    node = ticker(database, source("shop", schedules=[Schedule(every_seconds=10), Schedule(cron="0 3 * * *")]))
    await node.keep()
    await sql.execute("UPDATE lockstep.schedules SET due = now() WHERE spelled = 'every 3600 s'")
    await node.enqueue_due()
    await node.enqueue_due()
    assert await queued(sql) == []
    assert await sql.fetchval("SELECT count(*) FROM lockstep.schedules") == 3


async def test_jitter_makes_a_tick_late_and_never_early(database: Database, sql: Connection) -> None:
    """With jitter each tick is late by at most that, and the ticks themselves stay where they are."""
    jittery = Schedule(cron="* * * * *", jitter_seconds=20)
    node = ticker(database, *(source(f"s{number}", schedules=[jittery]) for number in range(30)))
    await node.keep()
    late = [row[0] for row in await sql.fetch("SELECT due - date_trunc('minute', due) FROM lockstep.schedules")]
    assert all(timedelta(0) <= delay <= timedelta(seconds=20) for delay in late)
    assert len(set(late)) > 1


async def test_no_jobs_for_sources_that_are_parked_or_cooling(database: Database, sql: Connection) -> None:
    """A source that is parked, or has asked to be left alone, gets no jobs until it is resumed."""
    cooling, parked = source("cooling"), source("parked")
    node = ticker(database, cooling, parked)
    await node.keep()
    await cooldowns.upsert_cooldown(database, cooling, wait=timedelta(hours=2), reason="it asked for that")
    async with database.transaction() as session:
        await park(session, "parked", "snapshot", reason="it cost workers")
    await all_due(sql)
    assert await node.enqueue_due() > 0
    assert await queued(sql) == []
    for one in (cooling, parked):
        assert await resume(database, one)
        assert not await resume(database, one)
    await node.enqueue_due()
    assert sorted(await queued(sql)) == ["snapshot:cooling", "snapshot:parked"]


@pytest.mark.parametrize("query", [due_query([1, 2], 500), next_query([1, 2])])
async def test_due_ticks_are_found_without_looking_at_all(sql: Connection, query: sa.Select[Any]) -> None:
    """However many schedules there are, what is due next is the beginning of an index."""
    await sql.execute("""
        INSERT INTO lockstep.schedules (source, mode, spelled, due)
        SELECT 's' || number, 'snapshot', '', now() + number * interval '1 s' FROM generate_series(-50, 10000) number
    """)
    await sql.execute("ANALYZE lockstep.schedules")
    compiled = query.compile(dialect=registry.load("postgresql.asyncpg")())
    values = [compiled.params[name] for name in compiled.positiontup or ()]
    plan = "\n".join(row[0] for row in await sql.fetch(f"EXPLAIN {compiled}", *values))
    assert "Index Cond: (due" in plan
    assert "Seq Scan on schedules" not in plan
