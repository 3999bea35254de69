"""Several sources in one service: each by its name, and all of them at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from app import create_app
from config import load_settings
from tests.service import Feed, get, serve_feed, served


@pytest_asyncio.fixture
async def feeds() -> AsyncIterator[dict[str, Feed]]:
    """Serve two feeds."""
    async with serve_feed() as towns, serve_feed() as rivers:
        yield {"towns": towns, "rivers": rivers}


@pytest_asyncio.fixture
async def client(feeds: dict[str, Feed], database_url: str, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve both as sources of one service."""
    file = tmp_path / "sources.toml"
    file.write_text("".join(f'[sources.{name}]\nurl = "{feed.url}"\nattempts = 1\n' for name, feed in feeds.items()))
    settings = load_settings(database_url=database_url, sources_file=file, settle_seconds=0, worker=False)
    async with served(create_app(settings)) as client:
        yield client


async def test_each_is_synced_by_its_name(client: aiohttp.ClientSession) -> None:
    """Without a name, the first source of the file is meant; a name that is unknown starts nothing."""
    assert (await get(client, "/sync_data"))[1]["source"] == "towns"
    assert (await get(client, "/sync_data?source=rivers"))[1]["source"] == "rivers"
    status, unknown = await get(client, "/sync_data?source=river")
    assert (status, unknown["code"]) == (404, "not_found")
    assert "rivers" in unknown["remedy"]
    assert len((await get(client, "/runs"))[1]["runs"]) == 2


async def test_all_are_synced_though_one_fails(client: aiohttp.ClientSession, feeds: dict[str, Feed]) -> None:
    """With `all`, the answer tells of each source; its status is the gravest, and nobody pays for another's fault."""
    status, answer = await get(client, "/sync_data?source=all")
    assert (status, answer["status"]) == (200, "succeeded")
    assert [each["created"] for each in answer["sources"]] == [40, 40]
    feeds["towns"].status, feeds["rivers"].records = 500, [{"id": 0, "name": "Elbe"}]
    status, answer = await get(client, "/sync_data?source=all")
    assert (status, answer["status"], answer["code"]) == (502, "failed", "some_not_synced")
    assert answer["detail"] == "Of 2 sources, 1 failed: towns; 1 hold deletions: rivers."
    towns, rivers = answer["sources"]
    assert (towns["status"], towns["error"]) == ("failed", "source_refused")
    assert (rivers["status"], rivers["updated"], rivers["held"]) == ("held", 1, 39)


async def test_a_hold_is_approved_for_its_own_source(client: aiohttp.ClientSession, feeds: dict[str, Feed]) -> None:
    """Whoever approves a run need not name its source."""
    await get(client, "/sync_data?source=all")
    feeds["rivers"].records = []
    status, held = await get(client, "/sync_data?source=rivers")
    assert (status, held["held"]) == (422, 40)
    status, approved = await get(client, held["approve"])
    assert (status, approved["source"], approved["deleted"]) == (200, "rivers", 40)


async def test_what_a_source_cannot_do_is_refused(client: aiohttp.ClientSession) -> None:
    """A mode that the source does not have, and options that are about one source, start nothing."""
    for path in ("?mode=incremental", "?mode=both", "?source=all&dry_run=1", "?source=all&mode=snapshot"):
        assert (await get(client, f"/sync_data{path}"))[0] == 400
    assert (await get(client, "/runs"))[1]["runs"] == []
