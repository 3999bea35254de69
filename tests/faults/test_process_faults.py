"""The process is stopped, its clock is moved, its loop is watched: runs end as they should, and never hold it up."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import time
from pathlib import Path

from store.runs import reap_stale_runs
from tests.codebase import ROOT, service_files
from tests.engine import Engine, dump
from tests.faults.databases import BLOCKED
from tests.faults.processes import call, movable_clock, service_process
from tests.feed_server import Silence
from tests.postgres import connect
from web.service import STOP_SECONDS
from web.serving import CONNECTIONS_END_SECONDS

SNAPSHOT = [{"id": number, "a": 1} for number in range(1, 11)]
CHANGED = [{"id": number, "a": 2} for number in range(1, 11)]

MANY = 100_000
MOST_SECONDS = 0.1
"""How long the event loop may be held."""
HOUR = 3600


async def test_sigterm_in_the_transaction_rolls_it_back(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """A service that is told to end while it writes takes everything back, says so, and exits with 0 in time."""
    engine.configure(name="my_data")
    await engine.sync(SNAPSHOT)
    before = await engine.written()
    engine.serve(CHANGED)
    holder = await connect(database_url)
    async with (
        service_process(source_url=engine.feed.url, database_url=database_url, home=tmp_path) as (
            running,
            client,
        ),
        holder.transaction(),
    ):
        await holder.execute(f"SELECT FROM {engine.table} WHERE id = 5 FOR UPDATE")
        caller = asyncio.create_task(call(client))
        while await engine.sql.fetchval(BLOCKED) is None:
            assert not caller.done()
        running.process.send_signal(signal.SIGTERM)
        status, answer = await caller
        assert (status, answer["status"]) == (503, "interrupted")
        async with asyncio.timeout(STOP_SECONDS + CONNECTIONS_END_SECONDS):
            assert await running.process.wait() == 0
    await holder.close()
    assert await engine.sql.fetchval("SELECT status FROM lockstep.runs ORDER BY id DESC LIMIT 1") == "interrupted"
    assert await engine.written() == before
    await engine.sync()
    await engine.check()


async def test_a_clock_that_is_moved_changes_no_run(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """Though the clock jumps by an hour while it runs, and is an hour late before, a run keeps lease and duration."""
    engine.configure(name="my_data")
    await engine.sync(SNAPSHOT)
    offset = tmp_path / "offset"
    clock = {**movable_clock(offset), "LOG_FORMAT": "json"}
    home = tmp_path / "service"
    async with service_process(source_url=engine.feed.url, database_url=database_url, home=home, settings=clock) as (
        _,
        client,
    ):
        for before, meanwhile in (("+0", f"+{HOUR}"), (f"-{HOUR}", "+0")):
            offset.write_text(f"{before}\n", encoding="ascii")
            engine.feed.stalled.clear()
            engine.feed.released.clear()
            engine.serve(CHANGED, fault=Silence())
            began = time.monotonic()
            run = asyncio.create_task(call(client))
            await engine.feed.stalled.wait()
            offset.write_text(f"{meanwhile}\n", encoding="ascii")
            assert await reap_stale_runs(engine.database) == 0
            status, busy = await call(client)
            assert (status, busy["status"]) == (409, "busy")
            engine.feed.released.set()
            status, report = await run
            elapsed = (time.monotonic() - began) * 1000
            assert status == 200
            assert 0 <= report["duration_ms"] <= elapsed
    lines = [json.loads(line) for line in (home / "app.log").read_text(encoding="utf-8").splitlines()]
    assert len({line["timestamp"][:13] for line in lines}) > 2, "the clock was not moved at all"


def test_the_wall_clock_measures_nothing() -> None:
    """Only what has to name a time of day reads it: no schedule, no lease and no duration goes by it."""
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in service_files()
        if re.search(r"\b(time\.time|time_ns|datetime\.now|datetime\.utcnow|date\.today)\(", path.read_text("utf-8"))
    }
    assert readers == {
        "web/access_tokens.py",  # tokens expire
        "sources/statuses.py",  # a Retry-After may be a date
        "cursors.py",  # a moment that is yet to come is no cursor
        "sources_file/values.py",  # an expression is tried for its next times
        "commands/sources.py",  # which are shown
        "store/job_engine.py",  # an event has to bear one, which nobody reads
    }


async def test_the_loop_is_never_held_up_by_a_run(engine: Engine) -> None:
    """While a hundred thousand records are loaded, compared and changed, no step holds the event loop for long."""
    longest = 0.0
    beats = 0

    async def beat() -> None:
        nonlocal longest, beats
        while True:
            # Of the loop's own thread, so that whatever else runs on the machine does not count.
            began = time.thread_time()
            await asyncio.sleep(0.001)
            longest, beats = max(longest, time.thread_time() - began), beats + 1

    bodies = [
        dump([{"id": number, "name": f"n{number}", "price": number / step} for number in range(MANY)])
        for step in (4, 4, 8)
    ]
    gc.collect()
    gc.freeze()  # what the tests before this one left behind is no part of a service
    heart = asyncio.create_task(beat())
    for body in bodies:
        engine.feed.respond(body)
        await engine.sync_unaccounted()
    heart.cancel()
    await asyncio.wait([heart])
    gc.unfreeze()
    assert beats > 100
    assert longest < MOST_SECONDS
