"""The commands that people type.

Exit codes: 0 done; 1 done, but deletions are held or the table differs from its source; 2 the command or a setting is
wrong; 3 it failed, and the reason was said; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url

import app
import sync as engine
from commands.access import token, user
from commands.add import add
from commands.sources import check
from commands.support import (
    DIFFERENT,
    DONE,
    done,
    errors_output,
    mode_option,
    output,
    reporting,
    safe,
    show_error,
    source_option,
    with_database,
    with_every_source,
    with_source,
)
from commands.undo import pause, resume, undo
from commands.worker import worker
from config import Settings
from definitions import RunMode, Source
from errors import LockstepError
from models import Counts, Difference, Problem, Report
from models import Progress as FetchProgress
from store import migrations
from store.database import Database
from web.service import Service

SHOWN_FIELDS = 3
"""How many fields of one difference are worth a line on the screen."""
ALWAYS_SHOWN = frozenset({"records", "created", "updated", "restored", "deleted", "unchanged"})

OnProgress = Callable[[FetchProgress], None]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Keep a PostgreSQL table in step with a JSON feed. Settings come from the environment and .env."""


@cli.command()
@click.option("--first-sync", is_flag=True, help="Sync once after the start, and say what to try next.")
def serve(first_sync: bool) -> None:
    """Serve HTTP until SIGTERM or Ctrl-C."""
    sys.exit(reporting(lambda settings: app.serve(settings, alongside=_first_sync(settings) if first_sync else None)))


@cli.command()
@source_option
@mode_option
@click.option("--all", "every", is_flag=True, help="Sync every source, one after the other.")
@click.option("--approve", type=click.IntRange(min=1), metavar="RUN", help="Carry out the deletions that RUN held.")
@click.option("--plan", metavar="HASH", help="Apply exactly the plan with this hash, or nothing.")
def sync(source: str | None, mode: RunMode | None, every: bool, approve: int | None, plan: str | None) -> None:
    """Bring a table in step with its source. Exits 1 if deletions are held."""
    if every and (source or mode or approve or plan):
        raise click.UsageError("--all goes with no other option.")

    async def work(settings: Settings, database: Database, source: Source) -> int:
        with _progress_bar() as on_progress:
            report = await engine.sync_data(
                database,
                source,
                mode=mode,
                plan=plan,
                approve=approve,
                spool_dir=settings.spool_dir,
                on_progress=on_progress,
            )
        show_report(report)
        return DIFFERENT if report.status == "held" else DONE

    sys.exit(
        reporting(lambda settings: with_every_source(settings, work) if every else with_source(settings, source, work))
    )


@cli.command()
@source_option
@mode_option
def plan(source: str | None, mode: RunMode | None) -> None:
    """Show what a sync would change now, and write nothing."""

    async def work(settings: Settings, database: Database, source: Source) -> int:
        with _progress_bar() as on_progress:
            found = await engine.plan_data(
                database,
                app.looked_at(settings, source),
                mode=mode,
                spool_dir=settings.spool_dir,
                on_progress=on_progress,
            )
        _show_counts(f"A sync of {found.source} into {found.table} would do this", found.counts)
        _show_differences(found.differences)
        _show_problems(found.problems)
        output.print(Text(f"Apply it with: python cli.py sync --source {found.source} --plan {found.hash}"))
        return DONE

    sys.exit(reporting(lambda settings: with_source(settings, source, work)))


@cli.command()
@source_option
@click.option("--repair", is_flag=True, help="Write what differs, in a run that compares in the same way.")
def verify(source: str | None, repair: bool) -> None:
    """Compare every value of a table with its source. Exits 1 if they differ and are not repaired."""

    async def work(settings: Settings, database: Database, source: Source) -> int:
        looked = app.looked_at(settings, source, "current")
        with _progress_bar() as on_progress:
            found = await engine.verify_data(
                database, looked, repair=repair, spool_dir=settings.spool_dir, on_progress=on_progress
            )
        _show_differences(found.differences)
        _show_problems(found.problems)
        verdict = "exact" if found.exact else f"{found.differing} rows differ"
        output.print(
            Text(
                f"{found.table}: {found.live_rows:,} live rows, {found.records:,} records of {found.source}: {verdict}"
            )
        )
        if found.repaired is None:
            return DONE if found.exact else DIFFERENT
        show_report(found.repaired)
        return DIFFERENT if found.repaired.status == "held" else DONE

    sys.exit(reporting(lambda settings: with_source(settings, source, work)))


@cli.group(invoke_without_command=True)
@click.pass_context
def migrate(context: click.Context) -> None:
    """Bring the service's own tables to a version; without a command, to the newest."""
    if context.invoked_subcommand is None:
        context.invoke(up)


@migrate.command()
def up() -> None:
    """Bring the tables to the newest version."""
    sys.exit(reporting(lambda settings: with_database(settings, lambda _database: done("The tables are up to date."))))


@migrate.command()
@click.argument("revision")
def down(revision: str) -> None:
    """Take the tables back to REVISION; base stands for before the first."""

    async def work(database: Database) -> int:
        await migrations.downgrade(database, revision)
        return await done(f"The tables are at {revision}.")

    sys.exit(reporting(lambda settings: with_database(settings, work, upgrade=False)))


@migrate.command()
@click.argument("message")
def new(message: str) -> None:
    """Write a migration from how the models differ from the tables."""

    async def work(database: Database) -> int:
        await migrations.revision(database, message, autogenerate=True)
        return await done("The migration is written. Read it before it is used.")

    sys.exit(reporting(lambda settings: with_database(settings, work)))


def _first_sync(settings: Settings) -> app.Alongside:
    async def first(service: Service) -> None:
        await service.wait_until_ready()
        try:
            report = await service.sync(service.sources.default)
            show_report(report)
            if settings.uses_sample and report.first_load:
                output.print(
                    Text("The sample feed has changed a little meanwhile, so here is what a second sync does.")
                )
                show_report(await service.sync(service.sources.default))
        except LockstepError as exc:
            show_error(exc)
        _show_next_steps(settings, service)

    return first


def _show_next_steps(settings: Settings, service: Service) -> None:
    header = ' -H "Authorization: Bearer $SECRET_KEY"' if settings.needs_secret else ""
    steps = [
        (f"curl{header} {settings.base_url}/sync_data", "sync again"),
        (f"curl{header} '{settings.base_url}/sync_data?dry_run=1'", "see first what that would change"),
        (f"curl{header} {settings.base_url}/runs", "what the runs did"),
        (f"curl{header} {settings.base_url}/changes", "every change, in order"),
    ]
    url = make_url(service.url)
    if settings.resolved_database_url is None:
        command = f"psql -h {url.query['host']} -U {url.username} {url.database}"
        table = f'{service.sources.default.db_schema}."{service.sources.default.table}"'
        steps.append((f"{command} -c 'TABLE {table} LIMIT 5'", "look at the table"))
    output.print(Text("The service is running; Ctrl-C ends it. Try:"))
    for command, purpose in steps:
        output.print(Text(f"  {command}\n      {purpose}"), soft_wrap=True)


def show_report(report: Report) -> None:
    """Show how a run ended, and what it did, as a table."""
    took = f" in {report.duration_ms / 1000:.2f} s" if report.duration_ms is not None else ""
    _show_counts(f"Run {report.run}: {report.source} into {report.table}, {report.status}{took}", report.counts)
    _show_problems(report.problems)
    if report.status == "held":
        output.print(Text(f"Deletions are held: {report.cause}. If the source is right, approve them:"))
        output.print(Text(f"  python cli.py sync --approve {report.run}"))


def _show_counts(title: str, counts: Counts) -> None:
    table = Table(title=safe(title), title_justify="left", title_style="bold")
    shown = {name: value for name, value in dataclasses.asdict(counts).items() if value or name in ALWAYS_SHOWN}
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,}" for value in shown.values()))
    output.print(table)


def _show_differences(differences: Iterable[Difference]) -> None:
    for difference in differences:
        fields = [f"{name}: {old!r} → {new!r}" for name, (old, new) in difference.changes.items()]
        more = f", and {len(fields) - SHOWN_FIELDS} more" if len(fields) > SHOWN_FIELDS else ""
        key = ", ".join(str(value) for value in difference.key.values())
        output.print(safe(f"{difference.op:9}{key}  {'; '.join(fields[:SHOWN_FIELDS])}{more}"), soft_wrap=True)


def _show_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        output.print(safe(f"{problem.kind} record at position {problem.position}: {problem.reason}"), soft_wrap=True)


@contextmanager
def _progress_bar() -> Iterator[OnProgress]:
    """Show bytes, records and rate on a terminal while the block fetches."""
    columns = (
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors_output, transient=True, disable=not errors_output.is_terminal) as bar:
        task = bar.add_task("fetch", total=None, records=0)

        def advance(progress: FetchProgress) -> None:
            bar.update(task, completed=progress.body_bytes, total=progress.total_bytes, records=progress.records)

        yield advance


for command in (add, check, worker, undo, pause, resume, user, token):
    cli.add_command(command)

if __name__ == "__main__":
    cli()
