"""The bench itself still runs; its figures are for docs/benchmarks.md, never for a test."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

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


async def test_bench_measures_every_group_at_a_small_size() -> None:
    """One command runs every measurement of the service and prints a line for each target."""
    options = ("--records", "2000", "--repeats", "1", "--no-peers")
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    table, progress = await bench.communicate()
    assert bench.returncode == 0, progress.decode()
    for line in EXPECTED_LINES:
        assert line in table.decode()
