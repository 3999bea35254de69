"""A worker syncs what is due, waits for what is busy, and loses nothing when it stops or dies."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from alembic import command

from app import work
from config import load_settings
from definitions import Schedule
from errors import SettingError
from store import Database, cooldowns, migrations
from store.job_engine import install
from store.jobs import Order, insert_jobs
from store.pauses import pause
from tests.feed_server import Answer, FeedServer, Silence
from tests.postgres import connect
from tests.service import free_port
from tests.working import Connection, all_due, source, until, working
from worker import busy_wait

HOUSE = Path(__file__).parents[1]
RECORDS = b'[{"id": 1}, {"id": 2}]'
JOBS = "SELECT count(*) FROM lockstep.pgqueuer"
ENDED = "SELECT string_agg(status, ',' ORDER BY id) FROM lockstep.runs"


@pytest_asyncio.fixture
async def sql(database: Database, database_url: str) -> AsyncIterator[Connection]:
    """Connect to a database that has the job engine's tables."""
    await install(database)
    connection = await connect(database_url)
    yield connection
    await connection.close()


async def enqueue(database: Database, *names: str) -> None:
    """Add a job for each of these sources."""
    async with database.transaction() as session:
        assert await insert_jobs(session, [Order(source=name, mode="snapshot") for name in names]) == []


async def test_sources_are_synced_on_their_schedules(database: Database, sql: Connection, feed: FeedServer) -> None:
    """What is due is synced without anybody's asking, again and again, and a source that fails stops no other."""
    feed.answers = lambda request: Answer(body=RECORDS, status=404 if "bad" in request.query else 200)
    every = [Schedule(every_seconds=1)]
    good, bad = source("good", feed.url, schedules=every), source("bad", f"{feed.url}?bad=1", schedules=every)
    async with working(database, good, bad):
        for status, name in (("succeeded", "good"), ("unchanged", "good"), ("failed", "bad")):
            query = f"SELECT count(*) > 0 FROM lockstep.runs WHERE status = '{status}' AND source = '{name}'"
            await until(sql, query, expected=True)
    assert await sql.fetchval("SELECT count(*) FROM good") == 2
    assert await sql.fetchval("SELECT count(*) FROM lockstep.job_starts") == 0


async def test_a_stopped_worker_lets_runs_finish(database: Database, sql: Connection, feed: FeedServer) -> None:
    """A worker that is to stop takes no further job, and a run that ends within its time ends as ever."""
    feed.answers = Answer(body=RECORDS, fault=Silence())
    async with working(database, source("slow", feed.url)):
        await enqueue(database, "slow")
        await feed.stalled.wait()
        asyncio.get_running_loop().call_later(0.1, feed.released.set)
    assert await sql.fetchval(ENDED) == "succeeded"
    assert await sql.fetchval(JOBS) == 0


async def test_a_run_that_does_not_finish_in_time_is_handed_back(
    database: Database, sql: Connection, feed: FeedServer
) -> None:
    """A run that takes too long when the worker stops is interrupted, and its job is there for others at once."""
    feed.answers = Answer(body=RECORDS, fault=Silence())
    slow = source("slow", feed.url)
    async with working(database, slow, stop_seconds=0.05):
        await enqueue(database, "slow")
        await feed.stalled.wait()
    assert await sql.fetchval(ENDED) == "interrupted"
    assert await sql.fetchval("SELECT status::text FROM lockstep.pgqueuer") == "queued"
    feed.answers = Answer(body=RECORDS)
    async with working(database, slow):
        await until(sql, JOBS, expected=0)
    assert await sql.fetchval(ENDED) == "interrupted,succeeded"


async def test_a_job_waits_for_another_run_of_its_mirror(
    database: Database, sql: Connection, feed: FeedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job whose mirror is being synced by somebody else waits until that is over, and runs then."""
    feed.answers = [Answer(body=RECORDS, fault=Silence()), Answer(body=RECORDS)]
    async with working(database, source("shop", feed.url)) as service:
        await service.wait_until_ready()
        call = asyncio.create_task(service.run(service.sources.default))
        await feed.stalled.wait()
        await enqueue(database, "shop")
        await until(sql, "SELECT attempts > 0 FROM lockstep.pgqueuer", expected=True)
        feed.released.set()
        assert (await call).status == "succeeded"
        await until(sql, JOBS, expected=0)
    assert await sql.fetchval(ENDED) == "succeeded,unchanged"
    assert "job_waits" in capsys.readouterr().out


def test_a_job_that_waits_for_long_looks_again_at_intervals() -> None:
    """A job that has to wait looks again soon at first, then less often, and never stops doing so."""
    waits = [busy_wait(attempts).total_seconds() for attempts in (0, 1, 5, 8, 100_000)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (1, 15)


async def test_a_worker_outlives_lost_connections(
    database: Database, sql: Connection, feed: FeedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the database ends every connection, jobs wait; afterwards they are done as if nothing had happened."""
    feed.answers = Answer(body=RECORDS)
    names = [f"s{number}" for number in range(12)]
    async with working(database, *(source(name, feed.url) for name in names)):
        await until(sql, "SELECT count(*) FROM lockstep.schedules", expected=12)
        for _ in range(3):
            await all_due(sql)
            await sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lockstep'"
            )
        done = "SELECT count(DISTINCT source) FROM lockstep.runs WHERE status IN ('succeeded', 'unchanged')"
        for _ in range(400):
            if await sql.fetchval(done) == 12:
                break
            await all_due(sql)
            await asyncio.sleep(0.1)
        await until(sql, JOBS, expected=0)
    assert await sql.fetchval(done) == 12
    told = capsys.readouterr()
    assert "uncaught_error" not in told.out
    assert "Flush failed" not in told.out + told.err


async def test_paused_and_cooling_sources_are_left_alone(database: Database, sql: Connection, feed: FeedServer) -> None:
    """A job of a source that is paused, or wants to be left alone, ends without a run and without an error."""
    paused, cooling = source("paused", feed.url), source("cooling", feed.url)
    await pause(database, paused, reason="it is wrong")
    await cooldowns.upsert_cooldown(database, cooling, wait=timedelta(hours=1), reason="it said so")
    await enqueue(database, "paused", "cooling")
    async with working(database, paused, cooling):
        await until(sql, JOBS, expected=0)
    assert await sql.fetchval(ENDED) is None
    assert feed.requests == []


LOST = """
    WITH run AS (
        INSERT INTO lockstep.runs (source, mirror, owner, lease_until)
        VALUES ('shop', 'public.shop', $1, now() + interval '1 hour')
    ), job AS (
        UPDATE lockstep.pgqueuer SET status = 'picked', heartbeat = now() - interval '1 minute', queue_manager_id = $2
        RETURNING id
    )
    INSERT INTO lockstep.job_starts (job, worker, owner, started, losses) SELECT id, $2, $1, true, $3 FROM job
"""
"""A job whose worker, on another machine, has not been heard of for a minute, and whose run's lease is long."""


async def test_a_job_is_taken_from_a_worker_that_fell_silent(
    database: Database, sql: Connection, feed: FeedServer
) -> None:
    """A job runs again once its worker was silent for a heartbeat; the lease of the lost run is not waited for."""
    feed.answers = Answer(body=RECORDS)
    await enqueue(database, "shop")
    await sql.execute(LOST, "elsewhere/1/2/3", uuid.uuid4(), 0)
    async with working(database, source("shop", feed.url)):
        await until(sql, JOBS, expected=0)
    assert await sql.fetchval(ENDED) == "interrupted,succeeded"
    assert await sql.fetchval("SELECT count(*) FROM lockstep.job_starts") == 0


async def test_a_job_that_was_lost_too_often_is_parked(
    database: Database, sql: Connection, feed: FeedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that has cost three workers is not run: its source is parked, and an ERROR says what to do."""
    feed.answers = Answer(body=RECORDS)
    await enqueue(database, "shop")
    await sql.execute(LOST, "elsewhere/1/2/3", uuid.uuid4(), 2)
    async with working(database, source("shop", feed.url)):
        await until(sql, "SELECT count(*) FROM lockstep.parked", expected=1)
        await until(sql, JOBS, expected=0)
    assert feed.requests == []
    assert "cli.py resume --source shop" in capsys.readouterr().out


async def test_jobs_of_sources_that_nobody_knows_are_given_up(
    database: Database, sql: Connection, feed: FeedServer
) -> None:
    """A job of a source that is not in this node's file is left to others for a while, and not for ever."""
    await enqueue(database, "unknown")
    async with working(database, source("shop", feed.url)):
        await until(sql, "SELECT attempts FROM lockstep.pgqueuer", expected=1)
        await sql.execute("UPDATE lockstep.pgqueuer SET attempts = 100, execute_after = now()")
        await until(sql, JOBS, expected=0)


ENGINE = """
    SELECT relname FROM pg_class WHERE relname LIKE 'pgqueuer%' AND relkind = 'r'
     UNION ALL SELECT typname FROM pg_type WHERE typname = 'pgqueuer_status'
     UNION ALL SELECT proname FROM pg_proc WHERE proname LIKE '%pgqueuer%' ORDER BY 1
"""


async def test_the_job_engine_is_made_once_and_kept_up_to_date(
    database_url: str, database: Database, sql: Connection
) -> None:
    """Workers that start at once make its tables once and bring old ones up to date; migrations remove them."""
    made = [row[0] for row in await sql.fetch(ENGINE)]
    assert made == [
        "fn_pgqueuer_changed", "pgqueuer", "pgqueuer_log", "pgqueuer_schedules", "pgqueuer_statistics",
        "pgqueuer_status",
    ]  # fmt: skip
    await sql.execute("ALTER TYPE lockstep.pgqueuer_status RENAME VALUE 'deleted' TO 'gone'")
    await sql.execute("DROP INDEX lockstep.pgqueuer_ep_ea_idx; ALTER TABLE lockstep.pgqueuer DROP COLUMN slot")
    databases = [Database.connect(database_url, pool_size=1) for _ in range(3)]
    await asyncio.gather(*(install(one) for one in databases))
    for one in databases:
        await one.close()
    assert await sql.fetchval("SELECT 'deleted' = ANY(enum_range(NULL::lockstep.pgqueuer_status)::text[])")
    assert await sql.fetchval("SELECT count(slot) FROM lockstep.pgqueuer") == 0
    assert await sql.fetchval("SELECT to_regclass('lockstep.pgqueuer_ep_ea_idx')") is not None
    await migrations._run(database, command.check)  # which leaves them alone
    await migrations.downgrade(database, "base")
    assert await sql.fetch(ENGINE) == []


@pytest.mark.parametrize("worker", ["1", "0"])
async def test_the_service_works_on_its_schedules_itself(
    worker: str, database_url: str, sql: Connection, feed: FeedServer, tmp_path: Path
) -> None:
    """`python app.py` alone syncs what is due, and ends with 0; with WORKER=0 it leaves that to other processes."""
    feed.answers = Answer(body=RECORDS)
    entry = f'[sources.shop]\nurl = "{feed.url}"\nallow_private = true\nevery = "1s"\n'
    (tmp_path / "sources.toml").write_text(entry)
    given = {"DATABASE_URL": database_url, "PORT": str(free_port()), "WORKER": worker}
    service = await asyncio.create_subprocess_exec(
        sys.executable, HOUSE / "app.py", cwd=tmp_path, env={**os.environ, **given}, stderr=asyncio.subprocess.PIPE
    )
    assert service.stderr is not None
    lines = [""]
    while "database_ready" not in lines[-1]:
        lines.append((await service.stderr.readline()).decode())
        assert lines[-1], "the service has ended"
    if worker == "1":
        await until(sql, "SELECT count(*) >= 2 FROM lockstep.runs WHERE finished_at IS NOT NULL", expected=True)
    service.terminate()
    lines += (await service.communicate())[1].decode().splitlines()
    assert service.returncode == 0
    assert any("worker_ready" in line for line in lines) == (worker == "1")


@pytest.mark.usefixtures("own_logging")
def test_a_worker_without_schedules_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no source has a schedule there is nothing to work on, and the command says what to do."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="No source has a schedule"):
        work(load_settings(source_url="http://127.0.0.1:9/"))
