"""What the tests of a failing database share: a server of their own, and ways to halt a run where it hurts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from models import Report
from store import Database, migrations, postmaster
from store.embedded import EmbeddedServer
from tests.engine import Engine, open_engine
from tests.feed_server import FeedServer
from tests.postgres import connect, execute, temporary_directory

HALTED_AT = 5
"""The row at which a halted run stands."""
HALT = 0x4A17
"""Key of the advisory lock that halts it."""

BLOCKED = """SELECT pid FROM pg_stat_activity
              WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""


async def set_trap(engine: Engine, body: str) -> None:
    """Have the mirror's table do `body` whenever a row is about to be written; `NEW` is the row."""
    await engine.edit(
        f"CREATE OR REPLACE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$",
        "CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION trap()",
    )


async def remove_trap(engine: Engine) -> None:
    """Undo `set_trap`."""
    await engine.edit("DROP TRIGGER trap ON {table}")


@asynccontextmanager
async def halted(engine: Engine) -> AsyncIterator[tuple[asyncio.Task[Report], int]]:
    """Start a run and halt it in the middle of its writing; yield it and its backend. It goes on at the block's end.

    The trap stays set; without the lock it lets everything pass.
    """
    await set_trap(engine, f"IF NEW.id = {HALTED_AT} THEN PERFORM pg_advisory_xact_lock({HALT}); END IF;")
    await engine.sql.execute(f"SELECT pg_advisory_lock({HALT})")
    run = asyncio.create_task(engine.sync_unaccounted())
    try:
        yield run, await blocked_backend(engine, run)
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # its server may be gone
            await engine.sql.execute(f"SELECT pg_advisory_unlock({HALT})")
        await asyncio.wait([run])


async def blocked_backend(engine: Engine, run: asyncio.Task[Report]) -> int:
    """Wait until a backend waits for another one, and return it."""
    async with asyncio.timeout(20):
        while (pid := await engine.sql.fetchval(BLOCKED)) is None:
            assert not run.done(), f"the run has ended: {run}"
    return int(pid)


@dataclass(kw_only=True)
class OwnServer:
    """A server that a test may stop, kill and fill as it likes, with an engine on it."""

    server: EmbeddedServer
    engine: Engine
    url: str

    def signal(self, number: signal.Signals, *, backend: int | None = None) -> None:
        """Send a signal to the server, or to one of its backends."""
        process = postmaster.find(self.server.data_directory)
        assert process
        os.kill(backend or process.pid, number)

    async def come_back(self) -> None:
        """Wait until the server is gone or has restarted, start it if need be, and look at it anew."""
        gone = asyncio.Event()
        self.engine.sql.add_termination_listener(lambda _: gone.set())
        if not self.engine.sql.is_closed():
            async with asyncio.timeout(60):
                await gone.wait()
        await self.server.start()
        async with asyncio.timeout(60):
            while self.engine.sql.is_closed():
                with suppress(asyncpg.PostgresError, OSError):
                    self.engine.sql = await connect(self.url)
                    await self.engine.sql.execute("SET TimeZone = 'UTC'")


@asynccontextmanager
async def own_server(feed: FeedServer, *, home: Path | None = None) -> AsyncIterator[OwnServer]:
    """Start a server for one test, in `home` if that is given."""
    with temporary_directory() as usual_home:
        server = EmbeddedServer(home or usual_home)
        url = await server.start()
        database = Database.connect(url, pool_size=5)
        try:
            await migrations.upgrade(database)
            async with open_engine(database, url, feed) as engine:
                own = OwnServer(server=server, engine=engine, url=url)
                yield own
                await own.engine.sql.close()
        finally:
            await database.close()
            await server.stop()


@contextmanager
def small_disk(size_mb: int) -> Iterator[Path]:
    """Mount a file system of a few megabytes; skip the test where that is not permitted."""
    mount = shutil.which("mount", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount the small file system that this test fills")
    with temporary_directory() as home:
        place = home / "disk"
        place.mkdir()
        options = f"size={size_mb}m,mode=0755"
        mounted = subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, *, leaving_bytes: int) -> Path:
    """Fill a disk but for a few bytes; return the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(disk)
        file.write(b"x" * max(free.f_bavail * free.f_frsize - leaving_bytes, 0))
    return ballast


@asynccontextmanager
async def role(database_url: str, rights: str = "") -> AsyncIterator[str]:
    """Make a user with few rights; yield the database's URL with its name in it."""
    name = f"lockstep_test_{uuid4().hex[:8]}"
    await execute(database_url, f"CREATE ROLE {name} LOGIN PASSWORD 'test' {rights}")
    try:
        yield make_url(database_url).set(username=name, password="test").render_as_string(hide_password=False)  # noqa: S106
    finally:
        await execute(database_url, f"DROP OWNED BY {name}")
        await execute(database_url, f"DROP ROLE {name}")
