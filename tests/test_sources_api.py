"""`/sources` tells how every source stands, and nothing that is secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from quart import Quart

from app import create_app
from config import load_settings
from schedules import ticks_of
from store import Database, cooldowns
from store.job_engine import Patience, install
from store.schedules import park
from tests.service import get, serve_feed, served
from ticking import Ticker
from web.service import Service

CANARY = "canary-9d1c"
FILE = """
[sources.shop]
url = "{url}?api_key=${{SHOP_KEY}}"
headers = {{ X-Key = "${{SHOP_KEY}}" }}
auth = {{ type = "bearer", token = "${{SHOP_KEY}}" }}
key = "id"
every = "30s"
jitter = "2s"
allow_private = true

[sources.nightly]
url = "{url}"
cron = "30 2 * * *"
time_zone = "Europe/Berlin"
allow_private = true

[sources.unscheduled]
url = "{url}"
allow_private = true
"""


@pytest_asyncio.fixture
async def app(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Quart]:
    """Make an application of three sources, one of which has secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_KEY", CANARY)
    async with serve_feed() as feed:
        (tmp_path / "sources.toml").write_text(FILE.format(url=feed.url))
        yield create_app(load_settings(database_url=database_url, settle_seconds=0))


@pytest_asyncio.fixture
async def client(app: Quart) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve it, without a worker of its own."""
    async with served(app) as session:
        yield session


async def test_every_source_is_shown_as_it_stands(client: aiohttp.ClientSession, app: Quart) -> None:
    """Each source has its schedules with when they are due, its last run, its live rows, and why it is kept back."""
    service: Service = app.extensions["lockstep"]
    database = service.database
    _, fresh = await get(client, "/sources")
    assert [source["source"] for source in fresh["sources"]] == ["shop", "nightly", "unscheduled"]
    assert fresh["sources"][0]["schedules"][0]["when"] == "every 30 s, up to 2 s later"
    assert {source["status"] for source in fresh["sources"]} == {"active"}
    assert all(source["last_run"] is None and source["live_rows"] is None for source in fresh["sources"])
    await _tick(database, service)
    await get(client, "/sync_data?source=shop")
    await cooldowns.upsert_cooldown(database, service.sources[0], wait=timedelta(hours=1), reason="it said so")
    async with database.transaction() as session:
        await park(session, "nightly", "snapshot", reason="its jobs have cost 3 workers")
    async with client.post("/sources/unscheduled/pause") as response:
        assert response.status == 200
    _, found = await get(client, "/sources")
    shop, nightly, unscheduled = found["sources"]
    assert (shop["status"], shop["live_rows"], shop["last_run"]["created"]) == ("cooling", 40, 40)
    assert shop["schedules"][0]["next_due"] is not None
    assert (nightly["status"], nightly["reason"]) == ("parked", "its jobs have cost 3 workers")
    assert nightly["schedules"][0]["next_due"] is None
    assert (unscheduled["status"], unscheduled["schedules"]) == ("paused", [])
    assert found["parked"] == ["nightly"]
    async with client.post("/sources/nightly/resume") as response:
        assert (await response.json())["changed"] is True
    assert (await get(client, "/sources"))[1]["parked"] == []


async def _tick(database: Database, service: Service) -> None:
    async def wake() -> None:
        """Nobody is waiting for jobs."""

    await install(database)
    await Ticker(database, ticks_of(service.sources), patiently=Patience(asyncio.Event()), wake=wake).keep()


async def test_one_source_is_shown_in_full_without_its_secrets(client: aiohttp.ClientSession) -> None:
    """One source has its settings and its last runs; of credentials only the kind and the names are told."""
    await get(client, "/sync_data?source=shop")
    status, shop = await get(client, "/sources/shop")
    assert status == 200
    assert (shop["headers"], shop["settings"]["auth"]) == (["X-Key"], {"kind": "BearerAuth"})
    assert shop["settings"]["key"] == ["id"]
    assert shop["runs"] == [shop["last_run"]]
    assert CANARY not in str(shop)
    status, unknown = await get(client, "/sources/shp")
    assert (status, "shop" in unknown["remedy"]) == (404, True)


async def test_many_sources_come_in_pages(client: aiohttp.ClientSession) -> None:
    """`limit` and `after` page through the sources in the order of their file."""
    names: list[str] = []
    path = "/sources?limit=2"
    while path:
        _, page = await get(client, path)
        names += [source["source"] for source in page["sources"]]
        path = f"/sources?limit=2&after={page['next']}" if page["next"] else ""
    assert names == ["shop", "nightly", "unscheduled"]
