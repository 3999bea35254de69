"""The guard: deletions that look like a broken source are held until somebody approves them."""

from __future__ import annotations

from typing import Any

import pytest

from errors import ApprovalRefused, SourceRefused
from models import Counts
from store import runs
from tests.engine import Engine
from tests.feed_server import Answer


def numbered(*ids: int, a: Any = 1) -> list[dict[str, Any]]:
    """Make records that differ in their key only."""
    return [{"id": number, "a": a} for number in ids]


class TestHold:
    async def test_deletions_above_both_limits_are_held(self, engine: Engine) -> None:
        """Deletions over the number and over the share are held; creations and updates of the run are applied."""
        await engine.sync(numbered(*range(50)))
        report = await engine.sync([*numbered(*range(39), a=1)[1:], {"id": 0, "a": 2}, {"id": 100, "a": 1}])
        assert report.status == "held"
        assert report.counts == Counts(records=40, created=1, updated=1, unchanged=38, held=11)
        assert report.cause is not None
        assert "11 of 50 live rows (22%) would be deleted" in report.cause
        await engine.check(kept=numbered(*range(39, 50)))

    @pytest.mark.parametrize(("live", "gone"), [(50, 10), (200, 20)])
    async def test_deletions_within_either_limit_are_carried_out(self, engine: Engine, live: int, gone: int) -> None:
        """A deletion needs to exceed both limits to be held."""
        await engine.sync(numbered(*range(live)))
        report = await engine.sync(numbered(*range(gone, live)))
        assert report.counts.deleted == gone
        await engine.check()

    async def test_tombstones_do_not_count_in_the_share(self, engine: Engine) -> None:
        """The share is one of the live rows."""
        engine.configure(max_delete_rows=0, max_delete_share=0.5)
        await engine.sync(numbered(*range(10)))
        await engine.sync(numbered(*range(5)))
        report = await engine.sync(numbered(*range(2)))
        assert (report.status, report.counts.held) == ("held", 3)
        await engine.check(kept=numbered(2, 3, 4))

    async def test_an_empty_snapshot_is_held(self, engine: Engine) -> None:
        """No records over live rows are held however few these are."""
        await engine.sync(numbered(1, 2))
        report = await engine.sync([])
        assert (report.status, report.counts.held) == ("held", 2)
        await engine.check(kept=numbered(1, 2))

    async def test_an_empty_snapshot_may_be_allowed(self, engine: Engine) -> None:
        """A source that says so may empty its mirror."""
        engine.configure(allow_empty=True)
        await engine.sync(numbered(*range(50)))
        report = await engine.sync([])
        assert report.counts == Counts(deleted=50)
        await engine.check()
        await engine.sync(numbered(*range(50)))
        await engine.check()

    async def test_a_hold_ends_when_the_records_return(self, engine: Engine) -> None:
        """When the source recovers, nothing was lost and nothing is held any more."""
        await engine.sync(numbered(*range(50)))
        await engine.sync(numbered(1))
        report = await engine.sync(numbered(*range(50)))
        assert (report.status, report.counts.held) == ("unchanged", 0)
        await engine.check()


class TestApproval:
    async def test_an_approval_carries_the_deletions_out(self, engine: Engine) -> None:
        """The approved run fetches again and deletes what was held."""
        await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(1, 2))
        fetched = len(engine.feed.requests)
        report = await engine.sync(approve=held.run)
        assert (report.status, report.approves) == ("succeeded", held.run)
        assert report.counts == Counts(records=2, unchanged=2, deleted=48)
        assert len(engine.feed.requests) == fetched + 1
        await engine.check()

    async def test_an_approval_covers_an_empty_snapshot(self, engine: Engine) -> None:
        """A mirror may be emptied by approval."""
        await engine.sync(numbered(1, 2))
        held = await engine.sync([])
        assert (await engine.sync(approve=held.run)).counts == Counts(deleted=2)
        await engine.check()

    async def test_an_approval_covers_unreadable_keys(self, engine: Engine) -> None:
        """Deletions that were held because of a record without a key can be approved too."""
        await engine.sync(numbered(1, 2))
        held = await engine.sync([{"id": 1, "a": 1}, {"a": 1}])
        assert (await engine.sync(approve=held.run)).counts.deleted == 1
        await engine.check_idle()

    async def test_an_approval_is_good_for_the_number_that_was_shown(self, engine: Engine) -> None:
        """If more would be deleted by now than was shown, all are held again."""
        await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(*range(30)))
        report = await engine.sync(numbered(*range(29)), approve=held.run)
        assert (report.status, report.counts.held, report.counts.deleted) == ("held", 21, 0)
        assert report.cause == "21 rows would be deleted, 20 were approved"
        assert (await engine.sync(approve=report.run)).counts.deleted == 21
        await engine.check()

    async def test_fewer_deletions_than_approved_are_carried_out(self, engine: Engine) -> None:
        """Rows that came back meanwhile are not deleted for having been shown."""
        await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(*range(30)))
        report = await engine.sync(numbered(*range(40)), approve=held.run)
        assert report.counts.deleted == 10
        await engine.check()

    async def test_an_approval_is_good_for_one_run(self, engine: Engine) -> None:
        """A hold that was released cannot be released again."""
        await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(*range(30)))
        await engine.sync(approve=held.run)
        with pytest.raises(ApprovalRefused):
            await engine.sync(numbered(1), approve=held.run)

    async def test_an_approved_run_that_fails_uses_nothing_up(self, engine: Engine) -> None:
        """The approval counts when the deletions were carried out, not when it was tried."""
        await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(*range(30)))
        engine.feed.answers = Answer(status=404)
        with pytest.raises(SourceRefused):
            await engine.sync(approve=held.run)
        await engine.sync(numbered(*range(30)), approve=held.run)
        await engine.check()

    async def test_only_the_newest_hold_can_be_approved(self, engine: Engine) -> None:
        """What an older run had shown is not what would happen now."""
        await engine.sync(numbered(*range(50)))
        older = await engine.sync(numbered(*range(30)))
        newer = await engine.sync(numbered(*range(20)))
        with pytest.raises(ApprovalRefused, match=f"Run {newer.run} of public.my_data has come since run {older.run}"):
            await engine.sync(approve=older.run)
        await engine.sync(approve=newer.run)
        await engine.check()

    async def test_only_holds_can_be_approved(self, engine: Engine) -> None:
        """A run that held nothing, one of another mirror, and none at all are refused, and leave no run behind."""
        done = await engine.sync(numbered(*range(50)))
        held = await engine.sync(numbered(1))
        before = await runs.select_runs(engine.database)
        for wrong in (done.run, 99):
            with pytest.raises(ApprovalRefused):
                await engine.sync(approve=wrong)
        engine.configure(table="other")
        with pytest.raises(ApprovalRefused):
            await engine.sync(approve=held.run)
        assert await runs.select_runs(engine.database) == before
