"""The commands that take a run back, and that pause and resume the source."""

from __future__ import annotations

import sys
from functools import partial

import click

import app
from commands.support import done, reporting, source_option, with_database, with_source
from config import Settings
from definitions import Source
from store import pauses
from store.database import Database
from undoing import select_source_of_run, undo_run


@click.command()
@click.argument("run", type=click.IntRange(min=1))
def undo(run: int) -> None:
    """Take back all that RUN changed, in a run of its own, and pause the source."""

    async def work(settings: Settings, database: Database) -> int:
        source = await select_source_of_run(database, app.checked_sources(settings), run)
        report = await undo_run(database, source, run)
        counts = report.counts
        return await done(
            f"Run {report.run} has undone run {run}: {counts.updated:,} rows updated, {counts.restored:,} restored,"
            f" {counts.deleted:,} deleted.\nThe source is paused. When it is right again: python cli.py resume"
        )

    sys.exit(reporting(lambda settings: with_database(settings, partial(work, settings))))


@click.command()
@source_option
@click.option("--reason", default="somebody paused it", metavar="TEXT", help="What those are told who try to sync.")
def pause(source: str | None, reason: str) -> None:
    """Sync nothing until the source is resumed."""

    async def work(_settings: Settings, database: Database, source: Source) -> int:
        paused = await pauses.pause(database, source, reason=reason)
        return await done(f"{source.name} is paused." if paused else f"{source.name} was paused already.")

    sys.exit(reporting(lambda settings: with_source(settings, source, work)))


@click.command()
@source_option
def resume(source: str | None) -> None:
    """Sync a paused source again from the next call on."""

    async def work(_settings: Settings, database: Database, source: Source) -> int:
        resumed = await pauses.resume(database, source)
        return await done(f"{source.name} is resumed." if resumed else f"{source.name} was not paused.")

    sys.exit(reporting(lambda settings: with_source(settings, source, work)))
