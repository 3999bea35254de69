"""Scopes: several sources share one table, each sees only its own rows, and their runs go on at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from errors import MirrorBusy, SchemaConflict, SourcePaused, UndoRefused
from models import Report
from store import Database, pauses, runs
from sync import plan_data, verify_data
from tests.engine import Engine, open_engine
from tests.feed_server import FeedServer
from undoing import undo_run

Regions = dict[str, Engine]

QUOTED = """it's 50% \\ "x" :y"""
"""A value in which everything stands that somebody might forget to quote."""


@pytest_asyncio.fixture
async def regions(database: Database, database_url: str) -> AsyncIterator[Regions]:
    """Three sources with feeds of their own, whose table is one."""
    async with AsyncExitStack() as stack:
        engines = {}
        for name in ("eu", "us", QUOTED):
            feed = await stack.enter_async_context(FeedServer())
            options: dict[str, Any] = {"scope": {"region": name}, "key": ("region", "id"), "table": "shared"}
            engine = await stack.enter_async_context(open_engine(database, database_url, feed, **options))
            engine.configure(name=f"of {name}")
            engines[name] = engine
        yield engines


def numbered(numbers: Sequence[int] | range, **values: Any) -> list[dict[str, Any]]:
    """Make records that differ in their key only."""
    return [{"id": number, **(values or {"v": number})} for number in numbers]


async def until_waiting(engine: Engine, *, milliseconds: int = 0) -> None:
    """Wait until a session of the service has waited for a lock, for so long."""
    query = """SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'lockstep'
                  AND datname = current_database() AND clock_timestamp() - query_start > $1 * interval '1 ms'"""
    deadline = time.monotonic() + 10
    while not await engine.sql.fetchval(query, milliseconds):
        assert time.monotonic() < deadline, "nobody waits"
        await asyncio.sleep(0.01)


async def notes(engine: Engine) -> int:
    """Count the foreign writes that some run has yet to take into account."""
    return int(await engine.sql.fetchval("SELECT count(*) FROM lockstep.foreign_writes"))


class TestOwnRows:
    async def test_each_sees_counts_and_deletes_its_own(self, regions: Regions) -> None:
        """The same ids in all scopes are rows of their own, and what vanishes from one feed stays in the others."""
        for engine in regions.values():
            report = await engine.sync(numbered(range(1, 21)))
            assert (report.first_load, report.counts.created, report.table) == (True, 20, "public.shared")
        eu = await regions["eu"].sync(numbered(range(3, 22)))
        assert (eu.counts.created, eu.counts.deleted, eu.counts.unchanged) == (1, 2, 18)
        for engine in regions.values():
            await engine.check()
            verified = await verify_data(engine.database, engine.source)
            assert verified.exact
            assert verified.live_rows == len(engine.records(engine.served))

    async def test_a_plan_tells_of_its_own(self, regions: Regions) -> None:
        """A dry run of one source lists no row of another, and applies as planned."""
        for engine in regions.values():
            await engine.sync(numbered(range(1, 4)))
        us = regions["us"]
        us.serve(numbered([1]))
        plan = await plan_data(us.database, us.source)
        assert [(each.op, each.key) for each in plan.differences] == [
            ("deleted", {"region": "us", "id": 2}),
            ("deleted", {"region": "us", "id": 3}),
        ]
        assert (await us.sync(plan=plan.hash)).counts.deleted == 2

    async def test_the_guard_minds_the_share_of_its_own(self, regions: Regions) -> None:
        """What vanishes is held against the live rows of the scope; runs of other scopes leave the hold as it is."""
        eu, us = regions["eu"], regions["us"]
        await us.sync(numbered(range(1000)))
        await eu.sync(numbered(range(20)))
        held = await eu.sync(numbered(range(5)))
        assert (held.status, held.counts.held) == ("held", 15)
        await us.sync(numbered(range(1, 1000)))
        assert (await eu.sync(approve=held.run)).counts.deleted == 15
        await eu.check()

    async def test_copies_and_a_key_that_repeats(self, regions: Regions) -> None:
        """A first load beside rows of others settles duplicates as any load does, and leaves the others' alone."""
        eu, us = regions["eu"], regions["us"]
        await eu.sync(numbered(range(1, 4)))
        report = await us.sync([*numbered([1, 2]), {"id": 1, "v": 9}])
        assert (report.first_load, report.counts.created, report.counts.duplicates) == (True, 2, 1)
        await us.check(numbered([2]), kept=[{"region": "us", "id": 1, "v": 9}])
        await eu.check()

    async def test_tombstones_of_others_are_not_purged(self, regions: Regions) -> None:
        """A source removes its own old tombstones, whatever others keep."""
        for engine in (regions["eu"], regions["us"]):
            await engine.sync(numbered(range(1, 4)))
            await engine.sync(numbered([1]))
        await regions["eu"].edit(
            "BEGIN; SET LOCAL lockstep.run = 'test';"
            " UPDATE {table} SET _sync_deleted_at = now() - interval '2 days' WHERE id > 1; COMMIT"
        )
        regions["us"].configure(purge_after_days=1)
        await regions["us"].sync_unaccounted()
        left = await regions["eu"].sql.fetch("SELECT region FROM shared WHERE _sync_deleted_at IS NOT NULL")
        assert [row[0] for row in left] == ["eu", "eu"]

    async def test_an_undo_takes_back_and_pauses_its_own(self, regions: Regions) -> None:
        """Undoing a run of one source pauses no other, and no source takes back a run that another scope made."""
        eu, us = regions["eu"], regions["us"]
        for engine in (eu, us):
            await engine.sync(numbered(range(1, 4)))
        run = (await eu.sync(numbered(range(2, 5)))).run
        with pytest.raises(UndoRefused, match="region=eu"):
            await undo_run(us.database, us.source, run)
        await undo_run(eu.database, eu.source, run)
        assert set(await eu.rows()) == {("eu", 1), ("eu", 2), ("eu", 3)}
        with pytest.raises(SourcePaused):
            await eu.sync()
        await us.check()
        await pauses.resume(eu.database, eu.source)
        await eu.sync()
        await eu.check()

    async def test_a_scope_may_be_a_number(self, regions: Regions) -> None:
        """A scope of whole numbers makes a column of whole numbers."""
        for year, engine in zip((2023, 2024), regions.values(), strict=False):
            engine.configure(table="years", scope={"year": year}, key=("year", "id"))
            await engine.sync(numbered([1, 2]))
            await engine.sync(numbered([2, 3]))
            await engine.check()
            assert (await engine.types())["year"] == "bigint"

    async def test_a_column_that_does_not_take_the_scope(self, regions: Regions) -> None:
        """A table of the user's whose column cannot hold the scope's value is left alone, and the error says so."""
        eu = regions["eu"]
        await eu.edit("CREATE TABLE {table} (region integer, id bigint, PRIMARY KEY (region, id))")
        with pytest.raises(SchemaConflict, match="is integer"):
            await eu.sync(numbered([1]))


class TestAtTheSameTime:
    async def test_runs_of_other_scopes_go_on(self, regions: Regions) -> None:
        """While a run of one scope is under way another scope is synced, and the same one is busy."""
        eu, us = regions["eu"], regions["us"]
        async with eu.syncing(numbered(range(5))) as run:
            await us.sync(numbered(range(9)))
            with pytest.raises(MirrorBusy, match=r"public.shared \(region=eu\)"):
                await eu.sync_unaccounted()
        assert (await run).counts.created == 5
        await eu.check()
        await us.check()

    async def test_all_make_the_table_at_once(self, regions: Regions, database: Database, database_url: str) -> None:
        """Of first loads that begin together each ends well, although they differ about the columns and their types."""
        values: list[Any] = [1, 2.5, "text", None, {"x": 1}, 10**30]
        engine = regions["eu"]
        async with AsyncExitStack() as stack:
            shards = []
            for number, value in enumerate(values):
                feed = await stack.enter_async_context(FeedServer())
                shard = await stack.enter_async_context(open_engine(database, database_url, feed))
                shard.source = replace(engine.source, url=feed.url, name=f"{number}", scope={"region": f"{number}"})
                shard.serve(numbered(range(50), v=value, **{f"own_{number % 3}": number}))
                shards.append(shard)
            reports = await asyncio.gather(*(shard.sync_unaccounted() for shard in shards))
            assert [(report.first_load, report.counts.created) for report in reports] == [(True, 50)] * len(values)
            for shard in shards:
                await shard.sync()
                await shard.check()
            assert (await shards[0].types())["v"] == "jsonb"

    async def test_a_column_changes_between_fetch_and_apply(self, regions: Regions) -> None:
        """A run whose table was widened by another scope meanwhile compares by value, and nothing gets lost."""
        eu, us = regions["eu"], regions["us"]
        at = "2024-03-01T08:30:00+02:00"
        for engine in (eu, us):
            await engine.sync(numbered(range(1, 6), v=1, at=at))
        async with eu.syncing(numbered(range(2, 7), v=1, at=at)) as run:
            await us.sync([{"id": 1, "v": 0.5, "at": "soon", "new": True}])
        assert (await run).counts.created == 1
        await eu.check()
        await us.check()
        assert await us.types() == {"region": "text", "id": "bigint", "v": "numeric", "at": "text", "new": "boolean"}

    @pytest.mark.parametrize("loaded", [True, False])
    async def test_a_table_is_rewritten_behind_an_old_view(self, regions: Regions, *, loaded: bool) -> None:
        """A transaction that began before another scope rewrote the table starts over instead of seeing it empty."""
        eu, us = regions["eu"], regions["us"]
        if loaded:
            await eu.sync(numbered(range(1, 4)))
        await us.sync(numbered(range(1, 4)))
        eu.serve(numbered(range(2, 5)))
        async with eu.syncing(eu.records(eu.served)) as run:
            number = await us.sql.fetchval("SELECT id FROM lockstep.runs WHERE status = 'running'")
            locked = us.sql.transaction()
            await locked.start()
            await us.sql.execute("SELECT FROM lockstep.runs WHERE id = $1 FOR UPDATE", number)
            eu.feed.released.set()
            await until_waiting(us)
            await _widen(regions[QUOTED])
            await locked.rollback()
        assert (await run).counts.created == (1 if loaded else 3)
        await eu.check()
        await us.sync()
        await us.check()

    async def test_who_alters_waits_for_who_writes(self, regions: Regions) -> None:
        """A scope that needs another column waits for a run that is writing, however short the lock time-out is."""
        eu, us = regions["eu"], regions["us"]
        for engine in (eu, us):
            await engine.sync(numbered(range(1, 4)))
        impatient = Database(us.database.engine, lock_timeout_seconds=0.01, statement_timeout_seconds=0)
        us.database = impatient
        writing = eu.sql.transaction()
        await writing.start()
        await eu.sql.execute("SELECT FROM lockstep.mirrors WHERE scope = '' FOR SHARE")
        us.serve(numbered([1], v=0.5))
        run = asyncio.create_task(us.sync_unaccounted())
        await until_waiting(eu, milliseconds=50)
        assert not run.done()
        await writing.rollback()
        assert (await run).counts.updated == 1


async def _widen(engine: Engine) -> Report:
    """Have a source rewrite the table."""
    return await engine.sync(numbered([1], v=0.25))


class TestStates:
    async def test_an_edit_by_hand_invalidates_the_answers_of_all(self, regions: Regions) -> None:
        """Whoever comes first takes note of an edit, and still no other scope relies on a 304 before it has looked."""
        engines = list(regions.values())
        for engine in engines:
            engine.serve(numbered(range(1, 4)), etag='"1"')
            await engine.sync()
            assert (await engine.sync()).not_modified
        await engines[0].edit("UPDATE {table} SET v = 0 WHERE id = 1", "DELETE FROM {table} WHERE id = 2")
        for engine in reversed(engines):
            healed = await engine.sync()
            assert (healed.not_modified, healed.counts.updated, healed.counts.created) == (False, 1, 1)
            assert (await engine.sync()).not_modified
        assert await notes(engines[0]) == 0

    async def test_two_take_note_of_an_edit_at_once(self, regions: Regions) -> None:
        """Runs that take the same note into account at the same time both end well."""
        engines = list(regions.values())
        for engine in engines:
            engine.serve(numbered(range(1, 4)), etag='"1"')
            await engine.sync()
        await engines[0].edit("UPDATE {table} SET v = 0")
        reports = await asyncio.gather(*(engine.sync_unaccounted() for engine in engines))
        assert [report.counts.updated for report in reports] == [3, 3, 3]
        for engine in engines:
            await engine.sync()
            assert (await engine.sync()).not_modified

    async def test_a_dead_run_is_in_the_way_of_its_own(self, regions: Regions) -> None:
        """Runs that were left behind, of whichever scope, and a paused scope stop nobody else."""
        eu, us = regions["eu"], regions["us"]
        left = """INSERT INTO lockstep.runs (source, mirror, scope, owner, lease_until)
                  VALUES ('x', $1, $2, 'elsewhere/1/1/1.00', now() - interval '1 second')"""
        for engine in (eu, us):
            await engine.sql.execute(left, engine.mirror, engine.source.scope_id)
        await pauses.pause(us.database, us.source, reason="test")
        await eu.sync(numbered([1]))
        assert [run.status for run in await runs.select_runs(eu.database)] == [
            "succeeded",
            "interrupted",
            "interrupted",
        ]
