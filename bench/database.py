"""The PostgreSQL that a bench runs against: its own, with default settings, or one that is given."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL, make_url

from store.embedded import EmbeddedServer

SETTINGS_SHOWN = ("shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "wal_level", "data_checksums")
"""Settings that move the figures; they are shown above the table."""

WAL_QUIET_SECONDS = 0.2
WAL_POLLS = 100


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database of the server under test."""

    url: URL

    @property
    def name(self) -> str:
        return self.url.database or ""

    def address(self, driver: str = "postgresql") -> str:
        """Return the connection URL for a client of `driver`."""
        return self.url.set(drivername=driver).render_as_string(hide_password=False)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.address())
        try:
            yield connection
        finally:
            await connection.close()

    def beside(self, name: str) -> Database:
        return Database(url=self.url.set(database=name))

    @asynccontextmanager
    async def scratch(self, name: str) -> AsyncIterator[Database]:
        """Make an empty database for the length of the block."""
        async with self.connect() as connection:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            await connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield self.beside(name)
        finally:
            async with self.connect() as connection:
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def settle(self, *, vacuum: bool = False) -> None:
        """Flush what earlier measurements left behind, so that they do not burden the next one."""
        async with self.connect() as connection:
            if vacuum:
                await connection.execute("VACUUM (ANALYZE)")
            await connection.execute("CHECKPOINT")

    async def wal_position(self) -> int:
        """Return how many bytes of write-ahead log were ever written, once writing has come to rest."""
        async with self.connect() as connection:
            position = await select_wal_position(connection)
            for _ in range(WAL_POLLS):
                await asyncio.sleep(WAL_QUIET_SECONDS)
                previous, position = position, await select_wal_position(connection)
                if position == previous:
                    break
            return position

    async def next_transaction(self) -> int:
        async with self.connect() as connection:
            return int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))

    async def rows_written_since(self, table: str, transaction: int) -> int:
        """Count the rows that transactions from `transaction` on wrote, deleted or locked."""
        statement = f'SELECT count(*) FROM "{table}" WHERE xmin::text::bigint >= $1 OR xmax::text::bigint >= $1'  # noqa: S608 - our own table
        async with self.connect() as connection:
            return int(await connection.fetchval(statement, transaction))

    async def describe(self) -> str:
        """Return the version and the settings that move the figures, as one line."""
        async with self.connect() as connection:
            version = await connection.fetchval("SHOW server_version")
            values = [f"{name} {await connection.fetchval(f'SHOW {name}')}" for name in SETTINGS_SHOWN]
        return f"PostgreSQL {version}: {', '.join(values)}"


async def select_wal_position(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"))


@asynccontextmanager
async def database_under_test(url: str | None) -> AsyncIterator[Database]:
    """Yield the database behind `url`, or one of a server started for the length of the block."""
    if url is not None:
        yield Database(url=make_url(url))
        return
    with enterable_directory() as directory:
        server = EmbeddedServer(directory)
        try:
            await server.start()
            await restore_default_settings(server)
            yield Database(url=make_url(await server.start()))
        finally:
            await server.stop()


@contextmanager
def enterable_directory() -> Iterator[Path]:
    """Make a directory that others may enter: started by root, the server runs as another user."""
    with tempfile.TemporaryDirectory(prefix="bench-postgres-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


async def restore_default_settings(server: EmbeddedServer) -> None:
    """Undo the tuning that the embedded server starts with, so that the figures are those of any PostgreSQL."""
    (server.data_directory / "tuning.conf").write_text("")
    await server.stop()
