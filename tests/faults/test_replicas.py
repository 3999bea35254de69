"""Several services on one database keep out of each other's way, however many call them at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from store import Database, migrations
from store.runs import select_runs
from tests.faults.processes import call, service_process
from tests.feed_server import FeedServer, Silence
from tests.postgres import connect

RECORDS = [{"id": number, "a": 1} for number in range(200)]
CALLERS = 200
PROMPT_SECONDS = 10.0
POOL = 5

BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep'"

RECORDS_EACH = 200
WARM_RUNS = 30
GROWTH_BYTES = 8 * 2**20


async def replicas(
    stack: AsyncExitStack, count: int, *, feed: FeedServer, database_url: str, home: Path
) -> list[aiohttp.ClientSession]:
    """Start so many services at the same moment; return a client for each once all of them are ready."""
    settings = {"DB_MAX_POOL": str(POOL)}
    started = await asyncio.gather(
        *(
            stack.enter_async_context(
                service_process(
                    source_url=feed.url, database_url=database_url, home=home / str(number), settings=settings
                )
            )
            for number in range(count)
        )
    )
    return [client for _, client in started]


def hold(feed: FeedServer) -> None:
    """Have the source take a request and say nothing until `feed.released` is set."""
    feed.respond(RECORDS, fault=Silence())


async def test_replicas_that_migrate_at_once_all_start(database_url: str, feed: FeedServer, tmp_path: Path) -> None:
    """Three services that find an empty database all come up, and its tables are made once."""
    async with AsyncExitStack() as stack:
        clients = await replicas(stack, 3, feed=feed, database_url=database_url, home=tmp_path)
        for client in clients:
            async with client.get("/health/ready") as response:
                assert response.status == 200
        database = Database.connect(database_url, pool_size=1)
        assert await migrations.current(database) == migrations.head()
        await database.close()


async def test_migrations_wait_for_each_other(database_url: str) -> None:
    """Of several migrations at the same moment one does the work; the others wait, and find nothing to do."""
    databases = [Database.connect(database_url, pool_size=1) for _ in range(4)]
    await asyncio.gather(*(migrations.upgrade(database) for database in databases))
    for database in databases:
        assert await migrations.current(database) == migrations.head()
        await database.close()


async def test_of_two_replicas_one_runs(database_url: str, feed: FeedServer, tmp_path: Path) -> None:
    """While one service runs, the other answers 409 with that run; called at the same moment, one of them runs."""
    async with AsyncExitStack() as stack:
        one, other = await replicas(stack, 2, feed=feed, database_url=database_url, home=tmp_path)
        hold(feed)
        running = asyncio.create_task(call(one))
        await feed.stalled.wait()
        status, busy = await call(other)
        assert (status, busy["status"], busy["code"]) == (409, "busy", "busy")
        feed.released.set()
        _, done = await running
        assert (done["run"], done["created"]) == (busy["run"], len(RECORDS))

        feed.released.clear()
        feed.stalled.clear()
        both = [asyncio.create_task(call(client)) for client in (one, other)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        feed.released.set()
        assert sorted(status for status, _ in await asyncio.gather(*both)) == [200, 409]


async def test_of_many_callers_one_runs(database_url: str, feed: FeedServer, tmp_path: Path) -> None:
    """Of two hundred callers of two services one gets a run, the others an answer at once; no connection is leaked."""
    observer = await connect(database_url)
    async with AsyncExitStack() as stack:
        clients = await replicas(stack, 2, feed=feed, database_url=database_url, home=tmp_path)
        hold(feed)
        began = time.monotonic()
        calls = [asyncio.create_task(call(clients[number % 2])) for number in range(CALLERS)]
        pending = set(calls)
        while len(pending) > 1:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        seconds = time.monotonic() - began
        assert await observer.fetchval(BACKENDS) <= len(clients) * POOL
        feed.released.set()
        answers = await asyncio.gather(*calls)
        assert Counter(status for status, _ in answers) == {200: 1, 409: CALLERS - 1}
        assert len({body["run"] for _, body in answers}) == 1
        assert seconds < PROMPT_SECONDS
        database = Database.connect(database_url, pool_size=1)
        assert len(await select_runs(database)) == 1
        await database.close()
        assert await observer.fetchval(BACKENDS) <= len(clients) * POOL
    await observer.close()


@pytest.mark.parametrize("runs", [60, pytest.param(1000, marks=pytest.mark.soak)])
async def test_memory_stays_flat(database_url: str, feed: FeedServer, tmp_path: Path, runs: int) -> None:
    """However many runs a service has carried out, it holds no more memory and no more connections."""
    versions = [[{"id": number, "a": number * version} for number in range(RECORDS_EACH)] for version in (1, 2)]
    settings = {"LOG_LEVEL": "WARNING"}
    observer = await connect(database_url)
    async with service_process(
        source_url=feed.url, database_url=database_url, home=tmp_path, settings=settings, ready=False
    ) as (running, client):
        await _until_ready(client)
        process = psutil.Process(running.process.pid)

        async def sync_often(times: int) -> tuple[int, Any]:
            for number in range(times):
                feed.respond(versions[number % 2])
                status, body = await call(client)
                assert (status, body["records"]) == (200, RECORDS_EACH)
            return process.memory_info().rss, await observer.fetchval(BACKENDS)

        before, connections = await sync_often(WARM_RUNS)
        after, connections_after = await sync_often(runs)
        assert after - before < GROWTH_BYTES
        assert connections_after <= connections
    await observer.close()


async def _until_ready(client: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with client.get("/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
