"""The bench's one command: measure, then print the table."""

from __future__ import annotations

import asyncio
import os
import platform

import click
import structlog

from bench import measure, report
from bench.database import database_under_test
from bench.server import feed_server

GROUPS = ("engine", "symbols", "latency", "scale", "peers")


@click.command()
@click.option("--records", default=1_000_000, show_default=True, help="Records of the feed; a multiple of 1,000.")
@click.option("--repeats", default=3, show_default=True, help="How often each measurement is repeated; medians count.")
@click.option("--peer-repeats", default=1, show_default=True, help="The same for the other tools, which take minutes.")
@click.option("--only", type=click.Choice(GROUPS), multiple=True, help="Run these groups alone; may be repeated.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Whether to install and measure other tools.")
@click.option("--scale/--no-scale", default=False, show_default=True, help="Measure a tenth and the tenfold as well.")
@click.option("--database-url", help="Use this PostgreSQL instead of starting one with default settings.")
def main(
    *,
    records: int,
    repeats: int,
    peer_repeats: int,
    only: tuple[str, ...],
    peers: bool,
    scale: bool,
    database_url: str | None,
) -> None:
    """Measure the service beside bare COPY and beside other tools, and print the ratios as a Markdown table."""
    if records <= 0 or records % 1_000:
        raise click.BadParameter("must be a multiple of 1,000", param_hint="--records")
    groups = set(only or GROUPS)
    if not only:
        groups -= set() if peers else {"peers"}
        groups -= set() if scale else {"scale"}
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning")
    )  # the table has stdout to itself
    asyncio.run(run(groups, records, repeats, peer_repeats, database_url))


async def run(groups: set[str], records: int, repeats: int, peer_repeats: int, database_url: str | None) -> None:
    async with database_under_test(database_url) as root, feed_server() as feeds:
        bench = measure.Bench(root=root, feeds=feeds)
        conditions = await root.describe()
        try:
            if "engine" in groups:
                await measure.measure_engine(bench, records, repeats)
            if "symbols" in groups:
                await measure.measure_symbols(bench, repeats)
            if "latency" in groups:
                await measure.measure_latency(bench, records)
            if "scale" in groups:
                await measure.measure_scale(bench, records, repeats)
            if "peers" in groups:
                await measure.measure_peers(bench, records, peer_repeats)
        finally:
            # What took an hour to measure is shown even when the last minute failed.
            print_report(bench.samples, records, conditions)


def print_report(samples: measure.Samples, records: int, conditions: str) -> None:
    print(f"{records:,} records; {os.cpu_count()} cores, Python {platform.python_version()}; {conditions}\n")
    print(report.targets_table(report.lines(samples, records)))
    print(f"\n{report.peers_table(samples, records)}")
    print(f"\n{report.samples_table(samples)}")


if __name__ == "__main__":
    main()
