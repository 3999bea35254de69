"""Reading mirrors: names, values, types and mistakes of every kind, versions, and limits."""

from __future__ import annotations

import base64
import json
import re
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql import asyncpg

from errors import BadRequest, DatabaseRefused, NotFound
from store.reading import look, open_snapshot
from tests.engine import Engine
from tests.reading import asked, by_pages, feed_of, ids, page, rows

HOSTILE = [
    'x"; DROP TABLE my_data; --', "a.b", "a,b", "a:b::c", "a->b", "ünï ☃", "'", "\\", "%s", "$1", "(x)", "limit", "or",
    "not", "a\\:b", "_lockstep_row", "_lockstep_table", "r", "m", "k", "was", ":names", "sp ace", "UPPER", "select",
]  # fmt: skip
"""Names of columns, and values."""


def quoted(name: str) -> str:
    """Spell a name as a filter does that may hold anything."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


async def test_names_and_values_may_be_anything(engine: Engine) -> None:
    """Whatever columns are called and whatever values hold, they are found, shown, ordered and renamed as they are."""
    records = [{"id": n, **dict.fromkeys(HOSTILE, value)} for n, value in enumerate(HOSTILE)]
    await engine.sync(records)
    await engine.sync([records[0] | dict.fromkeys(HOSTILE, "new"), *records[1:]])
    async with open_snapshot(engine.database, engine.source) as snapshot:
        for number, name in enumerate(HOSTILE):
            spelled_name = quoted(name)
            for parameters in (
                [
                    (spelled_name, f"eq.{name}"),
                    ("select", f"{spelled_name}:{spelled_name},id"),
                    ("order", spelled_name),
                ],
                [("and", f"({spelled_name}.eq.{spelled_name})"), ("select", f"id,{spelled_name}")],
                [(spelled_name, f"in.({spelled_name},{spelled_name})"), ("order", f"{spelled_name}.desc.nullslast,id")],
                [(spelled_name, f"eq.{name}"), ("as_of", "1")],
            ):
                found = await by_pages(snapshot, parameters, 1)
                past = parameters[-1] == ("as_of", "1")
                assert [(row["id"], row[name]) for row in found] == ([(number, name)] if number or past else [])
    assert await ids(engine, [(quoted(HOSTILE[0]), "eq.new")]) == [0]
    assert await engine.sql.fetchval("SELECT count(*) FROM my_data") == len(HOSTILE)


MISTAKES = [
    ("nmae=eq.1", "Did you mean name?"),
    ("_sync_fingerprint=is.null", "no column '_sync_fingerprint'"),
    ("select=_sync_fingerprint", "no column '_sync_fingerprint'"),
    ("xmin=eq.1", "no column 'xmin'"),
    ("id=eq.1;DROP TABLE my_data", "'1;DROP TABLE my_data' is no bigint, which id of public.my_data is"),
    ("n=gt.9223372036854775808", "is no bigint"),
    ("at=gte.yesterdayish", "is no timestamp with time zone"),
    ("ok=eq.maybe", "is no boolean"),
    ("data->a=eq.{", "is no jsonb, which data->a of"),
    ("and=(id.in.(1,x))", "'x' is no bigint"),
    ("name=is.true", "neither true nor false"),
    ("name->a=eq.1", "nothing inside"),
    ("select=id,id", "would be called 'id'"),
    ("select=a:id,*,a:name", "would be called 'a'"),
    ("after=x", "is not what a page with this order has given for the next one"),
    ("after=W10", "is not what a page with this order has given"),
    ("as_of=99", "There is no run 99"),
    ("as_of=1&deleted=include", "only those rows are known that were live"),
    ("as_of=1&_sync_created_at=not.is.null", "no column '_sync_created_at'"),
    ("order=place", "cannot compare"),
    ("at=gt.2024-03-01T00:00:00+01:00", "is no timestamp with time zone"),
]


async def test_what_cannot_be_asked_says_why(engine: Engine) -> None:
    """A mistake names the column, its type, or what comes close; nothing of it is ever run as SQL."""
    await engine.edit("CREATE TABLE my_data (id bigint PRIMARY KEY, name text, place point)")
    await engine.sync(
        feed_of([{"id": 1, "name": "a", "data": {"a": 1}, "n": 1, "ok": True, "at": "2024-02-29T23:00:00Z"}])
    )
    for parameters, told in MISTAKES:
        with pytest.raises((BadRequest, NotFound)) as caught:
            await rows(engine, parameters)
        assert told in str(caught.value), parameters


async def test_cursors_are_not_trusted(engine: Engine) -> None:
    """A cursor that was made up is refused, and whatever it holds is taken for a value."""
    await engine.sync([{"id": number, "name": "a"} for number in range(3)])
    _, cursor = await page(engine, asked("order=name"), limit=1)
    digest = json.loads(base64.urlsafe_b64decode(f"{cursor}=="))[0]
    made_up: list[list[Any]] = [
        [], [digest], [digest, "a"], [digest, "a", "1", "2"], [digest, "a", 1], [digest, "a", "1; DROP TABLE my_data"],
        [digest, "a", "\0"], [digest, "a", "\ud800"], ["0", "a", "1"],
    ]  # fmt: skip
    for values in made_up:
        content = json.dumps(values).encode()
        with pytest.raises(BadRequest):
            await rows(engine, f"order=name&after={base64.urlsafe_b64encode(content).decode().rstrip('=')}")
    for other in (f"order=name.desc&after={cursor}", "after=%C3%A4", "after=" + "W" * 5_000):
        with pytest.raises(BadRequest, match="is not what a page with this order has given"):
            await rows(engine, other)
    injected = json.dumps([digest, "' OR true; DROP TABLE my_data; --", "0"]).encode()
    await rows(engine, f"order=name&after={base64.urlsafe_b64encode(injected).decode().rstrip('=')}")
    assert await ids(engine, "") == [0, 1, 2]


async def test_json_is_looked_into(engine: Engine) -> None:
    """Paths lead to members and places, as JSON or as text; the last member's name is the field's."""
    data = [{"a": {"b": 5, "c": ["x", "y"]}}, {"a": {"b": "5"}}, {"a": None}, [1], None]
    await engine.sync([{"id": number, "data": value} for number, value in enumerate(data)])
    assert await ids(engine, "data->a->b=eq.5") == [0]
    assert await ids(engine, "data->a->>b=eq.5") == [0, 1]
    assert await ids(engine, 'data->a->b=eq."5"') == [1]
    assert await ids(engine, "data->a->c->>-1=in.(y,z)") == [0]
    assert await ids(engine, "and=(data->a.not.is.null,data->a->b.is.null)") == [2]
    assert await ids(engine, "order=data->a->>b.desc.nullslast,id.desc&limit=2") == [1, 0, 4, 3, 2]
    found = await rows(engine, "select=data->a->c->0,last:data->a->c->>1,id&id=eq.0")
    assert found == [{"c": "x", "last": "y", "id": 0}]


async def test_types_of_the_users_own(engine: Engine) -> None:
    """Columns of any type are shown as PostgreSQL shows them in JSON, and compared as it compares them."""
    await engine.edit(
        "CREATE TYPE mood AS ENUM ('sad', '=ok')",
        "CREATE DOMAIN small AS integer CHECK (VALUE < 100)",
        "CREATE TABLE my_data (id bigint PRIMARY KEY, mood mood, small small, tags text[], note json, day date,"
        " price numeric(10,2), code character(4), lasts interval, f real, raw bytea)",
    )
    await engine.sync([{"id": 1}, {"id": 2}])
    await engine.edit(
        "UPDATE my_data SET mood = '=ok', small = 7, tags = '{a,\"b,c\",NULL}', note = E'{\"x\":\\n1}',"
        " day = '2024-02-29', price = 1.50, code = 'ab', lasts = '1 day', f = 0.1, raw = '\\x00ff' WHERE id = 1"
    )
    own = {
        "mood": "=ok", "small": 7, "tags": ["a", "b,c", None], "note": {"x": 1}, "day": "2024-02-29",
        "price": Decimal("1.50"),        "code": "ab  ", "lasts": "1 day", "f": Decimal("0.1"), "raw": "\\x00ff",
    }  # fmt: skip
    assert await rows(engine, "id=eq.1") == [{"id": 1, **own}]
    for condition in (
        "mood=gt.sad", "small=lt.50", 'tags=eq.{a,"b,c",NULL}', "day=eq.2024-02-29", "price=lt.1.505", "code=eq.ab",
        "lasts=gte.24:00:00", "f=lte.0.1", '"raw"=eq.\\x00ff', 'note=eq.{"x":1}', "mood=like.=*", "tags=like.*b,c*",
    ):  # fmt: skip
        name, _, value = condition.partition("=")
        assert await ids(engine, [(name, value)]) == [1], condition
    for order in ("mood", "small.desc", "tags", "note.desc", "day", "price", "code", "lasts", "f", '"raw"'):
        async with open_snapshot(engine.database, engine.source) as snapshot:
            assert len(await by_pages(snapshot, [("order", order)], 1)) == 2
    with pytest.raises(BadRequest, match="'glad' is no mood"):
        await rows(engine, "mood=eq.glad")


async def test_deleted_rows_are_shown_on_demand(engine: Engine) -> None:
    """Live rows are what is shown; tombstones where they are asked for, and then with the moment of their end."""
    await engine.sync([{"id": 1, "v": 1}, {"id": 2, "v": 2}])
    await engine.sync([{"id": 2, "v": 2}])
    assert await rows(engine) == [{"id": 2, "v": 2}]
    assert [(row["id"], bool(row["_sync_deleted_at"])) for row in await rows(engine, "deleted=include")] == [
        (1, True), (2, False),
    ]  # fmt: skip
    assert [set(row) for row in await rows(engine, "deleted=only")] == [{"id", "v", "_sync_deleted_at"}]
    assert [list(row) for row in await rows(engine, "select=id,_sync_created_at&_sync_deleted_at=is.null")] == [
        ["id", "_sync_created_at"]
    ]


async def test_pages_hold_under_concurrent_changes(engine: Engine) -> None:
    """A row that stays is shown once and only once, whatever comes and goes between the pages."""
    await engine.sync([{"id": n, "v": n % 3 if n % 4 else None} for n in range(0, 60, 2)])
    stays = {row["id"] for row in await rows(engine, "id=not.in.(0,20,40)")}
    seen: list[int] = []
    cursor: str | None = ""
    turn = 0
    while cursor is not None:
        part, cursor = await page(engine, asked(f"order=v.desc{'&after=' + cursor if cursor else ''}"), limit=7)
        seen += [row["id"] for row in part]
        turn += 1
        await engine.edit(
            f"DELETE FROM my_data WHERE id = {20 * (turn % 3)}",
            f"INSERT INTO my_data (id, v) VALUES ({turn * 2 + 1}, 1)",
        )
    assert len(seen) == len(set(seen))
    assert stays <= set(seen)


async def test_the_version_tells_of_every_change(engine: Engine) -> None:
    """Whatever may have changed a row changes the version: runs, edits, and runs that take edits into account."""
    seen: list[str] = []

    async def version() -> str:
        async with open_snapshot(engine.database, engine.source) as snapshot:
            assert snapshot.version is not None
            return snapshot.version

    await engine.sync([{"id": 1, "v": 1}])
    for step in (
        None,
        "UPDATE my_data SET v = 5",
        "ALTER TABLE my_data ADD COLUMN own text",
        "UPDATE my_data SET own = 'x'",
        "sync",
        "UPDATE my_data SET own = 'y'",
        "sync",
        "DROP VIEW my_data_live",
        "ALTER TABLE my_data ALTER COLUMN own TYPE text USING own || '!'",
        "TRUNCATE my_data",
    ):
        if step == "sync":
            await engine.sync()
        elif step:
            await engine.edit(step)
        if not (step or "").startswith("DROP"):
            seen.append(await version())
        assert seen[-1] == await version()
    assert len(seen) == len(set(seen))
    await engine.edit("DROP TRIGGER lockstep_note ON my_data")
    async with open_snapshot(engine.database, engine.source) as snapshot:
        assert snapshot.version is None


async def test_nobody_waits_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that PostgreSQL cannot answer in time is given up, with a word on what to do."""
    monkeypatch.setattr("store.reading.STATEMENT_SECONDS", 0.5)
    await engine.edit(
        "CREATE DOMAIN slow AS text CHECK (VALUE IS NULL OR pg_sleep(60)::text IS NOT NULL)",
        "CREATE TABLE my_data (id bigint PRIMARY KEY, own slow)",
    )
    await engine.sync([{"id": 1}])
    with pytest.raises(DatabaseRefused, match="took longer than"):
        await rows(engine, "own=eq.a")


async def test_a_table_that_is_rewritten_is_not_empty(engine: Engine) -> None:
    """Whoever began to look before a table was rewritten looks again, instead of finding nothing in it."""
    await engine.sync([{"id": 1, "v": 1}])
    await engine.edit("DROP VIEW my_data_live", "DROP TRIGGER lockstep_forget ON my_data")
    async with engine.database.transaction(isolation="REPEATABLE READ") as session:
        await engine.edit("ALTER TABLE my_data ALTER COLUMN v TYPE text USING v::text")
        assert await look(session, engine.source) is None
    assert await rows(engine) == [{"id": 1, "v": "1"}]


async def test_pages_of_large_rows_end_early(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is never much larger than it may be, and its cursor never too long to be sent."""
    monkeypatch.setattr("store.reading.PAGE_BYTES", 10_000)
    await engine.sync([{"id": number, "name": f"{number}{'x' * 3_000}"} for number in range(5)])
    first, cursor = await page(engine, asked(""), limit=100)
    second, end = await page(engine, asked(f"after={cursor}"), limit=100)
    assert ([row["id"] for row in [*first, *second]], len(first), end) == ([0, 1, 2, 3, 4], 4, None)
    await engine.edit("UPDATE my_data SET name = name || name || name")
    with pytest.raises(BadRequest, match="too long to tell where a page ends"):
        await rows(engine, "order=name", limit=2)


@pytest.mark.parametrize("descending", [False, True])
async def test_the_order_of_the_key_follows_the_index(engine: Engine, *, descending: bool) -> None:
    """A page in the order of the key, of all its fields, is read along its index from where the last one ended."""
    engine.configure(key=("part", "id"))
    await engine.sync([{"part": "a", "id": 1}])
    await engine.edit("INSERT INTO my_data (part, id) SELECT 'a', generate_series(2, 20000)", "ANALYZE my_data")
    order = "order=part.desc,id.desc&" if descending else ""
    async with open_snapshot(engine.database, engine.source) as snapshot:
        reading = await snapshot.read(asked(order))
        cursor = (await reading.page(9_000, json=True)).next
        reading = await snapshot.read(asked(f"{order}after={cursor}"))
    compiled = reading.statement(json=True).limit(10).compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
    values = [compiled.params[name] for name in compiled.positiontup or ()]
    plan = "\n".join(row[0] for row in await engine.sql.fetch(f"EXPLAIN ANALYZE {compiled}", *values))
    assert re.search(r"Index Scan (Backward )?using my_data_pkey", plan)
    assert re.search(r"Index Cond: .*id", plan)
    assert "Sort" not in plan
    removed = re.search(r"Rows Removed by Filter: (\d+)", plan)
    assert removed is None or int(removed[1]) <= 1
