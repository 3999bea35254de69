"""Random chains of snapshots, increments, undos and edits over scopes of one table, against a brute-force oracle."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from definitions import Cursor
from errors import SourceError, UndoRefused
from models import Report
from store import Database, pauses
from sync import verify_data
from tests.engine import Engine, dump, open_engine
from tests.feed_server import Answer, FeedServer, Request, Truncate
from undoing import undo_run

Rows = dict[int, dict[str, Any]]

NUMBERS = range(1, 7)
POLICIES = ("soft", "hard", "ignore")

numbers = st.sampled_from(NUMBERS)
values = st.sampled_from([1, 2, 2.5, "text", None, True, {"a": 1}])
names = st.sampled_from(["v", "w"])
puts = st.tuples(numbers, names, values)

EDITS = (
    "DELETE FROM {table} WHERE part = {part} AND id = {number}",
    "DELETE FROM {table} WHERE part = {part}",
    "UPDATE {table} SET at = -1 WHERE part = {part} AND id = {number}",
    "UPDATE {table} SET _sync_deleted_at = now() WHERE part = {part} AND id = {number}",
    "TRUNCATE {table}",
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to one of the sources, and how it is synced then."""

    part: int
    put: list[tuple[int, str, Any]]
    drop: list[int]
    edit: tuple[str, int] | None
    policy: str
    how: str


steps = st.builds(
    Step,
    part=st.integers(0, 2),
    put=st.lists(puts, max_size=3),
    drop=st.lists(numbers, max_size=2),
    edit=st.none() | st.none() | st.tuples(st.sampled_from(EDITS), numbers),
    policy=st.sampled_from(POLICIES),
    how=st.sampled_from(["snapshot", "incremental", "incremental", "broken", "undo"]),
)


@dataclass(kw_only=True)
class Part:
    """A source that can be asked for what has changed, and what was seen of it."""

    engine: Engine
    records: Rows = field(default_factory=dict)
    moment: int = 0
    broken: bool = False
    since: int | None = None
    last: tuple[Report, Rows] | None = None
    """The last run that changed something, and the live rows before it."""

    def answer(self, request: Request) -> Answer:
        """Answer with what has changed since, and with what changed just then."""
        asked = request.query.get("since", [None])[0]
        self.since = None if asked is None else int(asked)
        return Answer(body=dump(list(self.due().values())), fault=Truncate(at=1) if self.broken else None)

    def due(self) -> Rows:
        """Return what an increment brings that is asked for as the last one was."""
        return {n: r for n, r in self.records.items() if self.since is None or r["at"] >= self.since}

    def change(self, step: Step) -> None:
        """Make a step of the source."""
        for number, name, value in step.put:
            self.moment += 1
            self.records[number] = {**self.records.get(number, {}), "id": number, name: value, "at": self.moment}
        for number in step.drop:
            self.records.pop(number, None)

    async def live(self) -> Rows:
        """Return the live rows, without nulls."""
        rows = await self.engine.rows()
        return {key[1]: {name: value for name, value in row.items() if name != "part"} for key, row in rows.items()}


def plain(rows: Rows) -> Rows:
    """Leave nulls out, which a row does not tell from fields that are missing."""
    return {n: {name: value for name, value in row.items() if value is not None} for n, row in rows.items()}


async def sync(part: Part, step: Step) -> None:
    """Sync as a step says, and assert that the source's live rows become what they have to be."""
    before = await part.live()
    report = await part.engine.sync(mode="snapshot" if step.how == "snapshot" else "incremental")
    if step.how == "snapshot":
        kept = before if step.policy == "ignore" else {}
        expected = {**kept, **plain(part.records)}
    else:
        expected = {**before, **plain(part.due())}
    assert await part.live() == expected
    assert report.counts.held == 0
    part.last = (report, before)


async def undo(part: Part) -> None:
    """Take the last run back, if it can be, and assert that the live rows are as they were before it."""
    if part.last is None:
        return
    report, before = part.last
    try:
        await undo_run(part.engine.database, part.engine.source, report.run)
    except UndoRefused:
        return
    part.last = None
    assert await part.live() == before
    await pauses.resume(part.engine.database, part.engine.source)


async def take(parts: list[Part], step: Step) -> None:
    """Make a step, and assert that it left the other sources alone."""
    part = parts[step.part]
    part.engine.configure(on_delete=step.policy)
    if step.edit and await part.engine.rows():
        statement, number = step.edit
        await part.engine.edit(statement.replace("{part}", str(step.part)).replace("{number}", str(number)))
        for each in parts:
            each.last = None
    part.change(step)
    others = [await each.live() for each in parts if each is not part]
    if step.how == "broken":
        part.broken = True
        with pytest.raises(SourceError):
            await part.engine.sync()
        part.broken = False
    elif step.how == "undo":
        await undo(part)
    else:
        await sync(part, step)
    assert [await each.live() for each in parts if each is not part] == others


async def check(part: Part) -> None:
    """Assert that increments bring all that the source has, and that a snapshot leaves nothing else."""
    part.engine.configure(on_delete="soft")
    await part.engine.sync(mode="snapshot")
    assert await part.live() == plain(part.records)
    part.moment += 1
    part.records[1] = {"id": 1, "v": 1, "at": part.moment}
    await part.engine.sync()
    assert await part.live() == plain(part.records)
    assert (await verify_data(part.engine.database, part.engine.source)).exact


@pytest_asyncio.fixture
async def engines(database: Database, database_url: str) -> AsyncIterator[list[Engine]]:
    """Three sources with feeds of their own."""
    async with AsyncExitStack() as stack:
        feeds = [await stack.enter_async_context(FeedServer()) for _ in range(3)]
        yield [await stack.enter_async_context(open_engine(database, database_url, feed)) for feed in feeds]


tables = (f"parts_{number}" for number in itertools.count())


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=3, max_size=10))
async def test_chains_of_increments_and_snapshots_come_out_right(engines: list[Engine], chain: list[Step]) -> None:
    """Whatever is done to one source's rows and however it is synced, they are right, and the others' stay."""
    parts, table = [], next(tables)
    for number, engine in enumerate(engines):
        engine.configure(
            name=f"{table}_{number}",
            table=table,
            scope={"part": number},
            key=("part", "id"),
            mode="both",
            cursor=Cursor(field="at", parameter="since"),
            max_delete_rows=1000,
            allow_empty=True,
            attempts=1,
        )
        parts.append(Part(engine=engine))
        engine.feed.answers = parts[-1].answer
    for step in chain:
        await take(parts, step)
    for part in parts:
        await check(part)
