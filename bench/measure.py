"""The measurements: each group drives the service, the baselines or the peers, and adds what it saw to the samples."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from bench import baselines, peers
from bench.database import Database
from bench.feed import ALL, BASE, FEED_KEY, FEW, SYMBOLS, copy_file, feed_file, symbols_file
from bench.pinger import pinging
from bench.server import FeedServer
from bench.service import MIRROR, Service, SyncRun, running_service

SHORT_RUNS = 5
"""How often the runs that take milliseconds are repeated within each repeat."""


FEW_CHANGED = "1 % changed, 0.1 % gone, 0.1 % new"

REST_SECONDS = 2.0
"""How long `/` is asked with nothing else going on, to know what the machine itself adds."""


class Samples:
    """Every value that was measured, by name and number of records."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def add(self, name: str, records: int, *values: float) -> None:
        self._values[name, records].extend(values)

    def values(self, name: str, records: int) -> list[float]:
        return self._values.get((name, records), [])

    def median(self, name: str, records: int) -> float | None:
        values = self.values(name, records)
        return statistics.median(values) if values else None

    def worst(self, name: str, records: int) -> float | None:
        return max(self.values(name, records), default=None)

    def percentile(self, percent: int, name: str, records: int) -> float | None:
        values = self.values(name, records)
        return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else None

    def sizes(self, name: str) -> list[int]:
        return sorted(records for known, records in self._values if known == name)

    def items(self) -> list[tuple[str, int, list[float]]]:
        return [(name, records, values) for (name, records), values in self._values.items()]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every measurement needs."""

    root: Database
    feeds: FeedServer
    samples: Samples = field(default_factory=Samples)
    began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {what}", file=sys.stderr, flush=True)


async def measure_engine(bench: Bench, records: int, repeats: int) -> None:
    """Measure each kind of run on a mirror of `records` records, next to its baselines, `repeats` times in turn."""
    for repeat in range(repeats):
        bench.say(f"engine, {records:,} records, {repeat + 1} of {repeats}")
        async with bench.root.scratch("bench_bare") as bare:
            copy_seconds = await baselines.measure_bare_copy(bare, copy_file(records))
            bench.samples.add("bare copy", records, copy_seconds)
            await bare.settle(vacuum=True)
            async with (
                bench.root.scratch("bench_mirror") as database,
                running_service(database, bench.feeds.url, key=FEED_KEY) as service,
            ):
                await measure_first_load(bench, database, service, records)
                await measure_nothing_changed(bench, bare, database, service, records)
                await measure_changes(bench, database, service, records)
                await measure_not_modified(bench, service, records)


async def measure_first_load(bench: Bench, database: Database, service: Service, records: int) -> None:
    await bench.feeds.serve(feed_file(records, BASE))
    await database.settle()
    run = await service.sync(expect={"status": "succeeded", "created": records})
    keep(bench.samples, "first load", records, run)
    # Readers of freshly loaded rows leave hints in them, and checksums make those hints part of the log.
    wal_bytes = await wal_of_unchanged_run(database, service, records)
    bench.samples.add("nothing changed, right after the first load: WAL bytes", records, wal_bytes)


async def measure_nothing_changed(
    bench: Bench, bare: Database, database: Database, service: Service, records: int
) -> None:
    await database.settle(vacuum=True)
    download_seconds = await baselines.measure_download(bench.feeds.url)
    fingerprints_seconds = await baselines.measure_fingerprints_out(bare)
    bench.samples.add("download", records, download_seconds)
    bench.samples.add("fingerprints out", records, fingerprints_seconds)
    bench.samples.add("download and fingerprints out", records, download_seconds + fingerprints_seconds)
    run = await service.sync(expect={"status": "unchanged", "unchanged": records})
    keep(bench.samples, "nothing changed", records, run)
    await database.settle()
    transaction = await database.next_transaction()
    wal_bytes = await wal_of_unchanged_run(database, service, records)
    bench.samples.add("nothing changed: WAL bytes", records, wal_bytes)
    rows_written = await database.rows_written_since(MIRROR, transaction)
    bench.samples.add("nothing changed: rows written", records, rows_written)


async def wal_of_unchanged_run(database: Database, service: Service, records: int) -> int:
    before = await database.wal_position()
    await service.sync(expect={"status": "unchanged", "unchanged": records})
    return await database.wal_position() - before


async def measure_changes(bench: Bench, database: Database, service: Service, records: int) -> None:
    """Measure a few changes, go back to the first version, and measure every row changed."""
    changed, added = records // FEW.changed_every, records // FEW.new_every
    few = {"status": "succeeded", "created": added, "updated": changed, "deleted": added}
    back = {"status": "succeeded", "restored": added, "updated": changed, "deleted": added}
    await database.settle(vacuum=True)
    await bench.feeds.serve(feed_file(records, FEW))
    keep(bench.samples, FEW_CHANGED, records, await service.sync(expect=few))
    await bench.feeds.serve(feed_file(records, BASE))
    await service.sync(expect=back)
    await database.settle(vacuum=True)
    await bench.feeds.serve(feed_file(records, ALL))
    every = {"status": "succeeded", "updated": records}
    keep(bench.samples, "every row changed", records, await service.sync(expect=every))


async def measure_not_modified(bench: Bench, service: Service, records: int) -> None:
    """Measure the conditional fetch, and make sure that it was one."""
    unchanged = {"status": "unchanged"}
    await bench.feeds.serve(feed_file(records, ALL), validators=True)
    await service.sync(expect=unchanged)
    before = await bench.feeds.not_modified_answers()
    for _ in range(SHORT_RUNS):
        keep(bench.samples, "not modified", records, await service.sync(expect=unchanged))
    if await bench.feeds.not_modified_answers() == before:
        bench.say("the service never asked with a condition: its 304 figure is that of a full fetch")


async def measure_symbols(bench: Bench, repeats: int) -> None:
    """Measure a feed like an exchange's prices, texts kept as numeric: few records, all different every time."""
    bench.say(f"{SYMBOLS:,} symbols")
    async with (
        bench.root.scratch("bench_symbols") as database,
        running_service(database, bench.feeds.url, key="symbol", types="price=numeric") as service,
    ):
        await bench.feeds.serve(symbols_file(0))
        await service.sync(expect={"status": "succeeded", "created": SYMBOLS})
        for revision in range(1, 1 + repeats * SHORT_RUNS):
            await bench.feeds.serve(symbols_file(revision % 2))
            changed = await service.sync(expect={"status": "succeeded", "updated": SYMBOLS})
            keep(bench.samples, "symbols, all changed", SYMBOLS, changed)
            same = await service.sync(expect={"status": "unchanged", "unchanged": SYMBOLS})
            keep(bench.samples, "symbols, nothing changed", SYMBOLS, same)


async def measure_latency(bench: Bench, records: int) -> None:
    """Measure how fast `/` answers while the service is at work."""
    bench.say(f"latency of / while {records:,} records sync")
    runs: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("first load", BASE, {"status": "succeeded", "created": records}),
        ("nothing changed", BASE, {"status": "unchanged", "unchanged": records}),
        ("every row changed", ALL, {"status": "succeeded", "updated": records}),
    )
    async with (
        bench.root.scratch("bench_latency") as database,
        running_service(database, bench.feeds.url, key=FEED_KEY) as service,
    ):
        async with pinging(f"{service.url}/") as latencies:
            await asyncio.sleep(REST_SECONDS)
        bench.samples.add("/ at rest: seconds", records, *latencies)
        for name, variant, expect in runs:
            await bench.feeds.serve(feed_file(records, variant))
            async with pinging(f"{service.url}/") as latencies:
                await service.sync(expect=expect)
            bench.samples.add(f"/ during {name}: seconds", records, *latencies)


async def measure_peers(bench: Bench, records: int, repeats: int) -> None:
    """Measure the other tools, and the service at the size that the slowest of them can bear."""
    await peers.install_peers()
    for repeat in range(repeats):
        for peer in peers.PEERS:
            bench.say(f"{peer.label}, {repeat + 1} of {repeats}")
            size = min(records, peer.max_records or records)
            async for step, run in peers.measure_peer(peer, bench.root, size):
                name = f"{peer.label}: {step}" if run.finished else f"{peer.label}: {step}, given up"
                bench.samples.add(name, size, run.seconds)
                bench.samples.add(f"{peer.label}: peak bytes", size, run.peak_bytes)
    small = min(records, peers.ORM_RECORDS)
    if not bench.samples.values("first load", small):
        await measure_engine(bench, small, repeats)


async def measure_scale(bench: Bench, records: int, repeats: int) -> None:
    """Measure a tenth and the tenfold of `records`, the latter once."""
    for size, times in ((records // 10, repeats), (records * 10, 1)):
        if not bench.samples.values("first load", size):
            await measure_engine(bench, size, times)


def keep(samples: Samples, name: str, records: int, run: SyncRun) -> None:
    samples.add(name, records, run.seconds)
    samples.add(f"{name}: bytes over idle", records, run.over_idle_bytes)
