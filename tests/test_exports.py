"""All rows of a table at once: in constant memory, and over when its client is; and streams that end badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from quart import Quart

from app import create_app
from config import load_settings
from tests.postgres import connect, execute
from tests.service import Feed, get, serve_feed, served
from web.exports import Export, StreamCut
from web.tables import EXPORTS

PADDING = 400
MANY = 150_000
"""Rows of about so many bytes: far more than what a stream may keep in memory."""
MOST_GROWTH = 25 * 2**20


@pytest.fixture
async def feed_of_service() -> AsyncIterator[Feed]:
    """Serve a feed for the running service."""
    async with serve_feed() as feed:
        yield feed


@pytest.fixture
async def app(feed_of_service: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quart:
    """A service whose exports may be two at a time."""
    monkeypatch.chdir(tmp_path)
    return create_app(
        load_settings(source_url=feed_of_service.url, database_url=database_url, settle_seconds=0, db_max_pool=4)
    )


@pytest.fixture
async def client(app: Quart) -> AsyncIterator[aiohttp.ClientSession]:
    """Call the running service."""
    async with served(app) as session:
        yield session


def resident() -> int:
    """Return how many bytes this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_long_streams(client: aiohttp.ClientSession, database_url: str) -> None:
    """All rows are streamed in constant memory; a stream that fails is cut, and others wait for a place."""
    await get(client, "/sync_data")
    await execute(
        database_url,
        f"INSERT INTO my_data (id, name) SELECT n, repeat('x', {PADDING}) FROM generate_series(40, {MANY - 1}) n",
    )
    before, most, count = resident(), 0, 0
    async with client.get("/tables/my_data?format=ndjson&order=id.desc") as response:
        async for chunk in response.content.iter_any():
            count += chunk.count(b"\n")
            most = max(most, resident() - before)
    assert count == MANY
    assert most < MOST_GROWTH
    async with client.get("/tables/my_data?format=csv") as one, client.get("/tables/my_data?format=csv") as other:
        status, problem = await get(client, "/tables/my_data?format=csv")
        assert (status, problem["code"]) == (503, "too_many_streams")
        assert (await get(client, "/tables/my_data?limit=1"))[0] == 200
        assert await one.content.readexactly(1000)
        await execute(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE xact_start IS NOT NULL"
            " AND datname = current_database() AND pid <> pg_backend_pid()",
        )
        for response in (one, other):
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    for _ in range(3):  # whoever goes away leaves a place
        async with client.get("/tables/my_data?format=csv") as response:
            assert await response.content.readexactly(1000)
            response.close()
        await until_nobody_reads(database_url)
    async with client.get("/tables/my_data?format=csv&id=lt.9") as response:
        assert len((await response.text()).splitlines()) == 10


@pytest.mark.parametrize("is_answered", [False, True])
async def test_whoever_hangs_up_at_once_leaves_a_place(
    app: Quart, client: aiohttp.ClientSession, database_url: str, *, is_answered: bool
) -> None:
    """A stream whose client goes away before the first byte of it was sent is over, and its table is let go."""
    answered = asyncio.Event()
    messages = iter(["http.request", "http.disconnect"])

    async def receive() -> Any:
        kind = next(messages)
        if kind == "http.disconnect":
            await (answered.wait() if is_answered else asyncio.sleep(0))
        return {"type": kind}

    async def send(_: Any) -> None:
        answered.set()
        await asyncio.Event().wait()

    scope: Any = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/tables/my_data",
        "raw_path": b"/tables/my_data", "query_string": b"format=csv", "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1), "root_path": "", "extensions": {},
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    await get(client, "/sync_data")
    await execute(database_url, "INSERT INTO my_data (id) SELECT generate_series(40, 9000)")
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    assert answered.is_set() == is_answered
    assert app.extensions[EXPORTS].under_way == 0


async def until_nobody_reads(url: str) -> None:
    """Wait until no transaction is open but the one that looks."""
    connection = await connect(url)
    others = """SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL
                 AND datname = current_database() AND pid <> pg_backend_pid()"""
    async with asyncio.timeout(10):
        while await connection.fetchval(others):  # noqa: ASYNC110 # only the server knows
            await asyncio.sleep(0.01)
    await connection.close()


async def test_http_1_0_gets_pages_alone(client: aiohttp.ClientSession) -> None:
    """Where the end of a stream could not be told from a cut, it is refused; pages are not."""
    await get(client, "/sync_data")
    for path, status in (("/tables/my_data?format=csv", b"400"), ("/tables/my_data?format=csv&limit=5", b"200")):
        url = client._base_url
        assert url is not None
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {url.host}\r\n\r\n".encode())
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answered.split()[1] == status


async def test_a_slow_client_loses_its_stream() -> None:
    """Rows wait for a client for so long only; the database is let go then, and the client finds its answer cut."""
    let_go = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
        finally:
            let_go.set()

    export = Export(chunks(), stall_seconds=0.05)
    await export.begin()
    await let_go.wait()
    with pytest.raises(StreamCut):
        async for _ in export:
            pass
    await export.aclose()
