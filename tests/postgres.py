"""PostgreSQL for the tests: one server for a whole run, a fresh database for each test.

The server is an embedded one (each worker of pytest-xdist has its own). Set `TEST_DATABASE_URL`
(`postgresql+asyncpg://…`, a user who may create databases) to run against another server.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL, make_url

from store.embedded import EmbeddedServer

PREFIX = "lockstep_test_"
EMPTY = "template0"
LEFT_AT_ONCE = 2
CLOSE_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"


@asynccontextmanager
async def postgres_server() -> AsyncIterator[str]:
    """Yield the URL of a running server; nothing of it is left behind."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with temporary_directory() as home:
        server = EmbeddedServer(home)
        try:
            url = await server.start()
            await _sync_nothing(url)
            yield url
        finally:
            await server.stop()


async def _sync_nothing(server_url: str) -> None:
    """Have the server leave it to the system when files reach the disk: half of all time would go by waiting for it.

    Tests of crashes and of full disks start servers of their own.
    """
    for setting in ("fsync", "full_page_writes"):
        await execute(server_url, f"ALTER SYSTEM SET {setting} = off")
    await execute(server_url, "SELECT pg_reload_conf()")


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yield a directory that root's substitute user can enter, unlike pytest's own ones; its path is short."""
    with tempfile.TemporaryDirectory(prefix="lockstep-test-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        home.chmod(0o755)
        yield home


@asynccontextmanager
async def fresh_database(server_url: str, *, template: str = EMPTY) -> AsyncIterator[str]:
    """Yield the URL of a new database, which is dropped later on whoever is still connected to it."""
    url = await create_database(server_url, template=template)
    try:
        yield url
    finally:
        with suppress(OSError, asyncpg.PostgresConnectionError):  # a test may have killed the server
            await _leave(url)


_left: list[str] = []
"""Databases that nobody uses any more."""


async def _leave(url: str) -> None:
    """Drop a database that was left before, whose connections have ended by now: dropping would wait for that."""
    _left.append(url)
    await _execute_beside(url, CLOSE_CONNECTIONS)
    while len(_left) > LEFT_AT_ONCE:
        await drop_database(_left.pop(0))


async def drop_left() -> None:
    """Drop the databases that tests have left."""
    while _left:
        with suppress(OSError, asyncpg.PostgresConnectionError):
            await drop_database(_left.pop())


async def create_database(server_url: str, *, template: str = EMPTY) -> str:
    """Create a database, a copy of `template`, and return its URL."""
    name = f"{PREFIX}{uuid.uuid4().hex}"
    # Where nothing is synced, copying files is faster than logging every page of them.
    await execute(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(url: str) -> None:
    """Drop the database that `create_database` made, and end all connections to it."""
    await _execute_beside(url, 'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def _execute_beside(url: str, statement: str) -> None:
    """Run a statement about a database, whose `{name}` it may use, on a connection to another one."""
    name = make_url(url).database
    await execute(make_url(url).set(database="postgres"), statement.replace("{name}", str(name)))


async def execute(url: str | URL, statement: str) -> None:
    """Run one statement on a connection of its own, outside of a transaction."""
    connection = await connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def connect(url: str | URL) -> asyncpg.Connection[asyncpg.Record]:
    """Open a plain asyncpg connection to a SQLAlchemy URL."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(plain)
    return connection
