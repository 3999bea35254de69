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


@asynccontextmanager
async def postgres_server() -> AsyncIterator[str]:
    """Yield the URL of a running server; nothing of it is left behind."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with temporary_directory() as home:
        server = EmbeddedServer(home)
        try:
            yield await server.start()
        finally:
            await server.stop()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yield a directory that root's substitute user can enter, unlike pytest's own ones; its path is short."""
    with tempfile.TemporaryDirectory(prefix="lockstep-test-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        home.chmod(0o755)
        yield home


@asynccontextmanager
async def fresh_database(server_url: str) -> AsyncIterator[str]:
    """Yield the URL of an empty database, which is dropped afterwards whoever is still connected to it."""
    url = await create_database(server_url)
    try:
        yield url
    finally:
        with suppress(OSError, asyncpg.PostgresConnectionError):  # a test may have killed the server
            await drop_database(url)


async def create_database(server_url: str) -> str:
    """Create an empty database and return its URL."""
    name = f"{PREFIX}{uuid.uuid4().hex}"
    await execute(server_url, f'CREATE DATABASE "{name}" TEMPLATE template0')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(url: str) -> None:
    """Drop the database that `create_database` made, and end all connections to it."""
    name = make_url(url).database
    await execute(make_url(url).set(database="postgres"), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


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
