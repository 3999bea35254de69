"""Whatever a run awaits may fail, at the first time or the hundredth: nothing is lost, and the next run converges."""

from __future__ import annotations

import asyncio
import itertools
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from errors import DatabaseError, LockstepError, SourceError, SpoolFailed
from models import Report
from store import Database
from sync import sync_data
from tests.engine import Engine, assert_holds, dump
from tests.faults.support import AFTER, BEFORE
from tests.faults.wire import DatabaseWire, Fault, SourceWire

FAULTS: Sequence[Fault] = ("request lost", "answer lost", "stopped")
LAST_REQUESTS = 5
ENDED_WELL = ("succeeded", "unchanged")
AFTER_OPENING = 12
"""A request that comes after a run was opened, and before it has fetched anything."""


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[DatabaseWire]:
    async with DatabaseWire(database_url) as proxy:
        yield proxy


@pytest.fixture
async def wired(engine: Engine, wire: DatabaseWire) -> AsyncIterator[Engine]:
    """An engine whose runs reach the database through the wire, while it looks at the mirror directly."""
    engine.configure(attempts=1)
    direct, engine.database = engine.database, Database.connect(wire.url, pool_size=3)
    await engine.sync(dump(BEFORE))
    yield engine
    await engine.database.close()
    engine.database = direct


async def nothing_first(_engine: Engine) -> None:
    """Leave the mirror as the last run left it."""


async def forget_mirror(engine: Engine) -> None:
    """Make the next run a first load."""
    await engine.edit("DROP TABLE IF EXISTS {table} CASCADE", "DELETE FROM lockstep.mirrors")


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.soak)], ids=["some", "each"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("prepare", [nothing_first, forget_mirror], ids=["later run", "first load"])
async def test_every_request_to_the_database_may_fail(
    wired: Engine, wire: DatabaseWire, prepare: Callable[[Engine], Awaitable[None]], fault: Fault, every: int
) -> None:
    """Whichever request or answer is lost, or wherever the run is stopped, the run is written wholly or not at all.

    Each request is tried with one of the faults, and those at the end of a run, where it is committed, with all.
    """
    versions = itertools.cycle((AFTER, BEFORE))
    nth = 1 + FAULTS.index(fault) % every
    while await goes_wrong(wired, wire, next(versions), prepare, fault, nth):
        nth += every
    assert nth > 20, "hardly anything was tried"
    for last in range(nth - every + 1 - LAST_REQUESTS, nth):
        await goes_wrong(wired, wire, next(versions), prepare, fault, last)


async def goes_wrong(
    wired: Engine,
    wire: DatabaseWire,
    wanted: Sequence[Any],
    prepare: Callable[[Engine], Awaitable[None]],
    fault: Fault,
    nth: int,
) -> bool:
    """Let the `nth` request of a run go wrong, and see what comes of it; return False if it has not so many."""
    await prepare(wired)
    wired.serve(dump(wanted))
    before, newest = await wired.written(), await newest_run(wired)
    with capture_logs():
        ended = await run_with_fault(wired, wire, nth, fault)
    if wire.is_armed:
        wire.disarm()
        assert isinstance(ended, Report)
        return False
    if isinstance(ended, Report):
        assert ended.status in ENDED_WELL
    elif not await was_committed(wired, newest):
        assert await wired.written() == before
    else:
        assert isinstance(ended, asyncio.CancelledError), f"run {newest} was written, and yet ended with {ended!r}"
    if isinstance(ended, LockstepError) and ended.run is not None:
        # Only where the answer to its opening was lost does nobody know a run's number, and leave it open.
        assert (await newest_state(wired))[0] in ("failed", "interrupted")
    await run_clean(wired, wanted)
    await assert_runs_are_closed(wired)
    assert wired.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined] # every pool with a limit has it
    return True


async def run_with_fault(engine: Engine, wire: DatabaseWire, nth: int, fault: Fault) -> Report | BaseException:
    """Sync while the `nth` request goes wrong; return how it ended."""
    run = asyncio.create_task(sync_data(engine.database, engine.source))
    wire.arm(nth, fault, run.cancel)
    await asyncio.wait([run])
    if run.cancelled():
        return asyncio.CancelledError()
    return run.exception() or run.result()


async def run_clean(engine: Engine, records: Sequence[Any]) -> None:
    """Sync without any fault, and compare every value."""
    engine.serve(dump(records))
    report = await sync_data(engine.database, engine.source)
    assert report.status in ENDED_WELL
    assert_holds(await engine.state(), {engine.key_of(record): record for record in records})


async def newest_run(engine: Engine) -> int:
    """Return the id of the newest run."""
    return int(await engine.sql.fetchval("SELECT max(id) FROM lockstep.runs"))


async def was_committed(engine: Engine, before: int) -> bool:
    """Tell whether a run newer than `before` has ended well."""
    found = await engine.sql.fetchval(
        "SELECT count(*) FROM lockstep.runs WHERE id > $1 AND status = ANY($2)", before, ENDED_WELL
    )
    return bool(found)


async def newest_state(engine: Engine) -> tuple[str, str | None]:
    """Return status and error of the newest run."""
    row = await engine.sql.fetchrow("SELECT status, error FROM lockstep.runs ORDER BY id DESC LIMIT 1")
    assert row
    return row["status"], row["error"]


async def assert_runs_are_closed(engine: Engine) -> None:
    """Assert that every run has an end, and that those that came to nothing say so."""
    for status, error, cause in await engine.sql.fetch("SELECT status, error, cause FROM lockstep.runs"):
        assert status in (*ENDED_WELL, "failed", "interrupted")
        assert (status in ENDED_WELL) == (error is None) == (cause is None)


async def test_a_run_that_cannot_say_that_it_failed_is_given_up(wired: Engine, wire: DatabaseWire) -> None:
    """Where the database stays away, a run stays open; the next one takes its place and closes it."""
    wired.serve(dump(AFTER))
    before = await wired.written()
    wire.arm(AFTER_OPENING, "server lost")
    with capture_logs() as logs, pytest.raises(DatabaseError):
        await sync_data(wired.database, wired.source)
    assert [entry["event"] for entry in logs][-2:] == ["run_failed", "run_not_closed"]
    assert await wired.written() == before
    assert await newest_state(wired) == ("running", None)
    wire.is_away = False
    await run_clean(wired, AFTER)
    await assert_runs_are_closed(wired)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.soak)], ids=["some", "each"])
@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "answer",
    [{}, {"framing": "chunked"}, {"framing": "close"}, {"framing": "close", "encodings": ("gzip",)}],
    ids=["length", "chunked", "close", "gzip"],
)
async def test_the_source_may_go_at_every_byte(
    engine: Engine, answer: dict[str, Any], every: int, *, resets: bool
) -> None:
    """Wherever the connection to the source ends, a run takes the whole answer or nothing of it."""
    failures = 0
    async with SourceWire(engine.feed.port) as wire:
        engine.configure(attempts=1, url=f"http://127.0.0.1:{wire.port}/feed.json")
        wire.resets = resets
        await engine.sync(dump(BEFORE))
        for passed in itertools.count(0, every):
            wanted = dump(AFTER[:3])
            engine.serve(wanted, **answer)
            engine.configure(max_delete_rows=len(BEFORE))
            wire.passes_bytes, wire.was_cut = passed, False
            # Asserts that a run which fails has written nothing.
            (ended,) = await asyncio.gather(engine.sync(), return_exceptions=True)
            wire.passes_bytes = None
            if not isinstance(ended, Report):
                failures += 1
                assert isinstance(ended, SourceError), repr(ended)
                assert wire.was_cut
                continue
            if not wire.was_cut:
                break
            assert_holds(await engine.state(), {engine.key_of(record): record for record in AFTER[:3]})
            await engine.sync(dump(BEFORE))
        await engine.check()
    assert failures > 20, "hardly anything was tried"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Have every write of this process beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_every_write_to_the_spool_may_fail(engine: Engine) -> None:
    """However far the spool comes before its disk is full, nothing is written; with room the run goes through."""
    engine.configure(attempts=1)
    await engine.sync([{"id": 0, "text": "x"}])
    records = [{"id": number, "text": f"{number:0500}"} for number in range(4_000)]
    engine.serve(dump(records))
    failures = 0
    for size in itertools.count(0, 400_000):
        before = await engine.written()
        with capture_logs(), files_no_larger_than(size):
            (ended,) = await asyncio.gather(sync_data(engine.database, engine.source), return_exceptions=True)
        if isinstance(ended, Report):
            assert ended.counts.created == len(records) - 1
            break
        failures += 1
        assert isinstance(ended, SpoolFailed)
        assert "File too large" in ended.cause
        assert await engine.written() == before
        assert await newest_state(engine) == ("failed", "spool_failed")
    assert failures > 3, "hardly anything was tried"
    await engine.check()


async def test_the_spool_may_have_no_place(engine: Engine, tmp_path: Path) -> None:
    """A spool directory that is not there fails the run by name, before anything is written."""
    await engine.sync(dump(BEFORE))
    engine.serve(dump(AFTER))
    with pytest.raises(SpoolFailed, match="nowhere"):
        await engine.sync(spool_dir=tmp_path / "nowhere")
    await engine.sync()
    await engine.check()
