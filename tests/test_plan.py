"""Plans and verifications: they look, and write nothing at all."""

from __future__ import annotations

from typing import Any

import pytest

from errors import PlanStale, SchemaConflict, SourceRefused
from models import Counts, Difference
from store import runs
from sync import plan_data, verify_data
from tests.engine import Engine
from tests.feed_server import Answer

BEFORE: list[dict[str, Any]] = [{"id": number, "a": number, "b": "x"} for number in range(1, 6)]
AFTER: list[dict[str, Any]] = [*BEFORE[:3], {"id": 4, "a": 40, "c": True}, {"id": 6, "a": 6, "b": "new"}]

EVERYTHING = """SELECT (SELECT array_agg(r::text ORDER BY id) FROM lockstep.runs r),
                       (SELECT array_agg((sequencename, last_value)::text ORDER BY sequencename) FROM pg_sequences)"""


async def everything(engine: Engine) -> tuple[Any, ...]:
    """All that a run could leave behind: mirror, journal, state, runs and sequences."""
    return *await engine.written(), await engine.sql.fetchrow(EVERYTHING)


class TestPlan:
    async def test_a_plan_tells_what_a_run_would_do(self, engine: Engine) -> None:
        """A plan has the counts of the run it stands for, and the old and new value of every field that differs."""
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        plan = await plan_data(engine.database, engine.source)
        assert plan.counts == Counts(records=5, created=1, updated=1, deleted=1, unchanged=3)
        assert plan.differences == (
            Difference(key={"id": 6}, op="created", changes={"id": (None, 6), "a": (None, 6), "b": (None, "new")}),
            Difference(key={"id": 5}, op="deleted", changes={"id": (5, None), "a": (5, None), "b": ("x", None)}),
            Difference(key={"id": 4}, op="updated", changes={"a": (4, 40), "b": ("x", None), "c": (None, True)}),
        )
        assert (await engine.sync()).counts == plan.counts

    @pytest.mark.parametrize("loaded", [False, True])
    async def test_a_plan_writes_nothing_at_all(self, engine: Engine, *, loaded: bool) -> None:
        """A plan leaves no row, no column, no run and no used number behind."""
        if loaded:
            await engine.sync(BEFORE)
        before = await everything(engine)
        engine.serve(AFTER)
        await plan_data(engine.database, engine.source)
        assert await everything(engine) == before

    async def test_a_plan_shows_the_deletions_that_would_be_held(self, engine: Engine) -> None:
        """Whoever is to approve deletions sees them first, and may apply just these with the approval."""
        await engine.sync([{"id": number} for number in range(40)])
        engine.serve([{"id": 1}])
        plan = await plan_data(engine.database, engine.source)
        assert (plan.counts.held, plan.counts.deleted) == (39, 0)
        assert {difference.op for difference in plan.differences} == {"deleted"}
        assert len(plan.differences) == 39
        held = await engine.sync()
        approved = await engine.sync(plan=plan.hash, approve=held.run)
        assert approved.counts.deleted == 39
        await engine.check()

    async def test_a_plan_for_a_table_that_is_yet_to_be_made(self, engine: Engine) -> None:
        """The first load can be planned and applied as planned."""
        engine.serve(BEFORE)
        plan = await plan_data(engine.database, engine.source)
        assert plan.counts == Counts(records=5, created=5)
        assert len(plan.differences) == 5
        report = await engine.sync(plan=plan.hash)
        assert report.counts == plan.counts
        await engine.check()

    async def test_a_plan_can_be_applied(self, engine: Engine) -> None:
        """The run that is given the plan's hash does what was planned."""
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        plan = await plan_data(engine.database, engine.source)
        assert (await plan_data(engine.database, engine.source)).hash == plan.hash
        report = await engine.sync(plan=plan.hash)
        assert report.counts == plan.counts
        await engine.check()

    async def test_a_plan_is_stale_when_the_source_has_changed(self, engine: Engine) -> None:
        """A source that moved on is not applied by an old plan."""
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        plan = await plan_data(engine.database, engine.source)
        with pytest.raises(PlanStale):
            await engine.sync([*AFTER[:-1], {"id": 6, "a": 7}], plan=plan.hash)
        assert (await engine.sync(AFTER, plan=plan.hash)).counts == plan.counts

    async def test_a_plan_is_stale_when_the_mirror_has_changed(self, engine: Engine) -> None:
        """A mirror that somebody edited is not what the plan was made for."""
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        plan = await plan_data(engine.database, engine.source)
        await engine.edit("UPDATE {table} SET a = 99 WHERE id = 1")
        with pytest.raises(PlanStale):
            await engine.sync(plan=plan.hash)

    async def test_a_plan_is_stale_once_it_was_applied(self, engine: Engine) -> None:
        """What was done cannot be done again."""
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        plan = await plan_data(engine.database, engine.source)
        await engine.sync(plan=plan.hash)
        with pytest.raises(PlanStale):
            await engine.sync(plan=plan.hash)

    async def test_a_plan_that_does_nothing(self, engine: Engine) -> None:
        """Nothing to do can be planned and applied, but only while there is nothing to do."""
        await engine.sync(BEFORE)
        plan = await plan_data(engine.database, engine.source)
        assert (plan.counts, plan.differences) == (Counts(records=5, unchanged=5), ())
        assert (await engine.sync(plan=plan.hash)).status == "unchanged"
        with pytest.raises(PlanStale):
            await engine.sync(AFTER, plan=plan.hash)
        await engine.sync()
        with pytest.raises(PlanStale):
            await engine.sync(plan="1-00000000deadbeef")

    async def test_a_plan_shows_what_would_be_held(self, engine: Engine) -> None:
        """Deletions that the guard would hold are counted as held."""
        await engine.sync([{"id": number} for number in range(50)])
        engine.serve([{"id": 1}])
        plan = await plan_data(engine.database, engine.source)
        assert plan.counts == Counts(records=1, unchanged=1, held=49)

    async def test_a_plan_shows_a_hundred_differences_and_counts_all(self, engine: Engine) -> None:
        """The differences are capped, the counts are not."""
        engine.serve([{"id": number} for number in range(300)])
        plan = await plan_data(engine.database, engine.source)
        assert (plan.counts.created, len(plan.differences)) == (300, 100)

    async def test_a_plan_fails_where_the_run_would(self, engine: Engine) -> None:
        """Errors of the source and of the schema show in the plan already."""
        engine.configure(on_schema_change="freeze", attempts=1)
        await engine.sync(BEFORE)
        engine.serve(AFTER)
        with pytest.raises(SchemaConflict):
            await plan_data(engine.database, engine.source)
        engine.feed.answers = Answer(status=404)
        with pytest.raises(SourceRefused):
            await plan_data(engine.database, engine.source)


class TestVerify:
    async def test_a_mirror_that_is_right_is_exact(self, engine: Engine) -> None:
        """Every value equals the source's."""
        await engine.sync(BEFORE)
        before = await everything(engine)
        found = await verify_data(engine.database, engine.source)
        assert found.exact
        assert (found.records, found.live_rows, found.differing) == (5, 5, 0)
        assert await everything(engine) == before

    async def lie(self, engine: Engine) -> None:
        """Change rows without anybody noticing, fingerprints least of all."""
        await engine.edit(
            "SET session_replication_role = replica",
            "UPDATE {table} SET a = 99 WHERE id = 1",
            "DELETE FROM {table} WHERE id = 2",
            "INSERT INTO {table} (id, a) VALUES (9, 9)",
            "RESET session_replication_role",
        )

    async def test_fingerprints_that_lie_are_found_out(self, engine: Engine) -> None:
        """Values are compared with values, so that no fingerprint can hide a difference."""
        await engine.sync(BEFORE)
        await self.lie(engine)
        found = await verify_data(engine.database, engine.source)
        assert not found.exact
        assert (found.records, found.live_rows, found.differing) == (5, 5, 3)
        assert {(difference.op, difference.key["id"]) for difference in found.differences} == {
            ("updated", 1),
            ("created", 2),
            ("deleted", 9),
        }

    async def test_a_repair_puts_everything_right(self, engine: Engine) -> None:
        """After `verify --repair` the mirror is exact, and its next run finds nothing."""
        await engine.sync(BEFORE)
        await self.lie(engine)
        assert not (await verify_data(engine.database, engine.source, repair=True)).exact
        assert (await verify_data(engine.database, engine.source)).exact
        newest = (await runs.select_runs(engine.database, limit=1))[0]
        assert newest.counts == Counts(records=5, created=1, updated=1, deleted=1, unchanged=3)
        await engine.check()

    async def test_rejected_records_are_not_exact(self, engine: Engine) -> None:
        """A mirror that lacks a record, because it cannot be stored, is not exact."""
        await engine.sync([*BEFORE, {"id": 9, "b": "\0"}])
        found = await verify_data(engine.database, engine.source)
        assert (found.exact, found.differing) == (False, 0)

    async def test_a_mirror_that_does_not_exist_differs_in_everything(self, engine: Engine) -> None:
        """Without a table, every record is missing."""
        engine.serve(BEFORE)
        found = await verify_data(engine.database, engine.source)
        assert (found.records, found.live_rows, found.differing) == (5, 0, 5)
