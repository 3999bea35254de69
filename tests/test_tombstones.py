"""Tombstones are kept, or purged once they are old enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from structlog.testing import capture_logs

import sync
from config import load_settings
from errors import SettingError, SourceError, UndoRefused
from tests.engine import Engine
from undoing import undo_run

DAY = 86_400


def numbered(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Make records that differ in their key only."""
    return [{"id": number, "v": 0} for number in numbers]


async def bury(engine: Engine, *, days_ago: float) -> int:
    """Mirror 1 to 5, let 4 and 5 vanish, and date their deletion back; return the run."""
    await engine.sync(numbered(range(1, 6)))
    run = (await engine.sync(numbered(range(1, 4)))).run
    ago = f"now() - interval '{days_ago * DAY} seconds'"
    await engine.edit(
        f"BEGIN; SET LOCAL lockstep.run = 'test'; UPDATE {{table}} SET _sync_deleted_at = {ago} WHERE id > 3; COMMIT"
    )
    return run


async def ids(engine: Engine) -> list[int]:
    """Return all ids in the table."""
    return [row[0] for row in await engine.sql.fetch("SELECT id FROM my_data ORDER BY id")]


async def test_they_are_kept_by_default(engine: Engine) -> None:
    """Unless told otherwise a run removes no row, however old its tombstone is."""
    await bury(engine, days_ago=10_000)
    await engine.sync()
    assert await ids(engine) == [1, 2, 3, 4, 5]


async def test_old_ones_are_purged(engine: Engine) -> None:
    """A run that ended well removes tombstones that are older than PURGE_AFTER_DAYS, and no others."""
    await bury(engine, days_ago=30.1)
    engine.configure(purge_after_days=30)
    await engine.sync_unaccounted()
    assert await ids(engine) == [1, 2, 3]
    await bury(engine, days_ago=29.9)
    await engine.sync_unaccounted()
    assert await ids(engine) == [1, 2, 3, 4, 5]


async def test_a_purge_is_no_foreign_write(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a purge of many a 304 is still relied on, the journal is as it was, and the log tells the count."""
    monkeypatch.setattr(sync, "PURGED_AT_ONCE", 1)
    await bury(engine, days_ago=2)
    engine.configure(purge_after_days=1)
    engine.serve(numbered(range(1, 4)), etag='"1"')
    with capture_logs() as logs:
        await engine.sync_unaccounted()
    assert [line["rows"] for line in logs if line["event"] == "tombstones_purged"] == [2]
    journal = await engine.sql.fetchval("SELECT count(*) FROM lockstep.changes")
    assert (await engine.sync_unaccounted()).not_modified
    assert await engine.sql.fetchval("SELECT count(*) FROM lockstep.changes") == journal == 2


async def test_they_are_purged_behind_a_304_too(engine: Engine) -> None:
    """Tombstones grow old while a source does not change, and go all the same."""
    engine.configure(purge_after_days=1)
    await bury(engine, days_ago=0)
    engine.serve(numbered(range(1, 4)), etag='"1"')
    await engine.sync_unaccounted()
    await engine.edit(
        "BEGIN; SET LOCAL lockstep.run = 'test';"
        " UPDATE {table} SET _sync_deleted_at = now() - interval '2 days' WHERE id > 3; COMMIT"
    )
    assert (await engine.sync_unaccounted()).not_modified
    assert await ids(engine) == [1, 2, 3]


async def test_a_run_that_failed_or_is_held_purges_nothing(engine: Engine) -> None:
    """Only a run that ended well removes anything."""
    await bury(engine, days_ago=2)
    engine.configure(purge_after_days=1, attempts=1, max_delete_rows=0, max_delete_share=0)
    assert (await engine.sync(numbered([1]))).status == "held"
    with pytest.raises(SourceError):
        await engine.sync(b"[")
    assert await ids(engine) == [1, 2, 3, 4, 5]


async def test_a_purged_record_that_comes_back_is_created(engine: Engine) -> None:
    """What was purged is unknown: it is created anew, and the run that had deleted it cannot be undone."""
    run = await bury(engine, days_ago=2)
    engine.configure(purge_after_days=1)
    await engine.sync_unaccounted()
    with pytest.raises(UndoRefused, match="not as it left them"):
        await undo_run(engine.database, engine.source, run)
    engine.configure(purge_after_days=None)
    report = await engine.sync(numbered(range(1, 6)))
    assert report.counts.created == 2
    await engine.check()


async def test_a_purge_that_fails_does_not_fail_the_run(engine: Engine) -> None:
    """The run has ended well before the purge begins; the log tells why nothing was purged."""
    await bury(engine, days_ago=2)
    engine.configure(purge_after_days=1)
    await engine.edit(
        "CREATE TABLE refers (id bigint REFERENCES my_data)",
        "INSERT INTO refers VALUES (4)",
    )
    with capture_logs() as logs:
        report = await engine.sync_unaccounted()
    assert report.status == "unchanged"
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["tombstones_not_purged"]
    assert await ids(engine) == [1, 2, 3, 4, 5]


async def test_without_a_table_nothing_is_purged(engine: Engine) -> None:
    """A first snapshot without records leaves no table, and so nothing to purge."""
    engine.configure(purge_after_days=1)
    with capture_logs() as logs:
        await engine.sync([])
    assert not [line for line in logs if line["log_level"] == "warning"]


def test_the_setting_must_be_positive() -> None:
    """PURGE_AFTER_DAYS takes days and parts of days, but not none of them."""
    assert load_settings(purge_after_days="0.5").source().purge_after_days == 0.5
    with pytest.raises(SettingError, match="PURGE_AFTER_DAYS"):
        load_settings(purge_after_days=0)
