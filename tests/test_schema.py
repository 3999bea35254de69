"""Columns: what they are inferred as, how they widen, and how the engine lives with tables that were there before."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from errors import SchemaConflict
from models import BOOKKEEPING, Counts, MyData, map_my_data
from tests.engine import Engine

ONE = [{"id": 1, "name": "one"}]


class TestInference:
    async def test_columns_are_the_narrowest_that_hold_all_values(self, engine: Engine) -> None:
        """Each JSON value gets the narrowest type that holds it exactly."""
        await engine.sync(
            b'[{"id": 1, "yes": true, "int": 1, "float": 0.5, "long": 0.12345678901234567890, "text": "x", "list": [1],'
            b'  "at": "2024-01-01T00:00:00Z", "local": "2024-01-01T00:00:00", "object": {"a": 1}, "null": null}]'
        )
        assert await engine.types() == {
            "id": "bigint",
            "yes": "boolean",
            "int": "bigint",
            "float": "double precision",
            "long": "numeric",
            "text": "text",
            "list": "jsonb",
            "at": "timestamp with time zone",
            "local": "text",
            "object": "jsonb",
        }
        await engine.check()

    async def test_a_rare_field_is_found(self, engine: Engine) -> None:
        """A field that one record in thousands has gets its column on the first load, though it is not in a sample."""
        records: list[dict[str, Any]] = [{"id": number, "a": 1} for number in range(5000)]
        records[4321] = {"id": 4321, "a": 1.5, "rare": "x"}
        report = await engine.sync(records)
        assert report.counts == Counts(records=5000, created=5000)
        assert await engine.types() == {"id": "bigint", "a": "numeric", "rare": "text"}
        await engine.check()

    async def test_declared_types_win(self, engine: Engine) -> None:
        """A declared type is used whatever the values look like."""
        engine.configure(types={"price": "numeric", "zip": "text", "tags": "jsonb"})
        await engine.sync([{"id": 1, "price": 1, "zip": "2024-01-01T00:00:00Z", "tags": "x"}])
        assert await engine.types() == {"id": "bigint", "price": "numeric", "zip": "text", "tags": "jsonb"}
        await engine.check()

    async def test_a_value_that_does_not_fit_a_declared_type_is_a_conflict(self, engine: Engine) -> None:
        """A declared type is never widened."""
        engine.configure(types={"price": "bigint"})
        with pytest.raises(SchemaConflict, match=r"id=2.*'price' \(bigint\)"):
            await engine.sync([{"id": 1, "price": 1}, {"id": 2, "price": "free"}])

    async def test_a_field_that_is_only_null_has_no_column_yet(self, engine: Engine) -> None:
        """A column is made once a value tells its type."""
        await engine.sync([{"id": 1, "a": None}, {"id": 2, "a": None}])
        assert await engine.types() == {"id": "bigint"}
        await engine.check()
        await engine.sync([{"id": 1, "a": None}, {"id": 2, "a": True}])
        assert await engine.types() == {"id": "bigint", "a": "boolean"}
        await engine.check()


class TestEvolution:
    async def test_new_fields_become_columns(self, engine: Engine) -> None:
        """A new field gets a column; records without it are left alone."""
        await engine.sync([{"id": 1}, {"id": 2}])
        report = await engine.sync([{"id": 1}, {"id": 2, "a": "x", "b": {"c": 1}}])
        assert report.counts == Counts(records=2, updated=1, unchanged=1)
        await engine.check()

    async def test_a_field_that_vanishes_from_a_record_becomes_null(self, engine: Engine) -> None:
        """A record that loses a field loses its value."""
        await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 1}])
        report = await engine.sync([{"id": 1, "a": 1}, {"id": 2}])
        assert report.counts == Counts(records=2, updated=1, unchanged=1)
        await engine.check()

    async def test_a_field_that_vanishes_from_all_records_keeps_its_column(self, engine: Engine) -> None:
        """No column is ever dropped; its values become NULL, and it is used again when the field comes back."""
        await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 1}])
        report = await engine.sync([{"id": 1}, {"id": 2}])
        assert report.counts == Counts(records=2, updated=2)
        assert await engine.types() == {"id": "bigint", "a": "bigint"}
        await engine.check()
        await engine.sync([{"id": 1, "a": 7}, {"id": 2}])
        await engine.check()

    @pytest.mark.parametrize(
        ("before", "after", "sql_type"),
        [
            ("1", "9223372036854775808", "numeric"),
            ("1", "1.5", "numeric"),
            ("1.5", "9007199254740993", "numeric"),
            ("1.1", "0.12345678901234567890", "numeric"),
            ("0.30000000000000004", "0.12345678901234567890", "numeric"),
            ("true", "1", "jsonb"),
            ("1", '"x"', "jsonb"),
            ("1.5", '"x"', "jsonb"),
            ('"x"', "[1]", "jsonb"),
            ('"x"', "1", "jsonb"),
            ('{"a": 1}', '"x"', "jsonb"),
            ('"2024-01-01T00:00:00.100Z"', '"soon"', "text"),
            ('"2024-01-01t00:00:00+05:30"', "1", "jsonb"),
        ],
    )
    async def test_columns_widen_without_a_change_of_value(
        self, engine: Engine, before: str, after: str, sql_type: str
    ) -> None:
        """A value that a column cannot hold widens it; the other rows keep their values, to the letter."""
        others = "".join(f', {{"id": {number}, "a": {before}}}' for number in range(2, 30))
        await engine.sync(f'[{{"id": 1, "a": {before}}}{others}]'.encode())
        await engine.check()
        await engine.sync(f'[{{"id": 1, "a": {after}}}{others}]'.encode())
        assert (await engine.types())["a"] == sql_type
        await engine.check()

    async def test_widening_keeps_tombstones(self, engine: Engine) -> None:
        """Deleted rows are widened like the others, and can be restored."""
        await engine.sync([{"id": 1, "a": "2024-01-01T00:00:00Z"}, {"id": 2, "a": "2024-01-01T00:00:00Z"}])
        await engine.sync([{"id": 1, "a": "2024-01-01T00:00:00Z"}])
        await engine.sync([{"id": 1, "a": "x"}])
        await engine.check()
        report = await engine.sync([{"id": 1, "a": "x"}, {"id": 2, "a": "2024-01-01T00:00:00Z"}])
        assert report.counts == Counts(records=2, restored=1, unchanged=1)
        await engine.check()

    async def test_integer_keys_may_outgrow_bigint(self, engine: Engine) -> None:
        """A key beyond 64 bits makes the key numeric."""
        await engine.sync([{"id": 1}, {"id": 2}])
        report = await engine.sync([{"id": 1}, {"id": 2}, {"id": 2**70}])
        assert report.counts == Counts(records=3, created=1, unchanged=2)
        assert await engine.types() == {"id": "numeric"}
        await engine.check()

    async def test_frozen_columns_refuse_what_does_not_fit(self, engine: Engine) -> None:
        """Under `freeze`, new fields and wider values fail the run; what fits goes on."""
        await engine.sync([{"id": 1, "a": 1}])
        engine.configure(on_schema_change="freeze")
        with pytest.raises(SchemaConflict, match=r"id=2.*field 'b'"):
            await engine.sync([{"id": 1, "a": 1}, {"id": 2, "b": 1}])
        with pytest.raises(SchemaConflict, match=r"id=1.*'a' \(bigint\)"):
            await engine.sync([{"id": 1, "a": "x"}])
        await engine.sync([{"id": 1, "a": 2}])
        await engine.check()

    async def test_a_new_key_is_taken_up(self, engine: Engine) -> None:
        """When the operator names another key, the rows are matched by that one."""
        await engine.sync([{"id": 1, "code": "a"}, {"id": 2, "code": "b"}])
        engine.configure(key=("code",))
        await engine.sync([{"id": 1, "code": "a"}, {"id": 3, "code": "b"}])
        await engine.check()


class TestNames:
    async def test_field_names_are_kept_apart(self, engine: Engine) -> None:
        """Whatever a field is called, it gets a column of its own, and its values come back under its name."""
        long = "x" * 70
        names = [
            'quo"te', "sing'le", "semi;colon", "per%cent", "%s", "%(x)s", ":x", "a:b", "$1", "back\\slash", "dot.ted",
            f"{long}1", f"{long}2", "é" * 40, "", " ", "_sync_deleted_at", "_sync_fingerprint", "_sync_position",
            "_sync_op", "_sync_key", "_sync_changes", "ctid", "xmin", "tableoid", "🎈", "__proto__", "Mixed", "mixed",
            "MIXED", "select", "tab\there", "line\nbreak", "field__x", "n0", "f0", "t", "my_data", "excluded", "/", "*",
        ]  # fmt: skip
        records = [{"id": number, **{name: f"{name}{number}" for name in names}} for number in range(3)]
        await engine.sync(records)
        await engine.check()
        records[1] = {**records[1], **dict.fromkeys(names, "new")}
        report = await engine.sync(records[:2])
        assert report.counts == Counts(records=2, updated=1, deleted=1, unchanged=1)
        await engine.check()
        await engine.sync(records)
        await engine.check()

    @pytest.mark.parametrize("name", ['k"ey', "a:b", "%s", "_sync_deleted_at", "ctid", "Id", "x" * 70, "🎈", "select"])
    async def test_keys_may_have_any_name(self, engine: Engine, name: str) -> None:
        """A key field's name is as free as any other."""
        engine.configure(key=(name,))
        await engine.sync([{name: number, "a": 1} for number in range(4)])
        await engine.check()
        report = await engine.sync([{name: 0, "a": 2}, {name: 1, "a": 1}, {name: 9, "a": 1}])
        assert report.counts == Counts(records=3, created=1, updated=1, deleted=2, unchanged=1)
        await engine.check()

    @pytest.mark.parametrize("table", ["Mixed Case", "semi;colon", "per%cent", ":x", "it's", "select", "tĥing"])
    async def test_tables_may_have_any_name(self, engine: Engine, table: str) -> None:
        """The name of the table is quoted wherever it stands."""
        engine.configure(table=table)
        await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 1}])
        await engine.check()
        await engine.edit("UPDATE {table} SET a = 5 WHERE id = 1")
        report = await engine.sync([{"id": 1, "a": 1}, {"id": 3, "a": "x"}])
        assert report.counts == Counts(records=2, created=1, updated=1, deleted=1)
        await engine.check()

    async def test_wide_records_are_mirrored(self, engine: Engine) -> None:
        """150 columns are no obstacle, though PostgreSQL's functions take 100 arguments only."""
        wide: list[dict[str, Any]] = [
            {"id": number, **{f"c{place}": place for place in range(150)}} for number in range(3)
        ]
        await engine.sync(wide)
        await engine.check()
        wide[1] = {"id": 1, **{f"c{place}": -place for place in range(150)}}
        report = await engine.sync(wide[:2])
        assert report.counts == Counts(records=2, updated=1, deleted=1, unchanged=1)
        await engine.check()


class TestExistingTables:
    async def test_the_users_own_columns_keep_their_types(self, engine: Engine) -> None:
        """Values go into whatever types the user chose, and only those that change are touched."""
        await engine.edit(
            "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')",
            "CREATE DOMAIN percent AS integer CHECK (VALUE BETWEEN 0 AND 100)",
            """CREATE TABLE {table} (id integer PRIMARY KEY, code varchar(3), price numeric(10,2), ref uuid, day date,
               feeling mood, share percent, tags text[], seen timestamp, at time, small smallint, single real,
               plain json, address inet, note text NOT NULL DEFAULT 'mine', made timestamptz NOT NULL DEFAULT now())""",
        )
        record = {
            "id": 1, "code": "abc", "price": 1.5, "ref": "00000000-0000-0000-0000-00000000000a", "day": "2024-02-29",
            "feeling": "ok", "share": 50, "tags": ["a", None, "b,\"c"], "seen": "2024-01-01T10:00:00", "at": "10:00:00",
            "small": -3, "single": 0.25, "plain": {"b": 1, "a": [1]}, "address": "10.0.0.1",
        }  # fmt: skip
        await engine.sync([record, {"id": 2}])
        await engine.check()
        types = await engine.types()
        assert types["price"] == "numeric(10,2)"
        assert types["feeling"] == "mood"
        changed = {**record, "code": "xyz", "feeling": "sad", "share": 0, "tags": [], "plain": {"a": [1], "b": 2}}
        report = await engine.sync([changed, {"id": 3, "day": "1999-12-31"}])
        assert report.counts == Counts(records=2, created=1, updated=1, deleted=1)
        await engine.check()
        assert await engine.sql.fetchval(f"SELECT array_agg(DISTINCT note) FROM {engine.table}") == ["mine"]

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("code varchar(3)", '"abcd"'),
            ("n integer", "2147483648"),
            ("n integer", "1.5"),
            ("n integer", '"1"'),
            ("n smallint", "40000"),
            ("price numeric(10,2)", "1.234"),
            ("price numeric(10,2)", "123456789.00"),
            ("ref uuid", '"not-a-uuid"'),
            ("day date", '"2024-02-30"'),
            ("day date", '"tomorrow"'),
            ("mood mood", '"angry"'),
            ("mood mood", '["sad"]'),
            ("share percent", "101"),
            ("share percent", '"x"'),
            ("tags text[]", '"x"'),
            ("tags text[]", "[1]"),
            ("tags text[]", "[[1]]"),
            ("seen timestamp", '"2024-01-01T00:00:00Z"'),
            ("single real", "0.1234567891"),
            ("yes boolean", "1"),
            ("text text", "1"),
            ("double double precision", "0.12345678901234567890"),
            ("address inet", '"nowhere"'),
        ],
    )
    async def test_a_value_that_does_not_fit_is_a_conflict(self, engine: Engine, column: str, value: str) -> None:
        """A user's own column is never altered: the error names the column and the record, and nothing is written."""
        name = column.partition(" ")[0]
        await engine.edit(
            "CREATE TYPE mood AS ENUM ('sad')",
            "CREATE DOMAIN percent AS integer CHECK (VALUE BETWEEN 0 AND 100)",
            f"CREATE TABLE {{table}} (id integer PRIMARY KEY, {column})",
            "INSERT INTO {table} VALUES (1, NULL)",
        )
        with pytest.raises(SchemaConflict) as caught:
            await engine.sync(f'[{{"id": 1}}, {{"id": 7, "{name}": {value}}}]'.encode())
        assert f"'{name}'" in caught.value.cause
        assert "7" in caught.value.cause

    async def test_rows_that_were_there_are_taken_over(self, engine: Engine) -> None:
        """Rows that equal their records are left alone; others are updated, the rest is deleted softly."""
        await engine.edit(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, name text, own text NOT NULL DEFAULT 'own')",
            "INSERT INTO {table} VALUES (1, 'one', 'a'), (2, 'zwei', 'b'), (3, 'three', 'c')",
        )
        report = await engine.sync([{"id": 1, "name": "one"}, {"id": 2, "name": "two"}, {"id": 4, "name": "four"}])
        assert report.counts == Counts(records=3, created=1, updated=1, deleted=1, unchanged=1)
        await engine.check()
        own = await engine.sql.fetch(f"SELECT own FROM {engine.table} ORDER BY id")
        assert [row["own"] for row in own] == ["a", "b", "c", "own"]

    @pytest.mark.parametrize("key", ["", "UNIQUE", "PRIMARY KEY"])
    async def test_a_table_may_lack_a_key(self, engine: Engine, key: str) -> None:
        """A unique index over the key is made where there is none, and only there."""
        await engine.edit(f"CREATE TABLE {{table}} (id bigint {key}, a text)", "INSERT INTO {table} VALUES (1, 'x')")
        await engine.sync([{"id": 1, "a": "x"}, {"id": 2, "a": "y"}])
        await engine.check()
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = to_regclass($1) AND indisunique"
        assert await engine.sql.fetchval(indexes, engine.table) == 1

    async def test_a_table_may_have_another_primary_key(self, engine: Engine) -> None:
        """The user's own primary key, filled by its default, stays; the source's key gets an index beside it."""
        await engine.edit("CREATE TABLE {table} (number serial PRIMARY KEY, id text, a int)")
        await engine.sync([{"id": "x", "a": 1}, {"id": "y", "a": 1}])
        await engine.sync([{"id": "x", "a": 2}, {"id": "z", "a": 1}])
        await engine.check()

    async def test_duplicate_keys_in_a_table_are_a_conflict(self, engine: Engine) -> None:
        """A table whose rows share keys cannot be a mirror; nothing is written."""
        await engine.edit(
            "CREATE TABLE {table} (id bigint, name text)", "INSERT INTO {table} VALUES (1, 'a'), (1, 'b')"
        )
        engine.serve(ONE)
        before = await engine.stored()
        with pytest.raises(SchemaConflict, match="several rows with the same key"):
            await engine.sync_unaccounted()
        assert await engine.stored() == before

    async def test_a_table_with_rows_but_without_the_key_is_a_conflict(self, engine: Engine) -> None:
        """Rows that no key could tell apart are not guessed at."""
        await engine.edit("CREATE TABLE {table} (name text)", "INSERT INTO {table} VALUES ('a')")
        with pytest.raises(SchemaConflict, match="no key column 'id'"):
            await engine.sync(ONE)

    @pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
    async def test_a_view_is_no_mirror(self, engine: Engine, kind: str) -> None:
        """Only a table can be synced."""
        await engine.edit(f"CREATE {kind} {{table}} AS SELECT 1::bigint AS id, 'x' AS name")
        engine.serve(ONE)
        with pytest.raises(SchemaConflict, match="is not a table"):
            await engine.sync_unaccounted()

    async def test_a_partitioned_table_can_be_a_mirror(self, engine: Engine) -> None:
        """Rows may live in partitions."""
        await engine.edit(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id)",
            "CREATE TABLE low PARTITION OF {table} FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE high PARTITION OF {table} DEFAULT",
        )
        await engine.sync([{"id": 1, "name": "one"}, {"id": 11, "name": "eleven"}])
        await engine.sync([{"id": 1, "name": "uno"}, {"id": 12, "name": "twelve"}])
        await engine.check()

    async def test_a_mirror_may_live_in_another_schema(self, engine: Engine) -> None:
        """The schema that the operator names is used."""
        await engine.edit('CREATE SCHEMA "Other one"')
        engine.configure(db_schema="Other one")
        await engine.sync(ONE)
        await engine.sync([{"id": 1, "name": "uno"}])
        await engine.check()


async def test_my_data_is_the_mirror_as_a_model(engine: Engine) -> None:
    """`MyData` can be queried like any SQLAlchemy model once it is mapped to the table."""
    await engine.sync(ONE)
    async with engine.database.transaction() as session:
        connection = await session.connection()
        table = await connection.run_sync(lambda sync: sa.Table(engine.source.table, sa.MetaData(), autoload_with=sync))
        map_my_data(table)
        row = (await session.scalars(sa.select(MyData))).one()
    assert (row.id, row.name) == (1, "one")  # type: ignore[attr-defined] # its columns come from the feed
    assert set(BOOKKEEPING) < set(table.columns.keys())
