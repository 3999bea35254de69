"""What all commands share: their output, their exit codes, and the way to the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

import click
from quart import Quart
from rich.console import Console
from rich.text import Text

import app
import telemetry
from config import SAMPLE_PATH, Settings, load_settings
from definitions import Source
from errors import LockstepError, SettingError, SourcesFileWrong
from store import migrations
from store.database import Database
from store.runs import reap_stale_runs
from web.sample import sample_blueprint
from web.serving import bind, run_loop, serve_for_now, stop_on_signals

DONE, DIFFERENT, WRONG, FAILED, INTERRUPTED = 0, 1, 2, 3, 130

SourceWork = Callable[[Settings, Database, Source], Awaitable[int]]

log = telemetry.get_logger(__name__)
output = Console(highlight=False)
errors_output = Console(stderr=True, highlight=False)


async def done(message: str) -> int:
    """Say what was done, and return the exit code for it."""
    output.print(Text(message))
    return DONE


def reporting(work: Callable[[Settings], int], *, load: Callable[[], Settings] = load_settings) -> int:
    """Do `work` with the settings, and say what went wrong in words; the log has the traceback."""
    telemetry.setup_logging(log_file=None)  # until the settings are known; structlog's own set-up shows local variables
    try:
        return work(load())
    except SettingError as exc:
        show_error(exc)
        return WRONG
    except LockstepError as exc:
        show_error(exc)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        log.exception(telemetry.UNCAUGHT_ERROR)
        errors_output.print(
            Text("Something went wrong that should not. ", style="bold red") + LockstepError.default_remedy
        )
        return FAILED


def show_error(error: LockstepError) -> None:
    """Show cause and remedy of an error."""
    run = getattr(error, "run", None)
    for cause in error.mistakes if isinstance(error, SourcesFileWrong) else (error.cause,):
        errors_output.print(Text(f"Run {run}: " if run else "") + safe(cause), style="bold red", soft_wrap=True)
    errors_output.print(safe(error.remedy))


def safe(value: object) -> Text:
    """Return text of foreign origin with no secret, no escape sequence and no markup in it."""
    return Text(telemetry.escape(telemetry.redact(str(value))))


def with_database(settings: Settings, work: Callable[[Database], Awaitable[int]], *, upgrade: bool = True) -> int:
    """Reach the database, bring its tables up to date unless told otherwise, and do `work`."""
    app.set_up_logging(settings, console=False)  # the screen is for the result; app.log has every line

    async def reach() -> int:
        async with _database(settings, upgrade=upgrade) as database:
            return await _until_signal(work(database))

    return run_loop(reach())


@asynccontextmanager
async def _database(settings: Settings, *, upgrade: bool) -> AsyncIterator[Database]:
    server = app.database_server(settings)
    try:
        database = app.connect(settings, await server.start())
        try:
            await database.ping()
            if upgrade:
                await migrations.upgrade(database)
                await reap_stale_runs(database)
            yield database
        finally:
            await database.close()
    finally:
        await server.stop()


async def _until_signal(work: Awaitable[int]) -> int:
    """Await `work`; a signal cancels it, so that it can roll back and record that it was interrupted."""
    stop, task = asyncio.create_task(stop_on_signals().wait()), asyncio.ensure_future(work)
    await asyncio.wait({stop, task}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    return INTERRUPTED if task.cancelled() else task.result()


source_option = click.option("--source", metavar="NAME", help="Which source; without it, the first one.")
mode_option = click.option(
    "--mode", type=click.Choice(["snapshot", "incremental"]), help="How, for a source that has both modes."
)


def with_source(settings: Settings, name: str | None, work: SourceWork) -> int:
    """Do `work` with database and source; the sample feed is served for as long unless a running service serves it."""
    sources = app.checked_sources(settings)

    async def fetch(database: Database) -> int:
        async with _sample_served(settings) if settings.uses_sample else nullcontext():
            return await work(settings, database, sources.named(name))

    return with_database(settings, fetch)


def with_every_source(settings: Settings, work: SourceWork) -> int:
    """Do `work` with all sources, one after the other; return the gravest exit code."""
    sources = app.checked_sources(settings)

    async def each(database: Database, source: Source) -> int:
        try:
            return await work(settings, database, source)
        except LockstepError as exc:
            show_error(exc)
            return FAILED

    async def fetch(database: Database) -> int:
        async with _sample_served(settings) if settings.uses_sample else nullcontext():
            return max([await each(database, source) for source in sources])

    return with_database(settings, fetch)


@asynccontextmanager
async def _sample_served(settings: Settings) -> AsyncIterator[None]:
    try:
        listener = bind(settings.host, settings.port)
    except SettingError:
        # Whoever has the port is taken for the running service; if it is not, the fetch says what it met.
        yield
        return
    feed = Quart("sample", static_folder=None)
    feed.register_blueprint(sample_blueprint(path=SAMPLE_PATH, data_dir=settings.data_dir))
    async with serve_for_now(feed, listener):
        yield
