"""The commands that take a run back, and that pause and resume the source."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import click

import app
from cli_support import done, reporting, with_database
from config import Settings
from models import Source
from store import pauses
from store.database import Database
from undoing import undo_run

Work = Callable[[Database, Source], Awaitable[int]]


@click.command()
@click.argument("run", type=click.IntRange(min=1))
def undo(run: int) -> None:
    """Take back all that RUN changed, in a run of its own, and pause the source."""

    async def work(database: Database, source: Source) -> int:
        report = await undo_run(database, source, run)
        counts = report.counts
        return await done(
            f"Run {report.run} has undone run {run}: {counts.updated:,} rows updated, {counts.restored:,} restored,"
            f" {counts.deleted:,} deleted.\nThe source is paused. When it is right again: python cli.py resume"
        )

    sys.exit(reporting(lambda settings: _with_source(settings, work)))


@click.command()
@click.option("--reason", default="somebody paused it", metavar="TEXT", help="What those are told who try to sync.")
def pause(reason: str) -> None:
    """Sync nothing until the source is resumed."""

    async def work(database: Database, source: Source) -> int:
        paused = await pauses.pause(database, source, reason=reason)
        return await done(f"{source.name} is paused." if paused else f"{source.name} was paused already.")

    sys.exit(reporting(lambda settings: _with_source(settings, work)))


@click.command()
def resume() -> None:
    """Sync a paused source again from the next call on."""

    async def work(database: Database, source: Source) -> int:
        resumed = await pauses.resume(database, source)
        return await done(f"{source.name} is resumed." if resumed else f"{source.name} was not paused.")

    sys.exit(reporting(lambda settings: _with_source(settings, work)))


def _with_source(settings: Settings, work: Work) -> int:
    source = app.checked_source(settings)
    return with_database(settings, lambda database: work(database, source))
