"""Migrations of the service's own tables: up, down, at once from two replicas, and in step with the models."""

from __future__ import annotations

import asyncio

from alembic import command

from store import Database, migrations
from tests.engine import Engine
from tests.postgres import connect

OBJECTS = """
    SELECT 'table', c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace('lockstep')
    UNION ALL SELECT 'function', p.proname FROM pg_proc p WHERE p.pronamespace = to_regnamespace('lockstep')
     ORDER BY 1, 2
"""


async def objects(url: str) -> list[tuple[str, str]]:
    """Return everything that the migrations made."""
    sql = await connect(url)
    try:
        return [(row[0], row[1]) for row in await sql.fetch(OBJECTS)]
    finally:
        await sql.close()


async def test_the_models_are_what_the_migrations_made(database: Database) -> None:
    """Autogenerate finds nothing to do, columns, types, defaults and indexes included."""
    await migrations._run(database, command.check)


async def test_down_and_up_again(database: Database, database_url: str) -> None:
    """Going back to nothing leaves nothing, and coming back leaves the same as before."""
    before = await objects(database_url)
    await migrations.downgrade(database, "base")
    assert await migrations.current(database) is None
    assert [name for _, name in await objects(database_url)] == ["alembic_version", "alembic_version_pkc"]
    await migrations.upgrade(database)
    assert await objects(database_url) == before
    assert await migrations.current(database) == migrations.head()


async def test_each_step_can_be_taken_back(database: Database, database_url: str) -> None:
    """Every revision can be left for the one before it, and taken again."""
    before = await objects(database_url)
    while await migrations.current(database) is not None:
        await migrations.downgrade(database, "-1")
        below = await migrations.current(database)
        await migrations.upgrade(database)
        assert await objects(database_url) == before
        await migrations.downgrade(database, below or "base")


async def test_an_upgrade_that_is_done_does_nothing(database: Database, database_url: str) -> None:
    """A second start finds nothing to do."""
    before = await objects(database_url)
    await migrations.upgrade(database)
    assert await objects(database_url) == before


async def test_replicas_may_migrate_at_once(empty_database_url: str) -> None:
    """Of replicas that start together, one migrates; the others wait, and all can go on."""
    replicas = [Database.connect(empty_database_url, pool_size=1) for _ in range(4)]
    await asyncio.gather(*(migrations.upgrade(replica) for replica in replicas))
    assert {await migrations.current(replica) for replica in replicas} == {migrations.head()}
    for replica in replicas:
        await replica.close()


async def test_there_is_no_revision_before_the_first_migration(empty_database_url: str) -> None:
    """An empty database has no revision, and saying so makes nothing in it."""
    database = Database.connect(empty_database_url, pool_size=1)
    assert await migrations.current(database) is None
    await database.close()
    assert await objects(empty_database_url) == []


async def test_a_failed_upgrade_leaves_nothing(empty_database_url: str) -> None:
    """Migrations are one transaction: where one statement fails, none has happened."""
    sql = await connect(empty_database_url)
    await sql.execute("CREATE SCHEMA lockstep; CREATE TABLE lockstep.runs (id int)")
    database = Database.connect(empty_database_url, pool_size=1)
    failures = await asyncio.gather(migrations.upgrade(database), return_exceptions=True)
    assert isinstance(failures[0], Exception)
    assert await objects(empty_database_url) == [("table", "runs")]
    await sql.execute("DROP TABLE lockstep.runs")
    await migrations.upgrade(database)
    await sql.close()
    await database.close()


async def test_mirrors_outlive_the_services_tables(engine: Engine) -> None:
    """Taking the service's tables away leaves the mirrors' rows, and a new start takes them over."""
    snapshot = [{"id": 1, "a": "x"}, {"id": 2, "a": "y"}]
    await engine.sync(snapshot)
    await migrations.downgrade(engine.database, "base")
    assert await engine.sql.fetchval(f"SELECT count(*) FROM {engine.table}") == 2
    await engine.edit("UPDATE {table} SET a = 'edited' WHERE id = 1")
    await migrations.upgrade(engine.database)
    await engine.sync()
    await engine.check()
