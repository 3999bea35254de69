"""Taking a run back: what it changed is as it was before, and stays so until the source is resumed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from app import create_app
from config import load_settings
from errors import MirrorBusy, NotFound, SourceIncomplete, SourcePaused, UndoRefused
from models import Counts, Report
from store import pauses, runs
from store.undo import undone_by
from sync import plan_data, verify_data
from tests.engine import Engine, State, difference
from tests.feed_server import Answer, Truncate
from tests.service import free_port, get, serve_feed, served
from tests.test_cli import Shell
from undoing import undo_run

Records = Sequence[Mapping[str, Any]]

BEFORE: list[dict[str, Any]] = [{"id": number, "name": f"n{number}", "price": number + 0.5} for number in range(1, 7)]
AFTER: list[dict[str, Any]] = [
    {"id": 1, "name": "new", "price": None},
    *BEFORE[2:6],
    {"id": 7, "name": "n7", "price": 1},
]
"""Of BEFORE without 6: updates 1, deletes 2, restores 6, creates 7."""


async def run_of_all_kinds(engine: Engine) -> Report:
    """Load rows, and run what creates, updates, restores and deletes one each."""
    await engine.sync(BEFORE)
    await engine.sync(BEFORE[:5])
    return await engine.sync(AFTER)


async def undo(engine: Engine, report: Report) -> Report:
    """Undo a run, and hold counts and journal against what became of the rows."""
    before = await engine.state()
    undone = await undo_run(engine.database, engine.source, report.run)
    after = await engine.state()
    assert await engine.journal(undone.run) == difference(before, after)
    assert (undone.status, undone.undoes) == ("succeeded", report.run)
    return undone


def live(state: State) -> dict[Any, Any]:
    """Return the live rows of a state."""
    return {key: row.values for key, row in state.rows.items() if not row.deleted}


async def resume(engine: Engine) -> None:
    """Let the source be synced again."""
    assert await pauses.resume(engine.database, engine.source)


class TestUndo:
    async def test_every_kind_of_change_is_taken_back(self, engine: Engine) -> None:
        """Created and restored rows are soft-deleted, deleted ones restored, updated ones get their old values."""
        await engine.sync(BEFORE)
        await engine.sync(BEFORE[:5])
        before = await engine.state()
        run = await engine.sync(AFTER)
        undone = await undo(engine, run)
        assert live(await engine.state()) == live(before)
        assert undone.counts == Counts(updated=1, restored=1, deleted=2)

    async def test_a_field_may_have_any_name(self, engine: Engine) -> None:
        """Fields, and keys, may be called what the statements call their own tables and columns."""
        names = ("m", "u", "e", "n", "c", "f", "r", "o", "mine", "live", "found", "was", "wanted", "changes", "names")
        for key in ("key", "op", "seq", "m", "k", "value"):
            engine.configure(key=(key,), table=f"by_{key}")
            others = [name for name in names if name != key]
            await engine.sync([{key: number, **dict.fromkeys(others, "old")} for number in range(4)])
            before = await engine.state()
            run = await engine.sync([{key: number, **dict.fromkeys(others, "new")} for number in range(1, 5)])
            await undo(engine, run)
            assert live(await engine.state()) == live(before)

    async def test_the_next_sync_brings_the_feed_back(self, engine: Engine) -> None:
        """Once the source is resumed a sync does all of it again, also when the source would answer 304."""
        run = await run_of_all_kinds(engine)
        engine.serve(AFTER, etag='"1"')
        await engine.sync()
        assert (await engine.sync()).not_modified
        await undo(engine, run)
        await resume(engine)
        report = await engine.sync()
        assert not report.not_modified
        assert report.counts == Counts(records=6, updated=1, restored=2, deleted=1, unchanged=3)
        await engine.check()

    async def test_an_undo_can_be_undone(self, engine: Engine) -> None:
        """Undoing the undo brings the run's values back, and undoing that takes them away again."""
        first = await run_of_all_kinds(engine)
        states = [await engine.state()]
        for _ in range(3):
            first = await undo(engine, first)
            states.append(await engine.state())
        assert live(states[2]) == live(states[0])
        assert live(states[3]) == live(states[1])
        await resume(engine)
        await engine.sync()
        await engine.check(AFTER)

    async def test_runs_are_undone_one_after_the_other(self, engine: Engine) -> None:
        """When the later runs were undone, an earlier one of the same rows can be undone, too."""
        engine.configure(max_delete_rows=100)
        generator = random.Random(7)
        states, done = [], []
        for _ in range(6):
            snapshot = [{"id": i, "v": generator.choice([1, 2, None])} for i in range(30) if generator.random() < 0.6]
            done.append(await engine.sync(snapshot))
            states.append(live(await engine.state()))
        for report in reversed(done[1:]):
            await undo(engine, report)
            states.pop()
            assert live(await engine.state()) == states[-1]
        await resume(engine)
        await engine.sync()
        await engine.check()

    async def test_values_of_all_types_come_back_exactly(self, engine: Engine) -> None:
        """Numbers beyond a double, instants, text, JSON and the user's own types get back the very values they had."""
        await engine.edit(
            "CREATE TABLE my_data (id bigint PRIMARY KEY, big numeric, exact numeric(12,4), small real, at timestamptz,"
            " day date, words text[], code char(4), doc json, own text DEFAULT 'mine', uid uuid, span interval)"
        )
        one = {
            "id": 1, "big": 123456789012345678901234567890, "exact": 1.2345, "small": 0.25,
            "at": "2024-02-29T12:34:56.789012Z", "day": "2024-02-29", "words": ["a", "b,c", None, '"'], "code": "ab",
            "doc": {"a": [1, None, {"b": 1e30}]}, "uid": "6f1c6a2e-6d4f-4d8e-9d5b-0f2f4d1c9a11", "span": "1 day",
            "free": {"deep": [None, {"x": 0.1}]}, "n'u:l": None, "col:on": "x", "quo\"te": "y",
        }  # fmt: skip
        await engine.sync([one])
        before = await engine.state()
        run = await engine.sync([{"id": 1, "n'u:l": 3}])
        await undo(engine, run)
        assert live(await engine.state()) == {(1,): {**live(before)[(1,)], "n'u:l": None}}
        await undo(engine, await engine_last(engine))

    async def test_composite_keys_work(self, engine: Engine) -> None:
        """Rows are found by all fields of their key, whatever their columns are called."""
        engine.configure(key=("a:b", "ctid"))
        one = [{"a:b": "x", "ctid": 1, "v": 1}, {"a:b": "x", "ctid": 2, "v": 2}]
        await engine.sync(one)
        await undo(engine, await engine.sync([{**one[0], "v": 9}]))
        assert await engine.rows() == {("x", 1): one[0], ("x", 2): one[1]}

    async def test_rows_of_others_are_left_alone(self, engine: Engine) -> None:
        """Rows that the run did not touch, and values that it did not change, stay as somebody has edited them."""
        run = await run_of_all_kinds(engine)
        await engine.edit(
            "ALTER TABLE {table} ADD COLUMN own text DEFAULT 'mine'",
            "UPDATE {table} SET name = 'edited', own = 'yours' WHERE id = 3",
            "UPDATE {table} SET own = 'yours' WHERE id = 1",
        )
        await undo(engine, run)
        rows = await engine.sql.fetch("SELECT id, name, own FROM my_data WHERE id IN (1, 3) ORDER BY id")
        assert [tuple(row) for row in rows] == [(1, "n1", "yours"), (3, "edited", "yours")]


async def engine_last(engine: Engine) -> Report:
    """Return the newest run."""
    return (await runs.select_runs(engine.database, limit=1))[0]


class TestRefusals:
    async def refused(self, engine: Engine, run: int, match: str) -> UndoRefused:
        """Assert that an undo is refused and writes nothing."""
        written = await engine.written()
        with pytest.raises(UndoRefused, match=match) as caught:
            await undo_run(engine.database, engine.source, run)
        assert await engine.written() == written
        return caught.value

    async def test_rows_that_later_runs_touched(self, engine: Engine) -> None:
        """A run is not undone when later ones touched its rows; they are named, ten rows of them."""
        records = [{"id": number, "v": 0} for number in range(12)]
        await engine.sync(records)
        run = await engine.sync([{**record, "v": 1} for record in records])
        second = await engine.sync([{**record, "v": 2} for record in records])
        third = await engine.sync([{"id": 0, "v": 3}, *({**record, "v": 2} for record in records[1:])])
        error = await self.refused(engine, run.run, f"run {second.run}, {third.run}")
        assert error.cause.count("id = ") == 10
        assert "12 of the rows" in error.cause
        await undo(engine, third)

    @pytest.mark.parametrize(
        "edit",
        [
            "UPDATE {table} SET name = 'edited' WHERE id = 1",
            "UPDATE {table} SET price = 1 WHERE id = 1",
            "UPDATE {table} SET _sync_deleted_at = now() WHERE id = 1",
            "DELETE FROM {table} WHERE id = 1",
            "UPDATE {table} SET name = NULL WHERE id = 7",
            "DELETE FROM {table} WHERE id = 2",
            "UPDATE {table} SET _sync_deleted_at = NULL WHERE id = 2",
            "UPDATE {table} SET _sync_deleted_at = now() WHERE id = 6",
        ],
    )
    async def test_rows_that_were_edited(self, engine: Engine, edit: str) -> None:
        """A run is not undone when somebody has edited or removed one of its rows since."""
        run = await run_of_all_kinds(engine)
        await engine.edit(edit)
        error = await self.refused(engine, run.run, "not as it left them")
        assert f"id = {edit.rsplit(maxsplit=1)[-1]}" in error.cause

    async def test_runs_that_left_nothing_to_undo(self, engine: Engine) -> None:
        """A first load, an unchanged run, a failed one and one of another table are refused, each with its reason."""
        first = await engine.sync(BEFORE)
        error = await self.refused(engine, first.run, "first load")
        assert "by hand" in error.remedy
        unchanged = await engine.sync()
        await self.refused(engine, unchanged.run, "changed nothing")
        engine.feed.answers = Answer(body=b"[1", fault=Truncate(at=1))
        engine.configure(attempts=1)
        with pytest.raises(SourceIncomplete) as caught:
            await engine.sync()
        await self.refused(engine, caught.value.run or 0, "changed nothing")
        run = await engine.sync(BEFORE[:5])
        engine.configure(table="another")
        await self.refused(engine, run.run, "public.my_data")
        with pytest.raises(NotFound):
            await undo_run(engine.database, engine.source, 10_000)

    async def test_a_run_that_was_undone(self, engine: Engine) -> None:
        """A run is undone once; to redo it is to undo the undo."""
        run = await run_of_all_kinds(engine)
        undone = await undo(engine, run)
        error = await self.refused(engine, run.run, "already")
        assert f"undo run {undone.run}" in error.remedy

    async def test_columns_that_are_gone(self, engine: Engine) -> None:
        """A run is not undone when a column that it wrote was dropped."""
        run = await run_of_all_kinds(engine)
        await engine.edit("ALTER TABLE {table} DROP COLUMN name CASCADE")
        await self.refused(engine, run.run, "changed name")

    async def test_columns_that_cannot_hold_the_values(self, engine: Engine) -> None:
        """A run is not undone when a column has become too narrow for the old values."""
        await engine.sync([{"id": 1, "price": 1.25}])
        run = await engine.sync([{"id": 1, "price": 2}])
        await engine.edit(
            "DROP VIEW my_data_live",
            "DROP TRIGGER lockstep_forget ON {table}",
            "ALTER TABLE {table} ALTER COLUMN price TYPE numeric(5,1)",
        )
        await self.refused(engine, run.run, "old values")

    async def test_a_mirror_that_is_busy(self, engine: Engine) -> None:
        """While a run is under way none is undone."""
        run = await run_of_all_kinds(engine)
        async with engine.syncing(AFTER):
            with pytest.raises(MirrorBusy):
                await undo_run(engine.database, engine.source, run.run)


class TestPause:
    async def test_an_undo_pauses_the_source(self, engine: Engine) -> None:
        """After an undo nothing is synced, whoever asks, until the source is resumed; looking is allowed."""
        run = await run_of_all_kinds(engine)
        undone = await undo(engine, run)
        written = await engine.written()
        with pytest.raises(SourcePaused, match=f"run {undone.run} undid run {run.run}") as caught:
            await engine.sync()
        assert "cli.py resume" in caught.value.remedy
        assert (await plan_data(engine.database, engine.source)).counts.updated == 1
        assert (await verify_data(engine.database, engine.source)).differing == 4
        assert await engine.written() == written
        assert (await engine_last(engine)).run == undone.run
        await resume(engine)
        assert not await pauses.resume(engine.database, engine.source)
        await engine.sync()
        await engine.check(AFTER)

    async def test_a_pause_stops_a_run_under_way(self, engine: Engine) -> None:
        """A run that has not begun to write when the source is paused writes nothing."""
        await engine.sync(BEFORE)
        async with engine.syncing(AFTER) as run:
            assert await pauses.pause(engine.database, engine.source, reason="maintenance")
            assert not await pauses.pause(engine.database, engine.source, reason="again")
            written = await engine.written()
            engine.feed.released.set()
            with pytest.raises(SourcePaused, match="maintenance"):
                await run
        assert await engine.written() == written

    async def test_a_source_can_be_paused_before_its_first_run(self, engine: Engine) -> None:
        """A pause needs no mirror, and the first load after it is like any other."""
        await pauses.pause(engine.database, engine.source, reason="not yet")
        with pytest.raises(SourcePaused):
            await engine.sync(BEFORE)
        await resume(engine)
        assert (await engine.sync()).first_load
        await engine.check(BEFORE)


def test_undone_runs_are_told_by_the_undos_that_stand() -> None:
    """An undo that was undone itself undoes nothing; the newest ones are looked at first."""
    assert undone_by([(5, 4), (4, 3)]) == {4: 5}
    assert undone_by([(6, 5), (5, 4), (4, 3)]) == {5: 6, 3: 4}
    assert undone_by([(8, 2), (7, 1)]) == {2: 8, 1: 7}


class TestCallers:
    async def test_over_http(self, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`POST /runs/ID/undo` undoes, `/sync_data` then answers 409 and why, `POST /sources/NAME/resume` ends that."""
        monkeypatch.chdir(tmp_path)
        async with serve_feed() as feed:
            given = {"source_url": feed.url, "database_url": database_url, "settle_seconds": 0}
            async with served(create_app(load_settings(**given))) as client:
                await get(client, "/sync_data")
                feed.records[0]["name"] = "wrong"
                _, run = await get(client, "/sync_data")
                status, undone = await post(client, f"/runs/{run['run']}/undo")
                assert (status, undone["undoes"], undone["updated"]) == (200, run["run"], 1)
                assert (await get(client, f"/runs/{undone['run']}"))[1]["undoes"] == run["run"]
                status, refused = await get(client, "/sync_data")
                assert (status, refused["status"], refused["code"]) == (409, "paused", "paused")
                assert (await get(client, "/sync_data?dry_run=1"))[0] == 200
                status, again = await post(client, f"/runs/{run['run']}/undo")
                assert (status, again["status"], again["code"]) == (409, "failed", "undo_refused")
                assert (await post(client, "/runs/9999/undo"))[0] == 404
                assert (await post(client, f"/runs/{2**70}/undo"))[0] == 404
                assert (await post(client, "/sources/other/resume"))[0] == 404
                assert (await post(client, undone["resume"]))[1]["changed"] is True
                assert (await post(client, undone["resume"]))[1]["changed"] is False
                assert (await get(client, "/sync_data"))[1]["updated"] == 1
                assert (await post(client, "/sources/my_data/pause"))[1]["status"] == "paused"
                assert (await get(client, "/sync_data"))[0] == 409

    async def test_from_the_command_line(self, database_url: str, tmp_path: Path) -> None:
        """`undo`, `pause` and `resume` say what they did; what is refused exits with 3."""
        shell = Shell(tmp_path, DATABASE_URL=database_url, PORT=str(free_port()))
        for command in ("sync", "sync"):
            assert (await shell.run(command))[0] == 0
        code, output, _ = await shell.run("undo", "2")
        assert (code, "python cli.py resume" in output) == (0, True)
        code, _, errors = await shell.run("sync")
        assert (code, "undid run 2" in errors) == (3, True)
        assert "is resumed" in (await shell.run("resume"))[1]
        assert "is paused" in (await shell.run("pause", "--reason", "we move"))[1]
        assert "we move" in (await shell.run("sync"))[2]
        code, _, errors = await shell.run("undo", "1")
        assert (code, "first load" in errors) == (3, True)


async def post(client: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    """Post nothing to a path."""
    async with client.post(path) as response:
        return response.status, await response.json(content_type=None)
