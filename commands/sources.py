"""The commands about the sources themselves: whether the sources file is right, and what stands in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import click
import msgspec
from cronsim import CronSim
from rich.table import Table
from rich.text import Text

import app
from commands.support import DONE, FAILED, output, reporting, safe, show_error
from config import Settings
from definitions import Schedule, Source
from errors import LockstepError, SourceInvalid
from projection import FeedKey
from sources import open_feed, redact
from web.serving import run_loop

SHOWN_TICKS = 2
"""How many times to come of a cron expression are shown."""
SHOWN_FIELDS = 12
"""How many names of fields are enough to see what a record is."""


@click.command()
@click.option("--fetch", is_flag=True, help="Also ask every source for its first records, and look for the key.")
def check(fetch: bool) -> None:
    """Check the settings and the sources file, and show the sources. Exits 2 if something is wrong."""

    def work(settings: Settings) -> int:
        app.set_up_logging(settings, console=False)
        sources = app.checked_sources(settings)
        _show_sources(sources)
        if settings.uses_sample:
            output.print(Text("This is the sample feed. Set SOURCE_URL, or write a sources.toml: see docs/sources.md."))
            return DONE
        return run_loop(_fetch_each(sources)) if fetch else DONE

    sys.exit(reporting(work))


def _show_sources(sources: Sequence[Source]) -> None:
    title = f"{len(sources)} sources; the first one is the default" if len(sources) > 1 else "1 source"
    table = Table(title=title, title_justify="left")
    for column in ("name", "url", "table", "key", "mode", "schedule"):
        table.add_column(column, overflow="fold")
    for source in sources:
        schedule = "\n".join(_in_words(schedule, source) for schedule in source.schedules) or "none"
        scope = f" ({source.scope_id})" if source.scope else ""
        cells = (
            *(source.name, redact(source.url), f"{source.db_schema}.{source.table}{scope}"),
            *(", ".join(source.key), source.mode, schedule),
        )
        table.add_row(*map(_lines, cells))
    output.print(table)


def _lines(cell: str) -> Text:
    return Text("\n").join(safe(line) for line in cell.splitlines())


def _in_words(schedule: Schedule, source: Source) -> str:
    """Return when a source is synced by itself, with the times to come that are known already."""
    mode = f"{schedule.mode} " if source.mode == "both" else ""
    jitter = f", up to {schedule.jitter_seconds:g} s later" if schedule.jitter_seconds else ""
    if schedule.cron is None:
        return f"{mode}every {schedule.every_seconds:g} s{jitter}"
    ticks = CronSim(schedule.cron, datetime.now(UTC).astimezone(ZoneInfo(schedule.time_zone)))
    next_ones = ", ".join(f"{tick:%Y-%m-%d %H:%M %Z}" for tick in islice(ticks, SHOWN_TICKS))
    return f"{mode}{schedule.cron}{jitter}; next {next_ones}"


async def _fetch_each(sources: Sequence[Source]) -> int:
    code = DONE
    for source in sources:
        try:
            output.print(safe(await _look_at(source)))
        except LockstepError as exc:
            output.print(safe(f"{source.name}: cannot be used"))
            show_error(exc)
            code = FAILED
    return code


async def _look_at(source: Source) -> str:
    """Return what the first record of a source tells; raise SourceError if it cannot be had, or has no key."""
    async with open_feed(source) as feed, aclosing(feed.batches()) as batches:
        async for batch in batches:
            if batch.records:
                return _judge(source, batch.records[0])
    return f"{source.name}: answers, with no records"


def _judge(source: Source, raw: msgspec.Raw) -> str:
    record = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    fields = ", ".join(islice(record, SHOWN_FIELDS))
    try:
        key = FeedKey.of(source).read(record)
    except KeyError as exc:
        raise SourceInvalid(
            f"The first record of {source.name} has no {' and '.join(source.key)}.",
            remedy=f"It has {fields}; name in `key` what identifies a record.",
        ) from exc
    told = ", ".join(f"{name}={bytes(text).decode(errors='replace')}" for name, text in key.items())
    return f"{source.name}: answers; the first record is {told}, with {fields}"
