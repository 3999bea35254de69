"""The routes for tables, their rows and single rows, over HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from app import create_app
from config import load_settings
from tests.codebase import ROOT
from tests.postgres import execute
from tests.service import Feed, get, serve_feed, served
from web.formats import Format


@pytest.fixture
async def feed_of_service() -> AsyncIterator[Feed]:
    """Serve a feed for the running service."""
    async with serve_feed() as feed:
        yield feed


@asynccontextmanager
async def serving(feed: Feed, database_url: str, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve a mirror of a feed."""
    settings = load_settings(
        source_url=feed.url, database_url=database_url, settle_seconds=0, source_attempts=1, db_max_pool=4, **options
    )
    async with served(create_app(settings)) as session:
        yield session


@pytest.fixture
async def client(
    feed_of_service: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[aiohttp.ClientSession]:
    """Call a running service."""
    monkeypatch.chdir(tmp_path)
    async with serving(feed_of_service, database_url) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, str, Any]:
    """Ask for a path as it is spelled; return status, body and headers."""
    async with client.get(URL(path, encoded=True), headers=headers) as response:
        return response.status, await response.text(), response.headers


async def test_tables_tell_what_they_are(client: aiohttp.ClientSession) -> None:
    """Every mirror is listed with its sources, columns and counts, before its first run and after it."""
    _, before = await get(client, "/tables")
    assert [(table["name"], table["columns"], table["live_rows"], table["last_run"]) for table in before["tables"]] == [
        ("public.my_data", [], 0, None)
    ]
    assert (await get(client, "/tables/my_data"))[0] == 404
    await get(client, "/sync_data")
    _, after = await get(client, "/tables")
    (table,) = after["tables"]
    assert (table["schema"], table["table"], table["sources"]) == ("public", "my_data", ["my_data"])
    assert table["columns"] == [
        {"name": "id", "type": "bigint", "field": "id", "key": True},
        {"name": "name", "type": "text", "field": "name", "key": False},
    ]
    assert (table["live_rows"], table["last_run"]["status"]) == (40, "succeeded")


async def test_pages_lead_to_each_other(client: aiohttp.ClientSession) -> None:
    """Each page names the next one in a header that any client follows, and holds rows and nothing else."""
    await get(client, "/sync_data")
    path, found = "/tables/public.my_data?limit=15&id=lt.38&select=id&or=(name.eq.n3,id.gte.0)", []
    for _ in range(3):
        async with client.get(path) as response:
            found += [row["id"] for row in await response.json()]
            link = response.links.get("next")
            path = str(link["url"]) if link else ""
    assert (found, path) == (list(range(38)), "")
    assert await get(client, "/tables/my_data?id=eq.99") == (200, [])
    for wrong in (
        "?limit=10001",
        "?offset=5",
        "?nmae=eq.1",
        "?limit=1&limit=2",
        "?raw=2",
        "?format=xml",
        "?name=eq.%ff",
    ):
        status, text, _ = await ask(client, "/tables/my_data" + wrong)
        assert (status, json.loads(text)["code"]) == (400, "bad_request"), wrong
    assert (await get(client, "/tables/mydata"))[1]["remedy"] == "Did you mean my_data or public.my_data?"


HARD_CELLS = [
    "=1+1",
    "+1",
    "-x",
    "@a",
    "\tx",
    "\rx",
    'q"q',
    "a,b",
    "two\r\nlines",
    "",
    "'=x",
    "ä ☃",
    "\\.",
    None,
    " x ",
]


async def test_formats_hold_the_same(client: aiohttp.ClientSession, feed_of_service: Feed) -> None:
    """JSON, NDJSON and CSV hold the same rows, in whatever way they are asked for."""
    feed_of_service.records = [{"id": n, "t": cell, "n": -n, "j": {"a": cell}} for n, cell in enumerate(HARD_CELLS)]
    await get(client, "/sync_data")
    status, text, headers = await ask(client, "/tables/my_data")
    rows = json.loads(text)
    assert (status, headers["Content-Type"], [row["t"] for row in rows]) == (200, "application/json", HARD_CELLS)
    for path, accept in (("?format=ndjson", "*/*"), ("", "application/x-ndjson"), ("?limit=100", "application/jsonl")):
        _, lines, headers = await ask(client, "/tables/my_data" + path, Accept=accept)
        assert [json.loads(line) for line in lines.splitlines()] == rows
        assert headers["Content-Type"] == "application/x-ndjson"
    for path in ("?format=csv&raw=1", "?format=csv&raw=1&limit=100"):
        _, text, headers = await ask(client, "/tables/my_data" + path)
        read = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [row["t"] for row in read] == [cell or "" for cell in HARD_CELLS]
        assert [json.loads(row["j"]) for row in read] == [row["j"] for row in rows]
        assert headers["Content-Type"].startswith("text/csv; charset=utf-8")
    _, text, _ = await ask(client, "/tables/my_data?select=t,n", Accept="text/csv;q=0.9, text/html")
    cells = [row["t"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert cells == [f"'{cell}" if cell and cell[0] in "=+-@\t\r" else cell or "" for cell in HARD_CELLS]
    written = text.split("\r\n")
    assert (written[0], written[2], written[-3], written[-1]) == ("t,n", "'+1,-1", ",-13", "")
    assert '"",-9' in written
    assert (await ask(client, "/tables/my_data", Accept="image/png"))[0] == 406
    for accepted in ("application/json; charset=utf-8", "image/png, text/csv ;header=absent;q=0.1, */*;q=0.2"):
        _, _, headers = await ask(client, "/tables/my_data", Accept=accepted)
        assert headers["Content-Type"] == "application/json"


async def test_rows_are_counted_where_that_is_asked_for(client: aiohttp.ClientSession) -> None:
    """Where a page stands is told as PostgREST tells it, as far as it is known, and always if rows are counted."""
    await get(client, "/sync_data")
    exact = {"Prefer": 'return=minimal, count="exact"; x=1'}
    found = {}
    for query, headers in (
        ("limit=15", {}), ("limit=15", exact), ("id=gt.50", {}), ("id=gt.50", exact), ("id=lt.10", exact),
        ("limit=15&id=lt.20&format=csv", exact), ("limit=15", {"Prefer": "count=planned"}),
    ):  # fmt: skip
        status, _, told = await ask(client, f"/tables/my_data?{query}", **headers)
        found[query, str(headers)] = status, told["Content-Range"], told.get("Preference-Applied")
    assert list(found.values()) == [
        (200, "0-14/*", None), (206, "0-14/40", "count=exact"), (200, "*/*", None), (200, "*/0", "count=exact"),
        (200, "0-9/10", "count=exact"), (206, "0-14/20", "count=exact"), (200, "0-14/*", None),
    ]  # fmt: skip
    async with client.get("/tables/my_data?limit=15&order=name.desc") as response:
        following = str(response.links["next"]["url"])
    status, _, told = await ask(client, following, **exact)
    assert (status, told["Content-Range"]) == (206, "15-29/40")
    _, _, told = await ask(client, following)
    assert "Content-Range" not in told
    assert (await ask(client, "/tables/my_data", **exact, **{"If-None-Match": told["ETag"]}))[0] == 200
    assert (await ask(client, "/tables/my_data", Range="0-9"))[0] == 400
    assert (await ask(client, "/tables/my_data", Range="bytes=0-9"))[0] == 200


async def test_one_row_as_an_object(client: aiohttp.ClientSession) -> None:
    """Who accepts one object alone gets the row that was found, and no other answer if it is not the only one."""
    await get(client, "/sync_data")
    accept = "application/vnd.pgrst.object+json"
    for path, told in (
        ("?id=eq.3", {"id": 3, "name": "n3"}), ("?limit=1", {"id": 0, "name": "n0"}), ("/rows/7?select=id", {"id": 7}),
        ("?id=eq.99", "No row was found"), ("?id=in.(1,2)", "Several rows were found"), ("?limit=2", "Several"),
    ):  # fmt: skip
        status, text, headers = await ask(client, f"/tables/my_data{path}", Accept=accept)
        if isinstance(told, str):
            assert (status, json.loads(text)["code"], told in text) == (406, "not_one_row", True)
        else:
            assert (status, headers["Content-Type"], json.loads(text)) == (200, accept, told)


async def test_what_has_not_changed_is_not_given_again(
    client: aiohttp.ClientSession, feed_of_service: Feed, database_url: str
) -> None:
    """An answer has a tag, which holds for it alone and until a row may have changed, by whomever."""
    await get(client, "/sync_data")
    for path in ("/tables/my_data", "/tables/my_data?format=csv", "/tables/my_data/rows/3"):
        _, _, headers = await ask(client, path)
        tag = headers["ETag"]
        assert (headers["Cache-Control"], headers["Vary"]) == ("no-cache", "Accept, Authorization, Prefer")
        status, body, headers = await ask(client, path, **{"If-None-Match": f'"x", {tag}'})
        assert (status, body, headers["ETag"]) == (304, "", tag)
        other = f"{path}{'&' if '?' in path else '?'}select=name"
        assert (await ask(client, other, **{"If-None-Match": tag}))[0] == 200
        await execute(database_url, "UPDATE my_data SET name = 'edited' WHERE id = 3")
        assert (await ask(client, path, **{"If-None-Match": tag}))[0] == 200
        await get(client, "/sync_data")
        assert (await ask(client, path, **{"If-None-Match": tag}))[0] == 200
    async with client.head("/tables/my_data?format=ndjson") as response:
        assert (response.status, "ETag" in response.headers, await response.read()) == (200, True, b"")


async def test_one_row(client: aiohttp.ClientSession, feed_of_service: Feed) -> None:
    """A row is found by its key, now and as it was; one that is not there tells of those that are near."""
    await get(client, "/sync_data")
    assert await get(client, "/tables/my_data/rows/3") == (200, {"id": 3, "name": "n3"})
    feed_of_service.records = feed_of_service.records[4:]
    await get(client, "/sync_data")
    status, problem = await get(client, "/tables/my_data/rows/3")
    assert (status, problem["remedy"]) == (404, "Add deleted=include to see it.")
    assert set((await get(client, "/tables/my_data/rows/3?deleted=include"))[1]) == {"id", "name", "_sync_deleted_at"}
    assert (await get(client, "/tables/my_data/rows/3?as_of=1&select=n:name"))[1] == {"n": "n3"}
    assert (await get(client, "/tables/my_data/rows/50?as_of=1"))[0] == 404
    status, problem = await get(client, "/tables/my_data/rows/40")
    assert (status, problem["remedy"]) == (404, "Near it are '39', '38'.")
    _, text, _ = await ask(client, "/tables/my_data/rows/5?format=csv")
    assert text == "id,name\r\n5,n5\r\n"
    for path in ("x", "1,2", "%ff", "1%00", "99999999999999999999", "1;DROP", "..%2f..%2fx"):
        assert (await ask(client, f"/tables/my_data/rows/{path}"))[0] == 404, path


async def test_keys_that_look_like_routes(client: aiohttp.ClientSession, feed_of_service: Feed) -> None:
    """A key may hold slashes and commas, and end like the route to the history does."""
    keys = ["a/history", "a//,b", "/", "//x", "", "two\nlines\n", "\r", " "]
    feed_of_service.records = [{"id": key, "name": key} for key in keys]
    await get(client, "/sync_data")
    for key in keys:
        path = f"/tables/my_data/rows/{quote(key, safe='')}"
        assert json.loads((await ask(client, path))[1]) == {"id": key, "name": key}
        assert json.loads((await ask(client, f"{path}/history"))[1])["key"] == {"id": key}
    assert (await ask(client, "/tables/my_data/rows"))[0] == 404


async def test_tables_that_sources_share(
    feed_of_service: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of several sources is one table: listed once, read whole, with the key of all its parts."""
    feed_of_service.records = [{"id": 1, "n": 5}, {"id": 2, "n": 6}]
    monkeypatch.chdir(tmp_path)
    Path("sources.toml").write_text(
        "".join(
            f'[sources.{name}]\nurl = "{feed_of_service.url}"\ntable = "shared"\nkey = "id"\n'
            f'scope = {{region = "{name}"}}\n'
            for name in ("eu", "us")
        )
    )
    settings = load_settings(sources_file=Path("sources.toml"), database_url=database_url, settle_seconds=0)
    async with served(create_app(settings)) as client:
        assert (await get(client, "/sync_data?source=all"))[0] == 200
        (table,) = (await get(client, "/tables"))[1]["tables"]
        assert (table["sources"], table["key"], table["live_rows"]) == (["eu", "us"], ["region", "id"], 4)
        async with client.get("/tables/shared?limit=3") as response:
            assert [(row["region"], row["id"]) for row in await response.json()] == [("eu", 1), ("eu", 2), ("us", 1)]
            following = response.links["next"]["url"]
        assert (await get(client, str(following)))[1] == [{"region": "us", "id": 2, "n": 6}]
        assert (await get(client, "/tables/shared/rows/us,1"))[1]["n"] == 5
        first, tag = (await get(client, "/runs"))[1]["runs"][0]["run"], (await ask(client, "/tables/shared"))[2]["ETag"]
        feed_of_service.records = [{"id": 2, "n": 7}]
        await get(client, "/sync_data?source=us")
        assert [row["n"] for row in (await get(client, "/tables/shared"))[1]] == [5, 6, 7]
        assert [row["n"] for row in (await get(client, f"/tables/shared?as_of={first}"))[1]] == [5, 6, 5, 6]
        assert (await ask(client, "/tables/shared", **{"If-None-Match": tag}))[0] == 200


def test_json_stays_on_its_line() -> None:
    """Line breaks that a column of the type json has kept do not end a line of NDJSON."""
    assert Format(name="ndjson").lines([['{"a":{"b":\r\n1}}']], [False]) == b'{"a":{"b":  1}}\n'


EXAMPLE = re.compile(r"^\$ curl '?http://127\.0\.0\.1:5001([^'\n]*)'?\n(.*?)(?=\n\$ |\n```)", re.MULTILINE | re.DOTALL)
OF_THE_DAY = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d+Z")


async def test_the_guide_shows_what_is_answered(
    feed_of_service: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples for tables are what the service answers, but for moments."""
    guide = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("\n## Tables\n")[2].partition("\n## ")[0]
    names = ["Chair", "Lamp", "Desk", "=cmd()", "Oak table", "Rug, round"]
    prices, stocks = [1.25, 19.5, 8, 2.25, 250, 0.5], [3, 0, 7, None, 1, 12]
    everything = [
        {"sku": f"A-00{n}", "name": name, "price": price, "stock": stock, "data": {"colour": "red"} if n == 1 else None}
        for n, (name, price, stock) in enumerate(zip(names, prices, stocks, strict=True), 1)
    ]
    examples = EXAMPLE.findall(guide)
    shown = [(path, told) for path, told in examples if not path.endswith("/history")]
    assert len(shown) == 7
    monkeypatch.chdir(tmp_path)
    async with serving(feed_of_service, database_url, table_name="products", source_key="sku") as client:
        for records in (everything[:5], [everything[0] | {"price": 1.5}, everything[1], *everything[3:]]):
            feed_of_service.records = records
            assert (await get(client, "/sync_data"))[0] == 200
        answers = [(told, (await ask(client, path))[1]) for path, told in shown]
    for told, text in answers:
        assert OF_THE_DAY.sub("", text.replace("\r\n", "\n").strip()) == OF_THE_DAY.sub("", told.strip())
