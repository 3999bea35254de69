"""What the database refuses: every refusal becomes one of our errors, names its remedy, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy.engine import make_url

from errors import DatabaseBlocked, DatabaseContended, DatabaseRefused, DatabaseUnavailable
from models import Counts
from store import Database
from store.database import driver_connection
from sync import sync_data
from tests.engine import Engine
from tests.postgres import connect

SNAPSHOT = [{"id": number, "a": 1} for number in range(1, 11)]
CHANGED = [{"id": number, "a": 2} for number in range(1, 11)]


@asynccontextmanager
async def impatient(
    url: str, *, lock_timeout_seconds: float = 10, statement_timeout_seconds: float = 0
) -> AsyncIterator[Database]:
    """Connect with other timeouts."""
    database = Database.connect(
        url, pool_size=2, lock_timeout_seconds=lock_timeout_seconds, statement_timeout_seconds=statement_timeout_seconds
    )
    yield database
    await database.close()


class TestLocks:
    @pytest.mark.parametrize("lock", ["SELECT FROM {table} WHERE id = 3 FOR UPDATE", "LOCK {table} IN SHARE MODE"])
    async def test_whoever_holds_a_lock_is_named(self, engine: Engine, database_url: str, lock: str) -> None:
        """A lock that is held for too long ends the run, which names the backend that holds it."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        before = await engine.written()
        async with impatient(database_url, lock_timeout_seconds=0.2) as database, engine.sql.transaction():
            await engine.edit(lock)
            with pytest.raises(DatabaseBlocked, match=rf"Backend {engine.sql.get_server_pid()} holds a lock"):
                await sync_data(database, engine.source)
        assert await engine.written() == before
        await engine.sync()
        await engine.check()

    async def test_a_run_tries_again_when_another_session_wrote(self, engine: Engine, database_url: str) -> None:
        """A run whose rows were changed under it (SQLSTATE 40001) starts its transaction over, and comes out right."""
        await engine.sync(SNAPSHOT)
        engine.serve(CHANGED)
        blocker = await connect(database_url)
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute(f"UPDATE {engine.table} SET a = 99 WHERE id = 3")
        run = asyncio.create_task(engine.sync_unaccounted())
        query = """SELECT pid FROM pg_stat_activity
                   WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
        while await engine.sql.fetchval(query) is None:
            pass
        await transaction.commit()
        await blocker.close()
        assert (await run).counts == Counts(records=10, updated=10)
        await engine.check()

    async def test_a_run_does_not_try_again_for_ever(self, engine: Engine) -> None:
        """A transaction that fails again and again is given up."""
        await engine.sync(SNAPSHOT)
        await engine.edit(
            "CREATE SEQUENCE tries",
            "CREATE FUNCTION contend() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM nextval('tries'); RAISE EXCEPTION 'contended' USING ERRCODE = '40P01'; END $$",
            "CREATE TRIGGER contend BEFORE UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION contend()",
        )
        with pytest.raises(DatabaseContended):
            await engine.sync(CHANGED)
        assert await engine.sql.fetchval("SELECT last_value FROM tries") == 5


class TestRefusals:
    async def test_a_statement_that_takes_too_long(self, engine: Engine, database_url: str) -> None:
        """A statement timeout rolls the run back, names its setting, and leaves the connection usable."""
        await engine.sync(SNAPSHOT)
        await engine.edit(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); END $$",
            "CREATE TRIGGER dawdle BEFORE UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
        )
        engine.serve(CHANGED)
        before = await engine.written()
        async with impatient(database_url, statement_timeout_seconds=0.5) as database:
            with pytest.raises(DatabaseRefused, match="DB_STATEMENT_TIMEOUT_SECONDS"):
                await sync_data(database, engine.source)
            assert await engine.written() == before
            await engine.edit("DROP TRIGGER dawdle ON {table}")
            assert (await sync_data(database, engine.source)).counts.updated == 10
        await engine.check()

    async def test_a_constraint_of_the_users(self, engine: Engine) -> None:
        """A row that breaks the user's own constraint fails the run, which names the constraint."""
        await engine.edit("CREATE TABLE {table} (id bigint PRIMARY KEY, a bigint CONSTRAINT my_own_rule UNIQUE)")
        await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 2}])
        with pytest.raises(DatabaseRefused, match="my_own_rule"):
            await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 2}, {"id": 3, "a": 2}])

    async def test_a_required_column_of_the_users(self, engine: Engine) -> None:
        """A user's column that must not be null fails the run where the source has no value, and is named."""
        await engine.edit("CREATE TABLE {table} (id bigint PRIMARY KEY, a bigint NOT NULL, own text NOT NULL)")
        with pytest.raises(DatabaseRefused, match="own"):
            await engine.sync([{"id": 1, "a": 1}])

    async def test_missing_rights(self, engine: Engine, database_url: str) -> None:
        """A user without the right to write is refused, and the table is named."""
        await engine.sync(SNAPSHOT)
        role = "lockstep_test_reader"
        await engine.edit(
            f"DROP ROLE IF EXISTS {role}",
            f"CREATE ROLE {role} LOGIN PASSWORD '{role}'",
            f"GRANT ALL ON SCHEMA lockstep TO {role}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA lockstep TO {role}",
            f"GRANT SELECT ON {{table}} TO {role}",
        )
        before = await engine.written()
        engine.serve(CHANGED)
        url = make_url(database_url).set(username=role, password=role).render_as_string(hide_password=False)
        try:
            async with impatient(url) as database:
                with pytest.raises(DatabaseRefused, match="permission denied for table my_data"):
                    await sync_data(database, engine.source)
            assert await engine.written() == before
        finally:
            await engine.edit(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def test_a_read_only_server(self, engine: Engine) -> None:
        """A standby is recognised, and the remedy is to name the primary."""
        name = engine.database.engine.url.database
        await engine.edit(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await engine.database.close()
        engine.serve(SNAPSHOT)
        with pytest.raises(DatabaseRefused, match="Point the service at the primary server"):
            await engine.sync_unaccounted()


class TestUnavailable:
    @pytest.mark.parametrize(
        ("change", "cause"),
        [
            ({"database": "not_there"}, "does not exist"),
            ({"username": "nobody_here"}, "nobody_here"),
            ({"host": "127.0.0.1", "port": 1, "query": {}}, "not available"),
            ({"host": "name.invalid", "query": {}}, "not available"),
        ],
        ids=["database", "user", "port", "host"],
    )
    async def test_a_database_that_cannot_be_reached(
        self, database_url: str, change: dict[str, object], cause: str
    ) -> None:
        """Whatever keeps the service from its database is told as that."""
        url = make_url(database_url).set(**change)  # type: ignore[arg-type] # any part of a URL
        async with impatient(url.render_as_string(hide_password=False)) as database:
            with pytest.raises(DatabaseUnavailable, match=cause):
                await database.ping()

    async def test_no_connection_left(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """When all connections are in use for too long, the setting that limits them is named."""
        monkeypatch.setattr("store.database.CONNECT_TIMEOUT_SECONDS", 0.1)
        async with impatient(database_url) as database, database.transaction(), database.transaction():
            with pytest.raises(DatabaseUnavailable, match="DB_MAX_POOL"):
                await database.ping()


class TestSessions:
    async def test_settings_do_not_outlive_their_transaction(self, database: Database) -> None:
        """A connection goes back to the pool as it came, so that a pooler can stand before the server."""
        async with database.transaction(run=7) as session:
            first = await session.connection()
            assert (await first.exec_driver_sql("SELECT current_setting('lockstep.run')")).scalar() == "7"
        async with database.engine.connect() as plain:
            values = (
                await plain.exec_driver_sql(
                    "SELECT current_setting('lockstep.run', true), current_setting('lock_timeout')"
                )
            ).one()
        assert tuple(values) == ("", "0")

    async def test_an_error_rolls_everything_back(self, database: Database, database_url: str) -> None:
        """What a transaction wrote before an error, COPY included, is not there afterwards."""
        async with database.transaction() as session:
            await (await session.connection()).exec_driver_sql("CREATE TABLE copied (n int)")
        with suppress(RuntimeError):
            async with database.transaction() as session:
                driver = await driver_connection(session)
                await driver.copy_records_to_table("copied", records=[(1,), (2,)])
                raise RuntimeError
        reader = await connect(database_url)
        assert await reader.fetchval("SELECT count(*) FROM copied") == 0
        await reader.close()

    async def test_an_unchanged_run_costs_next_to_no_log(self, engine: Engine) -> None:
        """A run that finds nothing writes its own row to the write-ahead log, and little else."""
        await engine.sync([{"id": number, "a": "x" * 100} for number in range(3000)])
        await engine.sync()
        start = await engine.sql.fetchval("SELECT pg_current_wal_insert_lsn()")
        await engine.sync_unaccounted()
        assert await engine.sql.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", start) < 100_000
