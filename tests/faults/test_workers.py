"""Workers in processes of their own, on one database: killed, stopped, and behind a pooler."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from store import Database, migrations
from store.job_engine import install
from tests.faults.pgbouncer import pooler
from tests.feed_server import Answer, FeedServer, Request, Silence
from tests.postgres import connect
from tests.working import Connection, all_due, source, until, working

HOUSE = Path(__file__).parents[2]
NUMBERS, FEW = range(1, 25), range(1, 8)
SLOW = "s7"

JOBS = "SELECT count(*) FROM lockstep.pgqueuer"
SCHEDULES = "SELECT count(*) FROM lockstep.schedules"
HOLDER = """
    SELECT CASE WHEN count(*) = 1 THEN min(split_part(owner, '/', 3))::int END
      FROM lockstep.runs WHERE source = 's7' AND status = 'running'
"""
"""The process that runs the slow source."""

StartWorker = Callable[[range], Awaitable[asyncio.subprocess.Process]]


@pytest_asyncio.fixture
async def sql(database: Database, database_url: str) -> AsyncIterator[Connection]:
    """Connect to a database that has the job engine's tables, for as long as nobody else has anything to do there."""
    await install(database)
    connection = await connect(database_url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def start_worker(feed: FeedServer, database_url: str, tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Give a way to start `python cli.py worker` on sources; whatever still runs at the end is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def start(numbers: range) -> asyncio.subprocess.Process:
        entries = [
            f'[sources.s{number}]\nurl = "{feed.url}?n={number}"\nallow_private = true\nevery = "1h"\n'
            for number in numbers
        ]
        (tmp_path / "sources.toml").write_text("\n".join(entries))
        given = {"DATABASE_URL": database_url, "WORKER_HEARTBEAT_SECONDS": "1", "WORKER_STOP_SECONDS": "0.1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, HOUSE / "cli.py", "worker", cwd=tmp_path, env={**os.environ, **given},
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


def answer(request: Request) -> Answer:
    """Serve two records of its own to each source, and keep the slow one waiting until the feed is released."""
    number = request.query["n"][0]
    body = f'[{{"id": {number}}}, {{"id": {number}00}}]'.encode()
    return Answer(body=body, fault=Silence() if f"s{number}" == SLOW else None)


async def holder(sql: Connection, *others: int) -> int:
    """Wait until a worker runs the slow source that is none of the others; return its process."""
    for _ in range(2_000):
        pid = await sql.fetchval(HOLDER)
        if pid is not None and pid not in others:
            return int(pid)
        await asyncio.sleep(0.02)
    pytest.fail("nobody took the slow source's job")


async def check(sql: Connection) -> None:
    """Assert that every mirror holds its source's records, each written once."""
    for number in NUMBERS:
        rows = await sql.fetch(f"SELECT id, _sync_created_at = _sync_updated_at FROM s{number} ORDER BY id")
        assert [tuple(row) for row in rows] == sorted({(number, True), (number * 100, True)})
    doubled = "SELECT count(*) FROM (SELECT source FROM lockstep.runs WHERE created > 0 GROUP BY 1 HAVING count(*) > 1)"
    assert await sql.fetchval(f"{doubled} twice") == 0
    assert await sql.fetchval("SELECT count(*) FROM lockstep.job_starts") == 0


async def test_a_killed_workers_jobs_are_done_by_others(
    start_worker: StartWorker, sql: Connection, feed: FeedServer
) -> None:
    """The job of a worker that is killed is done elsewhere within the heartbeat, and once; SIGTERM hands it back."""
    feed.answers = answer
    workers = [await start_worker(NUMBERS), await start_worker(NUMBERS)]
    await until(sql, SCHEDULES, len(NUMBERS))
    await all_due(sql)
    killed = await holder(sql)
    os.kill(killed, signal.SIGKILL)
    await holder(sql, killed)
    feed.released.set()
    await until(sql, JOBS, 0)
    await check(sql)
    feed.released.clear()
    await sql.execute(f"UPDATE lockstep.schedules SET due = now() WHERE source = '{SLOW}'")
    await holder(sql)
    (left,) = [worker for worker in workers if worker.pid != killed]
    left.terminate()
    assert await left.wait() == 0
    told = "SELECT string_agg(status, ',' ORDER BY id) FROM lockstep.runs WHERE source = 's7'"
    assert await sql.fetchval(told) == "interrupted,succeeded,interrupted"
    assert await sql.fetchval("SELECT status::text FROM lockstep.pgqueuer") == "queued"


async def test_a_job_that_kills_its_workers_is_parked(
    start_worker: StartWorker, sql: Connection, feed: FeedServer, tmp_path: Path
) -> None:
    """A job that has killed three workers is parked and not run again; nothing else is parked."""
    feed.answers = answer
    for _ in range(4):
        await start_worker(FEW)
    await until(sql, SCHEDULES, len(FEW))
    await all_due(sql)
    killed: list[int] = []
    for _ in range(3):
        killed.append(await holder(sql, *killed))
        os.kill(killed[-1], signal.SIGKILL)
    await until(sql, "SELECT string_agg(source, ',') FROM lockstep.parked", SLOW)
    feed.released.set()
    await until(sql, JOBS, 0)
    assert "source_parked" in (tmp_path / "app.log").read_text()
    await all_due(sql)
    await until(sql, "SELECT count(DISTINCT source) FROM lockstep.runs WHERE status = 'unchanged'", len(FEW) - 1)
    told = "SELECT string_agg(status, ',') FROM lockstep.runs WHERE source = 's7'"
    assert await sql.fetchval(told) == "interrupted,interrupted,interrupted"


async def test_workers_work_behind_a_pooler(server_url: str, database_url: str, feed: FeedServer) -> None:
    """Behind pgbouncer in transaction mode, ticks become jobs and jobs become runs all the same."""
    feed.answers = Answer(body=b'[{"id": 1}]')
    async with pooler(server_url) as url:
        pooled = url.set(database=make_url(database_url).database)
        database = Database.connect(pooled.render_as_string(hide_password=False), pool_size=4)
        await migrations.upgrade(database)
        sources = [source(f"s{number}", feed.url) for number in NUMBERS]
        sql = await connect(database_url)
        async with working(database, *sources):
            await until(
                sql, f"SELECT to_regclass('lockstep.pgqueuer') IS NOT NULL AND ({SCHEDULES}) = {len(NUMBERS)}", True
            )
            await all_due(sql)
            await until(sql, "SELECT count(*) FROM lockstep.runs WHERE status = 'succeeded'", len(NUMBERS))
            await until(sql, JOBS, 0)
        await sql.close()
