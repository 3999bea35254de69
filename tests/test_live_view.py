"""The view of live rows beside a mirror."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from errors import SchemaConflict
from store import Database
from tests.engine import Engine
from tests.postgres import connect

THREE = [{"id": number, "name": f"n{number}", "price": number} for number in (1, 2, 3)]


async def shown(engine: Engine, view: str = "my_data_live") -> dict[int, dict[str, object]]:
    """Return what the view shows, by id."""
    return {row["id"]: dict(row) for row in await engine.sql.fetch(f'SELECT * FROM "{view}"')}


async def columns(engine: Engine) -> list[str]:
    """Return the view's columns in order."""
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('my_data_live') AND attnum > 0 ORDER BY attnum"
    )
    return [row[0] for row in await engine.sql.fetch(query)]


async def test_it_shows_the_live_rows(engine: Engine) -> None:
    """The first load makes it; it shows no tombstone, and of the bookkeeping only when rows were made and changed."""
    await engine.sync(THREE)
    assert await columns(engine) == ["id", "name", "price", "_sync_created_at", "_sync_updated_at"]
    await engine.sync(THREE[:2])
    assert set(await shown(engine)) == {1, 2}
    await engine.sync(THREE)
    assert set(await shown(engine)) == {1, 2, 3}


async def test_it_is_made_for_a_table_that_was_there(engine: Engine) -> None:
    """A table that a run takes over gets its view, with the user's own columns in it."""
    await engine.edit("CREATE TABLE my_data (id bigint PRIMARY KEY, own text DEFAULT 'mine')")
    await engine.sync(THREE)
    assert (await shown(engine))[1]["own"] == "mine"
    await engine.check()


async def test_it_gets_new_columns(engine: Engine) -> None:
    """A new field, and a column that the user added, are shown from the next run that writes."""
    await engine.sync(THREE)
    await engine.edit("ALTER TABLE {table} ADD COLUMN own text")
    await engine.sync([{**THREE[0], "new": "x"}, *THREE[1:]])
    assert (await columns(engine))[-2:] == ["own", "new"]
    assert (await shown(engine))[1]["new"] == "x"


async def test_rights_on_it_outlive_a_wider_column(engine: Engine, database_url: str) -> None:
    """When a column is widened the view is made anew; rights, columns' rights and options stay as they were."""
    await engine.sync(THREE)
    reader, clerk = "lockstep_test_reader", "lockstep_test_clerk"
    await engine.edit(
        f"DROP ROLE IF EXISTS {reader}; DROP ROLE IF EXISTS {clerk}; CREATE ROLE {reader}; CREATE ROLE {clerk}",
        f"GRANT SELECT ON my_data_live TO {reader} WITH GRANT OPTION; GRANT SELECT (id) ON my_data_live TO {clerk}",
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {clerk}",
        "ALTER VIEW my_data_live SET (security_barrier = true)",
    )
    try:
        await engine.sync([{**THREE[0], "price": 1.5}, *THREE[1:]])
        assert (await engine.types())["price"] == "numeric"
        asked = f"""SELECT has_table_privilege('{reader}', 'my_data_live', 'SELECT WITH GRANT OPTION'),
                           has_table_privilege('{clerk}', 'my_data_live', 'SELECT'),
                           has_column_privilege('{clerk}', 'my_data_live', 'id', 'SELECT'),
                           (SELECT reloptions FROM pg_class WHERE relname = 'my_data_live')"""
        assert tuple(await engine.sql.fetchrow(asked) or ()) == (True, False, True, ["security_barrier=true"])
        other = await connect(database_url)
        await other.execute(f"SET ROLE {reader}")
        assert await other.fetchval("SELECT sum(price) FROM my_data_live") == 6.5
        await other.close()
    finally:
        await engine.edit(*(f"DROP OWNED BY {role}; DROP ROLE {role}" for role in (reader, clerk)))
    await engine.check()


@pytest.mark.parametrize("over", ["my_data_live", "my_data"])
async def test_a_users_own_view_in_the_way_is_named(engine: Engine, over: str) -> None:
    """A column that somebody's view uses is not widened: the run fails, names the view, and writes nothing."""
    await engine.sync(THREE)
    await engine.edit(f"CREATE VIEW their_own AS SELECT price FROM {over}")
    with pytest.raises(SchemaConflict, match="their_own") as caught:
        await engine.sync([{**THREE[0], "price": 1.5}, *THREE[1:]])
    assert "price" in caught.value.cause
    await engine.edit("DROP VIEW their_own")
    await engine.sync()
    await engine.check()


async def test_what_else_has_its_name_is_left_alone(engine: Engine) -> None:
    """A relation of that name that is not ours stays as it is, which one log line tells."""
    await engine.edit("CREATE TABLE my_data_live (id bigint)")
    with capture_logs() as logs:
        await engine.sync(THREE)
        await engine.sync([{**THREE[0], "price": 1.5}, *THREE[1:]])
    assert [line["view"] for line in logs if line["event"] == "live_view_not_made"] == ["public.my_data_live"]
    assert await columns(engine) == ["id"]
    await engine.check()


async def test_it_comes_back_when_it_was_dropped(engine: Engine) -> None:
    """A view that went with one of its columns is there again after the next run that writes."""
    await engine.sync(THREE)
    await engine.edit("ALTER TABLE {table} DROP COLUMN name CASCADE")
    assert await columns(engine) == []
    await engine.sync()
    assert (await shown(engine))[1]["name"] == "n1"


async def test_a_renamed_column_is_renamed_in_it(engine: Engine) -> None:
    """After a column was renamed by hand, the view shows the columns that the table has."""
    await engine.sync(THREE)
    await engine.edit("ALTER TABLE {table} RENAME COLUMN name TO title")
    await engine.sync()
    assert [name for name in await columns(engine) if not name.startswith("_")] == ["id", "title", "price", "name"]


async def test_long_names_are_cut_and_kept_apart(engine: Engine) -> None:
    """Views of tables with long names have names that PostgreSQL takes whole, and none takes another's place."""
    tables = ["t" * 62 + "a", "t" * 62 + "b"]
    for table in tables:
        engine.configure(table=table)
        await engine.sync(THREE)
    views = await engine.sql.fetch("SELECT relname FROM pg_class WHERE relkind = 'v' AND relname LIKE 'ttt%'")
    assert len({row["relname"] for row in views}) == 2
    for row in views:
        assert set(await shown(engine, row["relname"])) == {1, 2, 3}


async def test_a_service_without_the_right_to_make_it_goes_on(engine: Engine, database_url: str) -> None:
    """Where the service may not make anything in the schema, the table is mirrored without a view."""
    role = "lockstep_test_writer"
    await engine.edit(
        f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD 'x'",
        "CREATE SCHEMA closed; CREATE TABLE closed.my_data (id bigint PRIMARY KEY)",
        f"GRANT USAGE ON SCHEMA closed TO {role}; ALTER TABLE closed.my_data OWNER TO {role}",
        f"GRANT USAGE ON SCHEMA lockstep TO {role}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA lockstep TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lockstep TO {role}",
    )
    mine, url = engine.database, make_url(database_url).set(username=role, password="x")  # noqa: S106 (of this test alone)
    engine.database = Database.connect(url.render_as_string(hide_password=False), pool_size=2)
    try:
        engine.configure(db_schema="closed")
        with capture_logs() as logs:
            await engine.sync(THREE)
        assert [line["view"] for line in logs if line["event"] == "live_view_refused"] == ["closed.my_data_live"]
        await engine.check()
    finally:
        await engine.database.close()
        engine.database = mine
        await engine.edit(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}")
