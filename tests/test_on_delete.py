"""What becomes of rows whose records have vanished: nothing is left of them, or they stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from errors import UndoRefused
from models import Counts
from store import history, pauses
from sync import plan_data, verify_data
from tests.engine import Engine, difference
from undoing import undo_run

MIXED = {"name": "ü", "price": 0.1, "at": "2024-03-01T08:30:00+00:00", "tags": {"a": [1, None]}, "none": None}


def numbered(numbers: Iterable[int], **values: Any) -> list[dict[str, Any]]:
    """Make records that differ in their key only."""
    return [{"id": number, **(values or {"v": 0})} for number in numbers]


async def ids(engine: Engine) -> list[int]:
    """Return all ids in the table, those of tombstones included."""
    return [row[0] for row in await engine.sql.fetch(f"SELECT id FROM {engine.table} ORDER BY id")]


class TestHard:
    @pytest.fixture(autouse=True)
    def hard(self, engine: Engine) -> None:
        """Have nothing left of what vanished."""
        engine.configure(on_delete="hard")

    async def test_nothing_is_left_but_the_journal(self, engine: Engine) -> None:
        """A vanished row is removed and journaled with its values; if its record comes back, it is created."""
        await engine.sync(numbered(range(1, 6), **MIXED))
        report = await engine.sync(numbered(range(1, 4), **MIXED))
        assert report.counts == Counts(records=3, deleted=2, unchanged=3)
        assert await ids(engine) == [1, 2, 3]
        await engine.check()
        told = await history.select_row_history(engine.database, engine.source, ["4"])
        assert told is not None
        assert [change.op for change in told.changes] == ["deleted"]
        assert told.changes[0].changes["name"] == ("ü", None)
        assert (await engine.sync(numbered(range(1, 6), **MIXED))).counts.created == 2
        await engine.check()

    async def test_the_guard_and_rejected_records_hold_as_ever(self, engine: Engine) -> None:
        """Deletions above the limits are held until they are approved, and a rejected record keeps its row."""
        engine.configure(max_delete_rows=1)
        await engine.sync(numbered(range(1, 6)))
        held = await engine.sync([{"id": 1, "v": 0}, {"id": 2, "v": "\0"}])
        assert (held.status, held.counts.held, await ids(engine)) == ("held", 3, [1, 2, 3, 4, 5])
        assert (await engine.sync(approve=held.run)).counts.deleted == 3
        assert await ids(engine) == [1, 2]

    async def test_an_undo_inserts_them_again(self, engine: Engine) -> None:
        """Undo puts removed rows back with all their values, removes created ones, and can be undone itself."""
        await engine.sync(numbered(range(1, 6), **MIXED))
        before = await engine.state()
        run = await engine.sync([*numbered([1, 2, 6], **MIXED), {"id": 3, "name": "new"}])
        after = await engine.state()
        undone = await undo_run(engine.database, engine.source, run.run)
        assert undone.counts == Counts(created=2, updated=1, deleted=1)
        assert await engine.state() == before
        assert await engine.journal(undone.run) == difference(after, before, hard=True)
        await undo_run(engine.database, engine.source, undone.run)
        assert await engine.state() == after
        assert (await verify_data(engine.database, engine.source)).exact
        await pauses.resume(engine.database, engine.source)
        await engine.sync()
        await engine.check()

    async def test_an_undo_minds_what_has_changed_since(self, engine: Engine) -> None:
        """Rows that somebody inserted in the place of removed ones stand in the way of an undo."""
        await engine.sync(numbered(range(1, 4)))
        run = await engine.sync(numbered([1]))
        await engine.edit("INSERT INTO {table} (id, v) VALUES (2, 7)")
        with pytest.raises(UndoRefused, match="not as it left them"):
            await undo_run(engine.database, engine.source, run.run)

    async def test_tombstones_from_before_stay_until_they_are_purged(self, engine: Engine) -> None:
        """A source that left tombstones before keeps those; a record that comes back restores its row."""
        engine.configure(on_delete="soft")
        await engine.sync(numbered(range(1, 4)))
        await engine.sync(numbered([1]))
        engine.configure(on_delete="hard")
        report = await engine.sync(numbered([2, 3]))
        assert (report.counts.restored, report.counts.deleted, await ids(engine)) == (2, 1, [2, 3])


class TestIgnore:
    @pytest.fixture(autouse=True)
    def ignore(self, engine: Engine) -> None:
        """Have rows stay whatever vanishes."""
        engine.configure(on_delete="ignore", max_delete_rows=0, max_delete_share=0)

    async def test_rows_stay_as_they_are(self, engine: Engine) -> None:
        """What vanished is neither deleted nor held, and a run over an unchanged feed writes nothing."""
        old = numbered(range(4, 21))
        await engine.sync([*numbered(range(1, 4)), *old])
        report = await engine.sync(numbered(range(1, 4)))
        assert (report.status, report.counts) == ("unchanged", Counts(records=3, unchanged=3))
        await engine.check(kept=old)
        report = await engine.sync([{"id": 1, "v": 1}, {"id": 21, "v": 0}])
        assert report.counts == Counts(records=2, created=1, updated=1)
        await engine.check(kept=[*numbered([2, 3]), *old])
        verified = await verify_data(engine.database, engine.source)
        assert (verified.exact, verified.records, verified.live_rows) == (True, 2, 21)
        assert (await plan_data(engine.database, engine.source)).differences == ()

    async def test_an_empty_snapshot_and_rejected_records_hold_nothing(self, engine: Engine) -> None:
        """Where nothing is deleted, there is nothing to hold: not for want of records, nor of a key."""
        await engine.sync(numbered(range(1, 4)))
        assert (await engine.sync([])).status == "unchanged"
        assert (await engine.sync([*numbered([4]), {"v": 1}])).status == "succeeded"
        assert await ids(engine) == [1, 2, 3, 4]

    async def test_a_304_is_relied_on(self, engine: Engine) -> None:
        """Rows without a record are no work left undone."""
        await engine.sync(numbered(range(1, 4)))
        engine.serve(numbered([1]), etag='"1"')
        await engine.sync()
        assert (await engine.sync()).not_modified

    async def test_an_edit_is_mended_where_there_is_a_record(self, engine: Engine) -> None:
        """A row that was edited by hand gets its record's values back; one without a record stays as it was edited."""
        await engine.sync(numbered(range(1, 4)))
        await engine.sync(numbered([1, 2]))
        await engine.edit("UPDATE {table} SET v = 9 WHERE id > 1")
        assert (await engine.sync()).counts.updated == 1
        await engine.check(kept=numbered([3], v=9))
