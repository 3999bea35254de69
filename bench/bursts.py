"""Bursts: sources are due, workers sync them and are killed on the way; how fast that goes, and how late it gets."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import psutil

from bench import accounts
from bench.database import Database
from bench.fleet import Fleet, postmaster_of, usage
from bench.report import markdown
from bench.small_feeds import SmallFeeds

POLL_SECONDS = 0.1
STALLED_SECONDS = 300.0
"""Without a run for so long, something is wrong."""
EARLIEST_KILL, LATEST_KILL = 0.1, 0.9
"""When workers are killed: after which share of the runs."""


TITLES = (
    *("what", "workers", "runs", "in", "runs/s", "× one worker"),
    *("ms of CPU a run: workers", "PostgreSQL", "cores busy: workers", "PostgreSQL", "others"),
    *("late by, p50", "p95", "runs cut off"),
)
DEFAULTS = '[defaults]\nevery = "300d"\nallow_private = true\n'
"""Nothing is due by itself while something is measured."""


NOTHING_LEFT = "SELECT NOT EXISTS (SELECT FROM lockstep.pgqueuer) AND NOT EXISTS (SELECT FROM lockstep.job_starts)"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line of the table."""

    what: str
    workers: int
    runs: int
    seconds: float
    shares: Mapping[str, float]
    """How many processors each kind of process had."""
    lags_seconds: Sequence[float] = ()
    killed: int = 0
    interrupted: int = 0

    @property
    def rate(self) -> float:
        return self.runs / self.seconds


@dataclass(frozen=True, kw_only=True)
class Site:
    """A database, the server of the feeds, and the workers between them."""

    connection: asyncpg.Connection
    postmaster: psutil.Process | None
    server: SmallFeeds
    fleet: Fleet
    chance: random.Random
    began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {what}", file=sys.stderr, flush=True)

    async def last_run(self) -> int:
        return await self.connection.fetchval("SELECT coalesce(max(id), 0) FROM lockstep.runs") or 0

    async def start(self, workers: int, *, schedules: int) -> None:
        """Start workers, and wait until every schedule is known to the database."""
        await self.fleet.start(workers)
        await until(self.connection, f"SELECT count(*) = {schedules} FROM lockstep.schedules")  # noqa: S608 - a number
        self.say(f"{of_workers(workers)} ready after {self.fleet.start_seconds:.1f} s")

    async def done_since(self, run: int) -> int:
        """Return how many sources have had a good run."""
        query = """SELECT count(DISTINCT source) FROM lockstep.runs
                    WHERE id > $1 AND status IN ('succeeded', 'unchanged')"""
        return int(await self.connection.fetchval(query, run))


async def burst(
    site: Site, what: str, names: Sequence[str], *, kills: int = 0, within_seconds: float = 0.0
) -> Measured:
    """Have feeds due, all at once or spread over some seconds, and wait until each has been synced.

    Workers are killed at seeded moments meanwhile. Demands that no job is lost.
    """
    run = await site.last_run()
    workers = len(site.fleet.members)
    moments = sorted(site.chance.uniform(EARLIEST_KILL, LATEST_KILL) * len(names) for _ in range(kills))
    before = usage(site.fleet, site.postmaster)
    await all_due(site.connection, names, within_seconds)
    await until_done(site, run, len(names), moments)
    shares = usage(site.fleet, site.postmaster).shares_since(before)
    await until(site.connection, NOTHING_LEFT)  # a run ends a moment before its job does
    await accounts.demand_all_done(site.connection, run, names)
    lags, seconds, runs, interrupted = await outcome(site.connection, run)
    measured = Measured(
        what=what,
        workers=workers,
        runs=runs,
        seconds=seconds,
        shares=shares,
        lags_seconds=lags,
        killed=kills,
        interrupted=interrupted,
    )
    site.say(f"{what}, {of_workers(workers)}: {measured.rate:.1f} runs/s")
    return measured


async def all_due(connection: asyncpg.Connection, names: Sequence[str], within_seconds: float) -> None:
    """Have feeds due, and remember when each of them is."""
    await connection.execute("DROP TABLE IF EXISTS due")
    await connection.execute(
        """CREATE TEMPORARY TABLE due AS
           SELECT source, clock_timestamp() + random() * $2 * interval '1 second' AS due
             FROM unnest($1::text[]) AS source""",
        names,
        within_seconds,
    )
    await connection.execute("UPDATE lockstep.schedules s SET due = d.due FROM due d WHERE d.source = s.source")


async def until_done(site: Site, run: int, count: int, kills: Sequence[float]) -> None:
    """Wait until so many sources have been synced since a run, and kill workers on the way."""
    left, done, progress = list(kills), 0, time.monotonic()
    while done < count:
        found = await site.done_since(run)
        if found > done:
            done, progress = found, time.monotonic()
        if time.monotonic() - progress > STALLED_SECONDS:
            raise accounts.Wrong(f"after {done} of {count} sources nothing went on")
        while left and done >= left[0]:
            left.pop(0)
            await site.fleet.kill(site.chance.randrange(len(site.fleet.members)))
        await asyncio.sleep(POLL_SECONDS)


async def until(connection: asyncpg.Connection, query: str) -> None:
    """Wait until a query returns true."""
    waited = time.monotonic()
    while not await connection.fetchval(query):
        if time.monotonic() - waited > STALLED_SECONDS:
            raise accounts.Wrong(f"it has never come true that {query}")
        await asyncio.sleep(POLL_SECONDS)


async def outcome(connection: asyncpg.Connection, run: int) -> tuple[list[float], float, int, int]:
    """Return how late each source was synced, how long all took, and how many runs there were and were cut off."""
    lags = await connection.fetch(
        """SELECT extract(epoch FROM min(r.finished_at) - d.due)::float8 FROM lockstep.runs r JOIN due d USING (source)
            WHERE r.id > $1 AND r.status IN ('succeeded', 'unchanged') GROUP BY source, d.due""",
        run,
    )
    ((seconds, runs, interrupted),) = await connection.fetch(
        """SELECT extract(epoch FROM max(finished_at) - (SELECT min(due) FROM due))::float8,
                  count(*) FILTER (WHERE status <> 'interrupted'), count(*) FILTER (WHERE status = 'interrupted')
             FROM lockstep.runs WHERE id > $1""",
        run,
    )
    return [lag for (lag,) in lags], seconds, runs, interrupted


@asynccontextmanager
async def site_of(
    root: Database, server: SmallFeeds, entries: str, *, seed: int, **settings: str
) -> AsyncIterator[Site]:
    """Have an empty database and a sources file with these entries, none of which is due by itself; no worker yet."""
    with tempfile.TemporaryDirectory(prefix="bench-workers-") as name:
        directory = Path(name)
        (directory / "sources.toml").write_text(f"{DEFAULTS}\n{entries}", encoding="utf-8")
        async with root.scratch("bench_scaling") as database, database.connect() as connection:
            given = {"DATABASE_URL": database.address("postgresql+asyncpg")}
            fleet = Fleet(directory, {**settings, **given, "SOURCES_FILE": str(directory / "sources.toml")})
            try:
                yield Site(
                    connection=connection,
                    postmaster=await postmaster_of(connection),
                    server=server,
                    fleet=fleet,
                    chance=random.Random(seed),
                )
            finally:
                await fleet.stop()


def table(lines: Sequence[Measured]) -> str:
    """Return what was measured as a Markdown table."""
    alone = {line.what: line.rate for line in lines if line.workers == 1}
    return markdown(TITLES, [_row(line, alone.get(line.what)) for line in lines])


def _row(line: Measured, alone: float | None) -> list[str]:
    growth = f"{line.rate / alone:.2f}" if alone else ""
    each = [f"{line.shares[name] * line.seconds / line.runs * 1000:.0f}" for name in ("workers", "postgres")]
    shares = [f"{line.shares[name]:.2f}" for name in ("workers", "postgres", "others")]
    lags = [f"{lag:.2f} s" for lag in percentiles(line.lags_seconds)]
    rates = [f"{line.runs:,}", f"{line.seconds:.1f} s", f"{line.rate:.1f}", growth]
    return [line.what, str(line.workers), *rates, *each, *shares, *lags, str(line.interrupted)]


def percentiles(lags: Sequence[float]) -> tuple[float, float]:
    """Return the median and what 95 % stay below."""
    if len(lags) < 2:
        return lags[0], lags[0]
    cuts = statistics.quantiles(lags, n=100, method="inclusive")
    return cuts[49], cuts[94]


def of_workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
