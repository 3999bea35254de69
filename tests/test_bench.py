"""The bench itself still runs; its figures are for docs/benchmarks.md, never for a test."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPECTED_LINES = (
    "| first load |",
    "| nothing changed |",
    "| 1 % changed, 0.1 % gone, 0.1 % new |",
    "| every row changed |",
    "| nothing changed: rows written | 0 | 0 | met |",
    "| not modified (304) |",
    "| 2,438 symbols, all prices changed |",
    "| p99 of `/` during: first load |",
    "| peak memory over idle, 2,000 records",
)


async def printed(module: str, *options: str) -> str:
    """Run a command of the bench; return what it prints."""
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    table, progress = await bench.communicate()
    assert bench.returncode == 0, progress.decode()
    return table.decode()


async def test_bench_measures_every_group_at_a_small_size() -> None:
    """One command runs every measurement of the service and prints a line for each target."""
    table = await printed("bench", "--records", "2000", "--repeats", "1", "--no-peers")
    for line in EXPECTED_LINES:
        assert line in table


async def test_workers_lose_nothing_when_one_is_killed() -> None:
    """Two workers, one of them killed and replaced, sync every source once and right."""
    small = ("--sources", "30", "--some", "5", "--latency", "0.05", "--steady", "0")
    table = await printed("bench.scaling", *small, "--workers", "2", "--kills", "1", "--heartbeat", "1")
    for line in (
        "| first load | 2 | 30 |",
        "| all due at once, 1 killed | 2 |",
        "| 5 due at once, answers take 50 ms |",
    ):
        assert line in table


@pytest.mark.soak
async def test_a_feed_is_measured_in_parts() -> None:
    """One big feed is loaded whole by one worker, and in parts by several."""
    table = await printed("bench.scaling", "--sources", "0", "--partitioned", "2000", "--workers", "1,2")
    for line in ("| 2,000 records, whole: first load | 1 | 1 |", "| 2,000 records, in 4 parts: 1 % changed | 2 | 4 |"):
        assert line in table
