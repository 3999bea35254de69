"""Whatever runs do straight on a server they do behind a pooler that gives every transaction another connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from definitions import Source
from store import Database, migrations
from store.query import Query
from store.reading import open_snapshot
from sync import sync_data
from tests import test_guard, test_healing, test_plan, test_runs, test_schema, test_sync
from tests.faults.pgbouncer import SERVER_CONNECTIONS, pooler
from tests.feed_server import FeedServer

MANY = 60


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pooler_url(server_url: str) -> AsyncIterator[URL]:
    """Run one pgbouncer for the whole session."""
    async with pooler(server_url) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str, pooler_url: URL) -> AsyncIterator[Database]:
    """Connect by way of pgbouncer, for all tests of this module."""
    pooled = pooler_url.set(database=make_url(database_url).database)
    database = Database.connect(pooled.render_as_string(hide_password=False), pool_size=5)
    yield database
    await database.close()


async def test_the_services_tables_are_made_through_it(empty_database_url: str, pooler_url: URL) -> None:
    """A service that starts behind the pooler makes its tables."""
    pooled = pooler_url.set(database=make_url(empty_database_url).database)
    database = Database.connect(pooled.render_as_string(hide_password=False), pool_size=2)
    await migrations.upgrade(database)
    assert await migrations.current(database) == migrations.head()
    await database.close()


def _tests_of(module: Any) -> dict[str, Any]:
    name = module.__name__.rpartition("_")[2]
    return {
        f"{test}_{name}": value
        for test, value in vars(module).items()
        if test.lower().startswith("test") and getattr(value, "__module__", None) == module.__name__
    }


for _module in (test_sync, test_schema, test_healing, test_guard, test_plan, test_runs):
    globals().update(_tests_of(_module))


REMAINS = sa.text("""
    SELECT pg_backend_pid(),
           (SELECT count(*) FROM pg_prepared_statements)
           + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
           + (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
""")


async def test_nothing_is_left_on_the_poolers_connections(database: Database, feed: FeedServer) -> None:
    """However many runs and callers share them, no prepared statement, lock or table stays on a connection."""
    for version in range(3):
        feed.respond([{"id": number, "version": version} for number in range(50)])
        source = Source(name="test", url=feed.url)
        await asyncio.gather(sync_data(database, source), *(database.ping() for _ in range(MANY)))
    everywhere = asyncio.Barrier(SERVER_CONNECTIONS)
    looks = await asyncio.gather(*(_look(database, everywhere) for _ in range(SERVER_CONNECTIONS)))
    assert len({pid for pid, _ in looks}) == SERVER_CONNECTIONS
    assert [remains for _, remains in looks] == [0] * SERVER_CONNECTIONS


async def test_rows_are_read_by_many(database: Database, feed: FeedServer) -> None:
    """Several who read a table bit by bit on connections that change hands see all of it, and leave nothing behind."""
    feed.respond([{"id": number} for number in range(3_000)])
    source = Source(name="test", url=feed.url)
    await sync_data(database, source)

    async def count() -> int:
        async with open_snapshot(database, source) as snapshot:
            reading = await snapshot.read(Query())
            return sum([len(rows) async for rows in reading.stream(json=True)])

    assert await asyncio.gather(*(count() for _ in range(3 * SERVER_CONNECTIONS))) == [3_000] * 3 * SERVER_CONNECTIONS
    everywhere = asyncio.Barrier(SERVER_CONNECTIONS)
    looks = await asyncio.gather(*(_look(database, everywhere) for _ in range(SERVER_CONNECTIONS)))
    assert [remains for _, remains in looks] == [0] * SERVER_CONNECTIONS


async def _look(database: Database, everywhere: asyncio.Barrier) -> tuple[int, int]:
    """Return which connection of pgbouncer a transaction has, and how much it finds on it."""
    async with database.transaction() as session:
        await everywhere.wait()
        pid, remains = (await session.execute(REMAINS)).one()
    return pid, remains
