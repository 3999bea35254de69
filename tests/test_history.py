"""The history of one row, as the journal tells it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from sqlalchemy.dialects.postgresql import asyncpg
from yarl import URL

from app import create_app
from config import load_settings
from store.history import select_row_history
from store.journal import history_query
from tests.engine import Engine
from tests.service import Feed, get, serve_feed, served
from web.tables import key_parts


@pytest.fixture
async def feed_of_service() -> AsyncIterator[Feed]:
    """Serve a feed for the running service."""
    async with serve_feed() as feed:
        yield feed


@pytest.fixture
async def client(
    feed_of_service: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[aiohttp.ClientSession]:
    """Call a running service."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        source_url=feed_of_service.url, database_url=database_url, settle_seconds=0, source_attempts=1
    )
    async with served(create_app(settings)) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    """Ask for a path as it is spelled."""
    async with client.get(URL(path, encoded=True)) as response:
        return response.status, await response.json(content_type=None)


async def test_a_row_tells_its_changes_newest_first(client: aiohttp.ClientSession, feed_of_service: Feed) -> None:
    """A row's history is every change that runs made to it, a page at a time, newest first."""
    await get(client, "/sync_data")
    for name in ("a", "b", "c"):
        feed_of_service.records[3]["name"] = name
        await get(client, "/sync_data")
    status, first = await get(client, "/tables/my_data/rows/3/history?limit=2")
    assert (status, first["key"], first["table"]) == (200, {"id": 3}, "public.my_data")
    assert [change["changes"]["name"] for change in first["history"]] == [["b", "c"], ["a", "b"]]
    _, second = await get(client, f"/tables/public.my_data/rows/3/history?limit=2&before={first['next']}")
    assert [change["changes"]["name"] for change in second["history"]] == [["n3", "a"]]
    assert second["next"] is None


async def test_a_row_of_the_first_load_has_no_entries(client: aiohttp.ClientSession) -> None:
    """The first load is not journaled, so an unchanged row has an empty history and the time it was made."""
    await get(client, "/sync_data")
    status, body = await get(client, "/tables/my_data/rows/0/history")
    assert (status, body["history"], body["next"]) == (200, [], None)
    assert body["created_at"]
    assert body["deleted_at"] is None


@pytest.mark.parametrize(
    "path",
    [
        "my_data/rows/4000", "my_data/rows/x", "my_data/rows/1,2", "my_data/rows/%ff", "my_data/rows/1%00",
        "my_data/rows/99999999999999999999", "other/rows/1", "lockstep.runs/rows/1", "my_data/rows/..%2f..%2fx",
    ],
)  # fmt: skip
async def test_what_is_not_there_is_not_found(client: aiohttp.ClientSession, path: str) -> None:
    """An unknown table, an unknown row and a key that cannot be one answer 404."""
    await get(client, "/sync_data")
    status, body = await ask(client, f"/tables/{path}/history")
    assert (status, body["code"]) == (404, "not_found")


async def test_before_the_first_run_there_is_no_row(client: aiohttp.ClientSession) -> None:
    """Without a table every row is unknown."""
    assert (await get(client, "/tables/my_data/rows/1/history"))[0] == 404


@pytest.mark.parametrize("key", ["a,b", "a/b//c", "ä 100%", "x?y#z", "http://x/y", "'; --", "%2C"])
async def test_keys_may_hold_anything(client: aiohttp.ClientSession, feed_of_service: Feed, key: str) -> None:
    """A key may hold whatever text can, percent-encoded."""
    feed_of_service.records = [{"id": key, "name": "one"}]
    await get(client, "/sync_data")
    feed_of_service.records = [{"id": key, "name": "two"}]
    await get(client, "/sync_data")
    path = f"/tables/my_data/rows/{quote(key, safe='')}/history"
    status, body = await ask(client, path)
    assert (status, body["key"]) == (200, {"id": key})
    assert body["history"][0]["changes"] == {"name": ["one", "two"]}


def test_the_path_is_cut_before_it_is_decoded() -> None:
    """A comma between parts is told from one inside a part; what is no UTF-8 is no key."""
    assert key_parts(b"/tables/t/rows/a,b%2Cc,%C3%A4/history") == ["a", "b,c", "ä"]
    assert key_parts(b"/base/tables/t/rows/x/rows/y/history") == ["x/rows/y"]
    assert key_parts(b"/tables/t/rows/%ff/history") is None


async def test_composite_keys_and_purged_rows(engine: Engine) -> None:
    """A row is found by all its key's fields, and its history outlives it."""
    engine.configure(key=("b", "a"))
    await engine.sync([{"a": 1, "b": "x", "v": 1}, {"a": 2, "b": "x", "v": 1}])
    await engine.sync([{"a": 1, "b": "x", "v": 2}])
    found = await select_row_history(engine.database, engine.source, ["x", "1"])
    assert found is not None
    assert [change.changes for change in found.changes] == [{"v": (1, 2)}]
    await engine.edit("DELETE FROM {table}")
    gone = await select_row_history(engine.database, engine.source, ["x", "2"])
    assert gone is not None
    assert ([change.op for change in gone.changes], gone.created_at) == (["deleted"], None)
    assert await select_row_history(engine.database, engine.source, ["x", "3"]) is None
    assert await select_row_history(engine.database, engine.source, ["x"]) is None


async def test_other_mirrors_have_histories_of_their_own(engine: Engine) -> None:
    """Rows with the same key in different tables do not share their history."""
    for table in ("one", "two"):
        engine.configure(table=table)
        await engine.sync([{"id": 1, "v": 0}])
        await engine.sync([{"id": 1, "v": table}])
    found = await select_row_history(engine.database, engine.source, ["1"])
    assert found is not None
    assert [change.changes["v"][1] for change in found.changes] == ["two"]


async def test_the_index_leads_to_a_row(engine: Engine) -> None:
    """In a long journal a row's changes are found by the index, and by reading few rows."""
    await engine.sync([{"id": 1, "v": 0}])
    await engine.sync([{"id": 1, "v": 1}])
    await engine.edit(
        "INSERT INTO lockstep.changes (run, mirror, op, key, changes)"
        " SELECT 2, 'public.my_data', 'updated', jsonb_build_object('id', n), '{}' FROM generate_series(2, 60000) n",
        "VACUUM ANALYZE lockstep.changes",
    )
    query = history_query("public.my_data", {"id": 30_000}, limit=10)
    compiled = query.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
    bound = [compiled.params[name] for name in compiled.positiontup or ()]
    values = [json.dumps(value) if isinstance(value, dict) else value for value in bound]
    await engine.sql.execute("SET enable_seqscan = off")  # as select_history does
    plan = json.loads(await engine.sql.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled}", *values))[0]["Plan"]
    scans = [node for node in nodes(plan) if node.get("Relation Name") == "changes"]
    assert [node["Index Name"] for node in nodes(plan) if node["Node Type"] == "Bitmap Index Scan"] == [
        "changes_key_idx"
    ]
    assert sum(node["Rows Removed by Index Recheck"] for node in scans) < 10_000


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all nodes of a plan."""
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]
