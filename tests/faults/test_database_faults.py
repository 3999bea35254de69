"""Whatever happens to the database: nothing is half written, the error names the remedy, and the next run converges."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy.engine import make_url

from app import create_app
from applying import MAX_ATTEMPTS
from config import load_settings
from errors import DatabaseBlocked, DatabaseContended, DatabaseError, DatabaseRefused, DatabaseUnavailable
from store import Database, migrations
from store.runs import reap_stale_runs
from sync import sync_data
from tests.engine import Engine, open_engine
from tests.faults.databases import (
    HALTED_AT,
    fill,
    halted,
    own_server,
    remove_trap,
    role,
    set_trap,
    small_disk,
)
from tests.feed_server import FeedServer
from tests.postgres import connect, execute
from tests.service import served
from web.answers import status_of
from web.service import Service

SNAPSHOT = [{"id": number, "a": 1} for number in range(1, 11)]
CHANGED = [{"id": number, "a": 2} for number in range(1, 11)]

LARGE = [{"id": number, "text": f"{number:01500}"} for number in range(4_000)]

SERVICES_BACKENDS = """SELECT pid FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'lockstep'"""
COUNT_BACKENDS = f"SELECT count(*) FROM ({SERVICES_BACKENDS}) b"


class TestServerThatDies:
    @pytest.mark.parametrize("how", ["immediate shutdown", "killed server", "killed backend"])
    async def test_in_the_middle_of_a_copy(self, feed: FeedServer, how: str) -> None:
        """A load that is cut off in its COPY leaves nothing behind, and succeeds once the server is back."""
        async with own_server(feed) as own:
            engine = own.engine
            await engine.sync(SNAPSHOT)
            await engine.edit("DELETE FROM {table}")
            engine.serve(CHANGED)
            before = await engine.written()
            async with halted(engine) as (run, backend):
                copying = "SELECT query FROM pg_stat_activity JOIN pg_stat_progress_copy USING (pid) WHERE pid = $1"
                assert "my_data" in await engine.sql.fetchval(copying, backend)
                if how == "killed backend":
                    own.signal(signal.SIGKILL, backend=backend)
                else:
                    own.signal(signal.SIGQUIT if how == "immediate shutdown" else signal.SIGKILL)
                await own.come_back()
                with pytest.raises(DatabaseUnavailable):
                    await run
            await remove_trap(engine)
            assert await engine.written() == before
            await engine.sync()
            await engine.check()

    async def test_in_the_middle_of_an_update(self, engine: Engine) -> None:
        """When all backends are terminated, one among its updates, no update stays, and twenty checkouts go well."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        before = await engine.written()
        await _check_out(engine.database, 20)  # so that there are idle connections, too
        async with halted(engine) as (run, _):
            await engine.sql.execute(f"SELECT pg_terminate_backend(pid) FROM ({SERVICES_BACKENDS}) b")
            with pytest.raises(DatabaseUnavailable):
                await run
        assert await engine.written() == before
        await _check_out(engine.database, 20)
        await engine.sync()
        await engine.check()

    async def test_while_nothing_is_under_way(self, engine: Engine) -> None:
        """When the server ends idle connections, nobody who wants one afterwards notices."""
        await _check_out(engine.database, 20)
        await engine.sql.execute(f"SELECT pg_terminate_backend(pid) FROM ({SERVICES_BACKENDS}) b")
        await _check_out(engine.database, 20)
        await engine.sync(SNAPSHOT)
        await engine.check()


async def _check_out(database: Database, times: int) -> None:
    await asyncio.gather(*(database.ping() for _ in range(times)))


class TestContention:
    async def test_a_deadlock_is_tried_again(self, engine: Engine) -> None:
        """A run that PostgreSQL chooses as the victim of a deadlock starts its transaction over, and succeeds."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        await engine.sql.execute("SET deadlock_timeout = '1min'")  # so that it is the run that looks, and gives way
        async with halted(engine) as (run, _):
            # The run waits for the lock that halts it; its holder now waits for rows that the run has written.
            await engine.sql.execute(f"UPDATE {engine.table} SET a = 7 WHERE id <> {HALTED_AT}")
        assert (await run).status == "succeeded"
        await remove_trap(engine)
        await engine.check()

    async def test_a_row_written_meanwhile_is_seen(self, engine: Engine, database_url: str) -> None:
        """A run whose rows another session has changed since it began starts over and journals what it really found."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        async with halted(engine) as (run, _):
            await execute(database_url, f"UPDATE {engine.table} SET a = 7 WHERE id = 10")
        assert (await engine.journal((await run).run))[(10,)].changes == {"a": [7, 2]}
        await remove_trap(engine)
        await engine.check()

    @pytest.mark.parametrize("state", ["40001", "40P01"])
    async def test_attempts_are_bounded(self, engine: Engine, state: str) -> None:
        """Contention that does not end is tried a few times, without another fetch, and then reported."""
        await engine.sync(SNAPSHOT)
        await engine.edit("CREATE SEQUENCE attempts")
        await set_trap(engine, f"PERFORM nextval('attempts'); RAISE 'contended' USING ERRCODE = '{state}';")
        fetches = len(engine.feed.requests)
        with pytest.raises(DatabaseContended) as caught:
            await engine.sync(CHANGED)
        assert status_of(caught.value) == 503
        assert await engine.sql.fetchval("SELECT last_value FROM attempts") == MAX_ATTEMPTS
        assert len(engine.feed.requests) == fetches + 1
        await remove_trap(engine)
        await engine.sync()
        await engine.check()

    async def test_a_lock_held_for_too_long_names_its_holder(self, engine: Engine, database_url: str) -> None:
        """A run that waits for a row longer than the lock timeout fails with 503 and the backend that holds it."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        holder = await connect(database_url)
        impatient = Database.connect(database_url, pool_size=2, lock_timeout_seconds=0.2)
        engine.serve(CHANGED)
        async with holder.transaction():
            await holder.execute(f"SELECT FROM {engine.table} WHERE id = 3 FOR UPDATE")
            with pytest.raises(DatabaseBlocked) as caught:
                await sync_data(impatient, engine.source)
        assert status_of(caught.value) == 503
        assert str(holder.get_server_pid()) in caught.value.cause
        await impatient.close()
        await holder.close()
        assert await engine.written() == before
        await engine.sync()
        await engine.check()


class TestFullDisk:
    async def test_of_the_tables(self, feed: FeedServer) -> None:
        """A run for whose rows there is no space is rolled back at once, says so, and succeeds when there is some."""
        with small_disk(48) as disk:
            async with own_server(feed) as own:
                url = await _database_on(own.url, own.server.data_directory, disk)
                database = Database.connect(url, pool_size=2)
                await migrations.upgrade(database)
                async with open_engine(database, url, feed) as engine:
                    await engine.sync(SNAPSHOT)
                    ballast, fetches = fill(disk, leaving_bytes=500_000), len(feed.requests)
                    with pytest.raises(DatabaseRefused, match="Free some space") as caught:
                        await engine.sync(LARGE)
                    assert (status_of(caught.value), len(feed.requests)) == (503, fetches + 1)
                    ballast.unlink()
                    await engine.sync()
                    await engine.check()
                await database.close()

    async def test_of_the_whole_server(self, feed: FeedServer) -> None:
        """Where not even the server's log of its writes fits, the run fails; with space, all of it recovers."""
        with small_disk(120) as disk:
            async with own_server(feed, home=disk) as own:
                engine = own.engine
                await engine.sync(SNAPSHOT)
                before = await engine.written()
                ballast = fill(disk, leaving_bytes=1_000_000)
                engine.serve(LARGE)
                with pytest.raises(DatabaseError):
                    await engine.sync_unaccounted()
                ballast.unlink()
                await own.server.start()
                await engine.sql.close()
                engine.sql = await connect(own.url)
                assert await engine.written() == before
                await engine.sync(CHANGED)
                await engine.check()


async def _database_on(url: str, cluster: Path, disk: Path) -> str:
    """Make a database whose tables lie on a disk; return its URL."""
    place = disk / "tables"
    place.mkdir(mode=0o700)
    shutil.chown(place, cluster.owner())
    await execute(url, f"CREATE TABLESPACE small LOCATION '{place}'")
    await execute(url, "CREATE DATABASE small TEMPLATE template0 TABLESPACE small")
    return make_url(url).set(database="small").render_as_string(hide_password=False)


class TestRefusals:
    async def test_a_read_only_server(self, engine: Engine, database_url: str) -> None:
        """A server that takes no writes is named as such, by a run and by whoever cleans up at the start."""
        await engine.sync(SNAPSHOT)
        name = make_url(database_url).database
        await execute(database_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        database = Database.connect(database_url, pool_size=1)
        for attempt in (sync_data(database, engine.source), reap_stale_runs(database)):
            with pytest.raises(DatabaseRefused, match=r"read-only.*primary") as caught:
                await attempt
            assert status_of(caught.value) == 503
        await database.close()

    async def test_a_missing_right(self, engine: Engine, database_url: str) -> None:
        """A run without the right to write to the mirror fails, and names the table."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        before = await engine.written()
        async with role(database_url) as url:
            who = make_url(url).username
            await engine.edit(
                f"GRANT ALL ON SCHEMA lockstep TO {who}",
                f"GRANT ALL ON ALL TABLES IN SCHEMA lockstep TO {who}",
                f"GRANT SELECT ON {{table}} TO {who}",
            )
            database = Database.connect(url, pool_size=2)
            with pytest.raises(DatabaseRefused, match="permission denied for table my_data") as caught:
                await sync_data(database, engine.source)
            assert "Grant" in caught.value.remedy
            await database.close()
        assert await engine.written() == before

    async def test_a_limit_on_connections(self, database_url: str) -> None:
        """A connection that the server refuses because there are too many is answered with the limit and the remedy."""
        async with role(database_url, "CONNECTION LIMIT 1") as url:
            database = Database.connect(url, pool_size=2)
            async with database.transaction():
                with pytest.raises(DatabaseRefused, match=r"too many connections for role.*DB_MAX_POOL"):
                    await database.ping()
            await database.ping()
            await database.close()

    async def test_a_statement_that_takes_too_long(self, engine: Engine, database_url: str) -> None:
        """A statement over its time limit is rolled back, and its connection is used again."""
        await engine.sync(SNAPSHOT)
        await set_trap(engine, "PERFORM pg_sleep(60);")
        before = await engine.written()
        database = Database.connect(database_url, pool_size=1, statement_timeout_seconds=0.5)
        engine.serve(CHANGED)
        with pytest.raises(DatabaseRefused, match="DB_STATEMENT_TIMEOUT_SECONDS"):
            await sync_data(database, engine.source)
        assert await engine.written() == before
        await remove_trap(engine)
        assert (await sync_data(database, engine.source)).counts.updated == len(CHANGED)
        assert await engine.sql.fetchval(COUNT_BACKENDS) <= 1 + 1  # this database's, and the engine's
        await database.close()
        await engine.check()


class TestTablesThatAreAltered:
    @pytest.mark.parametrize("moment", ["between runs", "in a run"])
    @pytest.mark.parametrize(
        "statement",
        [
            "ALTER TABLE {table} DROP COLUMN a",
            "ALTER TABLE {table} ALTER COLUMN a TYPE text",
            "ALTER TABLE {table} RENAME COLUMN a TO b",
            "ALTER TABLE {table} ADD COLUMN b text",
            "DROP TABLE {table}",
        ],
    )
    async def test_under_a_pooled_connection(self, engine: Engine, statement: str, moment: str) -> None:
        """Whatever is done to the table while connections are open, the next run, or this one, brings it in step."""
        await engine.sync(SNAPSHOT)
        # Whoever alters a column has to remove what names it first.
        await engine.edit("DROP VIEW my_data_live", "DROP TRIGGER lockstep_forget ON {table}")
        if moment == "between runs":
            await engine.edit(statement)
            engine.serve(CHANGED)
            await engine.sync_unaccounted()
        else:
            async with engine.syncing(CHANGED) as run:
                await engine.edit(statement)
            await run
        rows = await engine.sql.fetch(f"SELECT id, a::text FROM {engine.table} WHERE _sync_deleted_at IS NULL")
        assert sorted(map(tuple, rows)) == [(record["id"], "2") for record in CHANGED]
        assert (await engine.sync_unaccounted()).status == "unchanged"


async def test_cancelled_requests_leave_no_connection_behind(
    database_url: str, feed: FeedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a thousand callers that hung up at any moment, the pool has all its connections back, and has no others."""
    monkeypatch.chdir(tmp_path)
    feed.respond(SNAPSHOT)
    pool_size, chance = 4, random.Random(5)
    given = {"source_url": feed.url, "database_url": database_url, "settle_seconds": 0, "db_max_pool": pool_size}
    app = create_app(load_settings(**given))
    service: Service = app.extensions["lockstep"]
    observer = await connect(database_url)
    async with served(app) as client:
        for _ in range(20):
            await asyncio.gather(*(_hang_up(client, chance) for _ in range(50)))
            assert await observer.fetchval(COUNT_BACKENDS) <= pool_size
        async with client.get("/runs") as response:
            assert response.status == 200
        async with asyncio.timeout(20):
            while service.database.engine.pool.checkedout():  # type: ignore[attr-defined] # a pool of connections has it
                await service.database.ping()
        for _ in range(20):
            await service.database.ping()
    await observer.close()


async def _hang_up(client: aiohttp.ClientSession, chance: random.Random) -> None:
    path = chance.choice(["/runs", "/changes", "/health/ready", "/sync_data"])
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.uniform(0.001, 0.1)), client.get(path) as response:
            await response.read()
