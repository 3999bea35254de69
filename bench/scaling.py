"""Many small sources, and one big one in parts, on one, two and more worker processes.

Told are runs a second, how they grow, how late they come, and who is busy with it. Workers are killed on the way.
Whatever happens, every mirror must hold in the end what its feed serves, and the journal must tell of every change
once; otherwise this ends with an error instead of a table.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
import structlog

from bench import accounts
from bench.accounts import Feed
from bench.bursts import Measured, Site, burst, site_of, table
from bench.database import Database, database_under_test
from bench.small_feeds import SmallFeeds, small_feeds

PARTS = (1, 4)
"""Into how many scopes the big feed is parted."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    workers: tuple[int, ...]
    kills: int
    some: int
    """How many of the sources are due where not all of them are."""
    latencies_seconds: tuple[float, ...]
    every_seconds: float
    steady_seconds: float
    heartbeat_seconds: float
    concurrency: int | None
    seed: int

    @property
    def settings(self) -> dict[str, str]:
        """Settings of the workers."""
        own = {} if self.concurrency is None else {"WORKER_CONCURRENCY": str(self.concurrency)}
        return {"WORKER_HEARTBEAT_SECONDS": str(self.heartbeat_seconds), **own}


@dataclass(kw_only=True)
class Many:
    """The small feeds, and as of which round each has been synced."""

    site: Site
    feeds: Sequence[Feed]
    synced: dict[Feed, int] = field(default_factory=dict)

    async def burst(
        self,
        what: str,
        feeds: Sequence[Feed],
        rounds: int,
        *,
        latency_seconds: float = 0.0,
        kills: int = 0,
        within_seconds: float = 0.0,
    ) -> Measured:
        """Have feeds go to another round, sync, and demand that the journal tells of every change once."""
        connection, run = self.site.connection, await self.site.last_run()
        await self.site.server.steer(rounds=rounds, latency_seconds=latency_seconds)
        await connection.execute("CHECKPOINT")
        names = [feed.name for feed in feeds]
        measured = await burst(self.site, what, names, kills=kills, within_seconds=within_seconds)
        changes = await accounts.demand_journal(connection, run, {feed: self.synced[feed] for feed in feeds}, rounds)
        self.synced |= dict.fromkeys(feeds, rounds)
        self.site.say(f"the journal tells of all {changes:,} changes, once")
        return measured

    async def check(self) -> None:
        """Compare every value of every mirror with its feed."""
        compared = await accounts.demand_mirrors(self.site.connection, self.synced)
        self.site.say(f"{compared:,} records of {len(self.feeds):,} mirrors are what their feeds served")


async def measure_many(site: Site, feeds: Sequence[Feed], plan: Plan, lines: list[Measured]) -> None:
    """Load every feed once with as many workers as there will ever be, then measure each number of them."""
    many = Many(site=site, feeds=feeds)
    await site.start(max(plan.workers), schedules=len(feeds))
    await site.server.steer(rounds=0)
    lines.append(await burst(site, "first load", [feed.name for feed in feeds]))
    many.synced = dict.fromkeys(feeds, 0)
    await many.check()
    await site.fleet.stop()
    for count in plan.workers:
        await site.connection.execute("VACUUM (ANALYZE)")
        await site.start(count, schedules=len(feeds))
        await measure_workers(many, plan, lines)
        await site.fleet.stop()


async def measure_workers(many: Many, plan: Plan, lines: list[Measured]) -> None:
    """Measure the workers that there are: all sources with kills, then some of them undisturbed, slow, and in turn.

    One feed in five differs between a round and the next one, to which some feeds go and from which they come back.
    """
    killed = f", {plan.kills} killed" if plan.kills else ""
    rounds = max(many.synced.values()) + 1
    lines.append(await many.burst(f"all due at once{killed}", many.feeds, rounds, kills=plan.kills))
    await many.check()
    some = many.site.chance.sample(many.feeds, min(plan.some, len(many.feeds)))
    for number, latency_seconds in enumerate((0.0, *plan.latencies_seconds), start=1):
        slow = f", answers take {latency_seconds * 1000:g} ms" if latency_seconds else ""
        what = f"{len(some):,} due at once{slow}"
        lines.append(await many.burst(what, some, rounds + number % 2, latency_seconds=latency_seconds))
    if plan.steady_seconds:
        share = min(plan.steady_seconds / plan.every_seconds, 1.0)
        due = many.site.chance.sample(many.feeds, max(round(len(many.feeds) * share), 1))
        what = f"each every {plan.every_seconds:g} s, watched for {plan.steady_seconds:g} s"
        lines.append(await many.burst(what, due, rounds + 1, within_seconds=plan.steady_seconds))
    await many.check()
    if ahead := [feed for feed, at in many.synced.items() if at != rounds]:
        await many.burst("back to the others", ahead, rounds)


async def measure_parts(root: Database, server: SmallFeeds, records: int, plan: Plan, lines: list[Measured]) -> None:
    """Measure one big feed whole and in parts, with each number of workers, which share the parts."""
    for parts in PARTS:
        prepare = [(records, part, parts) for part in range(parts)]
        entries = "\n".join(part_entry(server, *wanted) for wanted in prepare)
        for count in plan.workers:
            if count > parts:
                continue
            at_once = str(-(-parts // count))
            async with site_of(root, server, entries, seed=plan.seed, WORKER_CONCURRENCY=at_once) as site:
                await server.steer(rounds=0, prepare=prepare)
                await site.start(count, schedules=parts)
                lines += await measure_big(site, records, prepare)
                await site.fleet.stop()


def part_entry(server: SmallFeeds, records: int, part: int, parts: int) -> str:
    shared = f"scope = {{ part = {part} }}\n" if parts > 1 else ""
    return f'[sources.big-{part}]\nurl = "{server.part_url(records, part, parts)}"\ntable = "big"\n{shared}'


async def measure_big(site: Site, records: int, prepare: list[tuple[int, int, int]]) -> list[Measured]:
    """Load the big feed, sync it unchanged, and with one record in a hundred changed."""
    names, parts = [f"big-{part}" for _, part, _ in prepare], len(prepare)
    lines = []
    for rounds, what in ((0, "first load"), (0, "nothing changed"), (1, "1 % changed")):
        await site.server.steer(rounds=rounds, prepare=prepare)
        await site.connection.execute("VACUUM (ANALYZE)")
        await site.connection.execute("CHECKPOINT")
        whole = f"{records:,} records, {'whole' if parts == 1 else f'in {parts} parts'}"
        lines.append(await burst(site, f"{whole}: {what}", names))
    found = await site.connection.fetchval("SELECT count(*) FROM big WHERE _sync_deleted_at IS NULL")
    if found != records:
        raise accounts.Wrong(f"{found:,} rows of {records:,} are there")
    return lines


async def run(sources: int, partitioned: int, plan: Plan, database_url: str | None) -> None:
    for task in asyncio.all_tasks():  # there is no other yet; cancelled, it leaves no process behind
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with database_under_test(database_url) as root, small_feeds() as server:
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}; {await root.describe()}\n")
        if sources:
            feeds = [Feed(number=number) for number in range(sources)]
            entries = "".join(feed.entry(server.url(feed.number)) for feed in feeds)
            with printing() as lines:
                async with site_of(root, server, entries, seed=plan.seed, **plan.settings) as site:
                    await measure_many(site, feeds, plan, lines)
        if partitioned:
            with printing() as lines:
                await measure_parts(root, server, partitioned, plan, lines)


@contextmanager
def printing() -> Iterator[list[Measured]]:
    """Print what was measured, even where something was wrong in the end."""
    lines: list[Measured] = []
    try:
        yield lines
    finally:
        print(f"{table(lines)}\n", flush=True)


def whole_numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    return tuple(map(int, seconds(_context, _parameter, value)))


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        found = tuple(float(number) for number in value.split(",") if number)
    except ValueError as exc:
        raise click.BadParameter("takes numbers with commas between them") from exc
    if any(number <= 0 for number in found):
        raise click.BadParameter("takes numbers above 0")
    return found


@click.command()
@click.option("--sources", default=200, show_default=True, help="Small sources of 5 to 20 records; 0 for none.")
@click.option(
    "--workers", default="1,2,4", show_default=True, callback=whole_numbers, help="Worker processes, each in turn."
)
@click.option("--kills", default=3, show_default=True, help="Workers that are killed in a burst, and replaced.")
@click.option("--some", default=1_000, show_default=True, help="How many are due where not all of them are.")
@click.option("--latency", default="0.2,1", show_default=True, callback=seconds, help="Seconds that slow ones take.")
@click.option("--every", default=600.0, show_default=True, help="Seconds between runs of a source in the steady state.")
@click.option("--steady", default=15.0, show_default=True, help="Seconds for which that is watched; 0 for none.")
@click.option("--partitioned", default=0, show_default=True, help="Records of one big source, whole and in 4 parts.")
@click.option("--heartbeat", default=10.0, show_default=True, help="WORKER_HEARTBEAT_SECONDS of each worker.")
@click.option("--concurrency", type=int, help="WORKER_CONCURRENCY of each worker, instead of the default.")
@click.option("--seed", default=1, show_default=True, help="What decides which worker is killed, and when.")
@click.option("--database-url", help="Use this PostgreSQL instead of starting one with default settings.")
def main(
    *,
    sources: int,
    workers: tuple[int, ...],
    kills: int,
    some: int,
    latency: tuple[float, ...],
    every: float,
    steady: float,
    partitioned: int,
    heartbeat: float,
    concurrency: int | None,
    seed: int,
    database_url: str | None,
) -> None:
    """Measure many sources on several worker processes, kill some of these, and prove that nothing is lost."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))  # stdout is for the table
    plan = Plan(
        workers=workers,
        kills=kills,
        some=some,
        latencies_seconds=latency,
        every_seconds=every,
        steady_seconds=steady,
        heartbeat_seconds=heartbeat,
        concurrency=concurrency,
        seed=seed,
    )
    asyncio.run(run(sources, partitioned, plan, database_url))


if __name__ == "__main__":
    main()
