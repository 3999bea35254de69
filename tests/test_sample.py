"""The sample feed changes a little on every fetch, for ever, and always within the guard."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from quart import Quart

from config import SAMPLE_PATH
from definitions import Source
from web.sample import catalogue, fetch_version, pinned, sample_blueprint

Snapshot = dict[int, dict[str, Any]]


def snapshot(version: int) -> Snapshot:
    return {record["id"]: record for record in msgspec.json.decode(catalogue(version))}


def client_app(data_dir: Path) -> Quart:
    app = Quart("sample")
    app.register_blueprint(sample_blueprint(path=SAMPLE_PATH, data_dir=data_dir))
    return app


@pytest.mark.parametrize("version", [3, 97, 500, 501, 12_345])
def test_each_version_creates_updates_restores_and_deletes(version: int) -> None:
    """From the third version on every step brings creates, updates, restores and deletes, few enough for the guard."""
    earlier, before, now = snapshot(version - 2), snapshot(version - 1), snapshot(version)
    came, gone = now.keys() - before.keys(), before.keys() - now.keys()
    returned = came & earlier.keys()
    changed = [number for number in now.keys() & before.keys() if now[number] != before[number]]
    assert len(now) == pytest.approx(2_495, abs=2)
    assert len(came - returned) >= 3
    assert len(returned) >= 4
    assert 4 <= len(gone) <= Source.max_delete_rows
    assert 20 <= len(changed) <= 80


def test_a_version_is_always_the_same() -> None:
    """The same version has the same bytes, so that a plan of it can be applied."""
    assert catalogue(7) == catalogue(7)


def test_what_changed_says_so() -> None:
    """A record that changed bears the time of its change, as a real feed would."""
    before, now = snapshot(40), snapshot(41)
    changed = [number for number in now.keys() & before.keys() if now[number] != before[number]]
    assert all(now[number]["updated_at"] > before[number]["updated_at"] for number in changed)


def test_every_json_type_is_there() -> None:
    """The catalogue has what real feeds have: nested objects, arrays, nulls, timestamps, letters of many scripts."""
    records = list(snapshot(1).values())
    kinds = {type(value) for record in records for value in record.values()}
    assert kinds >= {int, float, str, bool, list, dict, type(None)}
    assert any(not record["name"].isascii() for record in records)


async def test_a_fetch_counts_on_and_looking_does_not(tmp_path: Path) -> None:
    """GET brings the next version; HEAD and ?version= show one without moving it on."""
    client = client_app(tmp_path).test_client()

    async def body(query: str = "") -> bytes:
        answer = await client.get(SAMPLE_PATH + query)
        assert answer.status_code == 200
        return await answer.get_data(as_text=False)

    assert await body("?version=next") == catalogue(1)
    assert await body() == catalogue(1)
    assert (await client.head(SAMPLE_PATH)).status_code == 200
    assert await body("?version=current") == catalogue(1)
    assert await body("?version=next") == catalogue(2)
    assert await body() == catalogue(2)


def test_the_count_survives_other_processes_and_rubbish(tmp_path: Path) -> None:
    """Fetches at the same time get different versions; a counter that is no number begins again."""
    counter = tmp_path / "data" / "sample_version"
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: fetch_version(counter, None), range(40)))
    assert sorted(versions) == list(range(1, 41))
    counter.write_text("rubbish")
    assert fetch_version(counter, None) == 1


def test_pinning_changes_the_url_alone() -> None:
    """The pinned sample is the same source at another address."""
    source = Source(name="sample", url="http://127.0.0.1:5001/sample/catalogue")
    moved = pinned(source, "next")
    assert moved.url.endswith("?version=next")
    assert dataclasses.replace(moved, url=source.url) == source
