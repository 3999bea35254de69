"""The command that looks at a feed and writes an entry for it into the sources file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import click
from rich.table import Table
from rich.text import Text

import app
import telemetry
from commands.support import DONE, output, reporting, safe
from config import Settings, load_environment
from definitions import OffsetPaging, PageNumberPaging, Paging, Source
from errors import SettingError, SourcesFileWrong
from sources import redact
from sources.looking import Look, look_at
from sources_file.proposing import Proposal, propose
from sources_file.samples import read_sample
from sources_file.writing import Request, addition, appended, demand_new, entry, name_of, without_secrets
from web.serving import run_loop

LOOKED_AT_BYTES = 8 * 2**20
SHOWN_FIELDS = 40


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command was told."""

    url: str
    path: Path
    """The sources file, which may be yet to be made."""
    name: str
    table: str | None
    headers: Mapping[str, str]
    dry_run: bool


@click.command()
@click.argument("url")
@click.option("--name", metavar="NAME", help="What the source is to be called; without it, a part of the URL.")
@click.option("--table", metavar="TABLE", help="The table to mirror it in; without it, one of the source's name.")
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent along; ${VARIABLE} stands for a secret."
)
@click.option("--dry-run", is_flag=True, help="Print the entry instead of writing it.")
def add(url: str, name: str | None, table: str | None, headers: tuple[str, ...], dry_run: bool) -> None:
    """Look at the feed at URL, and write an entry for it into the sources file."""

    def work(settings: Settings) -> int:
        app.set_up_logging(settings, console=False)
        _demand_url(url)
        order = Order(
            url=url,
            path=load_environment().sources_path,
            name=name or name_of(url),
            table=table,
            headers=dict(map(_split_header, headers)),
            dry_run=dry_run,
        )
        return _add(settings, order)

    sys.exit(reporting(work, load=_load))


def _load() -> Settings:
    """Read the settings, and the sources file unless it is yet to be made."""
    settings = load_environment()
    if not settings.sources_path.exists():
        return settings.model_copy(update={"sources_file": None})
    _ = settings.file
    return settings


def _demand_url(url: str) -> None:
    try:
        usable = bool(urlsplit(url).hostname) or "${" in url
    except ValueError:
        usable = False
    if not usable:
        raise SettingError(
            "This is no URL of a feed.", remedy="It must begin with http:// or https://, and name a host."
        )


def _split_header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon:
        raise SettingError("A header has no colon in it.", remedy="Write it as in --header 'X-Api-Key: ${SHOP_KEY}'.")
    return name.strip(), value.strip()


def _add(settings: Settings, order: Order) -> int:
    text = order.path.read_bytes().decode() if order.path.exists() else ""
    demand_new(order.name, text, order.path)
    request = without_secrets(order.name, order.url, order.headers)
    telemetry.register_secrets(request.variables.values())
    source = _read(settings, order, entry(order.name, order.table, request), request)

    async def look() -> int:
        seen = await look_at(source, max_bytes=LOOKED_AT_BYTES)
        return _conclude(settings, order, request, text, source, _proposal(source, seen))

    return run_loop(look())


def _conclude(settings: Settings, order: Order, request: Request, text: str, source: Source, proposal: Proposal) -> int:
    """Write the entry, or print it, and say what it relies on."""
    written = entry(order.name, order.table, request.without(_set_by(proposal.paging)), proposal)
    _read(settings, order, appended(text, written), request)
    _show(source, proposal)
    if order.dry_run:
        output.print(Text(f"This would be written to {order.path}:\n"))
    else:
        _append(order.path, addition(text, written))
        output.print(Text(f"Written to {order.path}:\n"))
    output.print(Text("\n").join(Text(telemetry.escape(line)) for line in written.splitlines()), soft_wrap=True)
    _show_next_steps(order.name, request)
    return DONE


def _append(path: Path, text: str) -> None:
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError as exc:
        raise SettingError(
            f"{path} cannot be written ({exc.strerror}).",
            remedy="Make it writable, or add --dry-run and copy the entry.",
        ) from exc


def _read(settings: Settings, order: Order, text: str, request: Request) -> Source:
    """Return the source that is to be added, from what the sources file would be."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / order.path.name
        path.write_bytes(text.encode())
        try:
            read = settings.read_sources(path, request.variables)
        except SourcesFileWrong as exc:
            there = [mistake.replace(str(path), str(order.path)) for mistake in exc.mistakes]
            raise SourcesFileWrong(path.name, there) from exc
    return next(source for source in read.sources if source.name == order.name)


def _proposal(source: Source, look: Look) -> Proposal:
    sample = read_sample(look.body, content_type=look.content_type, is_whole=look.is_whole)
    return propose(sample, url=source.url, headers=look.headers, next_link=look.next_link)


def _set_by(paging: Paging | None) -> set[str]:
    """Return the parameters that paging sets, so that the URL need not."""
    match paging:
        case PageNumberPaging():
            return {paging.parameter, *([paging.size_parameter] if paging.size_parameter else [])}
        case OffsetPaging():
            return {paging.parameter, paging.limit_parameter}
    return set()


def _show(source: Source, proposal: Proposal) -> None:
    sample = proposal.sample
    where = f"in the array under {'.'.join(sample.path)}" if sample.path else "in an array"
    where = "one to a line" if sample.format == "ndjson" else where
    output.print(safe(f"{redact(source.url)} answers with records, {where}; {len(sample.records):,} were looked at."))
    table = Table()
    for column in ("field", "type", "in records", "different values"):
        table.add_column(column, overflow="fold")
    for each in proposal.fields[:SHOWN_FIELDS]:
        distinct = f"{each.distinct:,}" if each.may_be_key else ""
        table.add_row(safe(each.name), each.sql_type or "always null", f"{each.present:,}", distinct)
    output.print(table)
    if len(proposal.fields) > SHOWN_FIELDS:
        output.print(Text(f"and {len(proposal.fields) - SHOWN_FIELDS} more fields"))
    if proposal.key is not None:
        output.print(safe(f"Key: {', '.join(proposal.key.fields)}, since {proposal.key.reason}."))
    for warning in proposal.warnings:
        output.print(Text("Mind: ", style="bold yellow") + safe(warning))


def _show_next_steps(name: str, request: Request) -> None:
    if request.variables:
        output.print(Text("No secret was written. Put what stood there into the environment, or into .env, first:"))
        for variable in request.variables:
            output.print(Text(f"  export {variable}=…"))
    output.print(Text("Go on with:"))
    for command, purpose in (
        ("check", "see that all is right, and every source"),
        (f"plan --source {name}", "see what a sync would do"),
        (f"sync --source {name}", "do it"),
    ):
        output.print(Text(f"  python cli.py {command}\n      {purpose}"), soft_wrap=True)
