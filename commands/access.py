"""The commands about users and service tokens."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta

import click
from rich.table import Table
from rich.text import Text

import telemetry
from access import SCOPES, Scope, known_scopes
from commands.support import done, errors_output, output, reporting, safe, with_database
from config import Settings
from errors import BadRequest, NotFound
from store.access import (
    delete_token,
    delete_user,
    insert_token,
    insert_user,
    select_tokens,
    select_users,
)
from store.database import Database
from web.passwords import SHORTEST_PASSWORD, Passwords

NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
LONGEST_LIFE_DAYS = 36_500

log = telemetry.get_logger(__name__)


def _check_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return a name as it is kept; names differ by more than case."""
    if not NAME.fullmatch(value.lower()):
        raise click.BadParameter("must be 1 to 64 letters, digits or . _ @ + -, and begin with a letter or digit")
    return value.lower()


name_argument = click.argument("name", callback=_check_name)


def scope_option(*, default: tuple[Scope, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that says what a user or token may do."""
    return click.option(
        "--scope",
        "scopes",
        type=click.Choice(SCOPES),
        multiple=True,
        default=default,
        required=not default,
        show_default=bool(default),
        help="What it may do; give it again for more. read: see runs and changes. sync: plan and sync. admin: all.",
    )


@click.group()
def user() -> None:
    """Add, list and remove the people who sign in with a password."""


@user.command("add")
@name_argument
@scope_option(default=("read",))
def add_user(name: str, scopes: tuple[str, ...]) -> None:
    """Add a user. The password is asked for, or read from standard input."""
    password = _read_password()

    async def work(settings: Settings, database: Database) -> int:
        password_hash = await Passwords().hash(password)
        added = await insert_user(database, name=name, password_hash=password_hash, scopes=known_scopes(scopes))
        if added is None:
            raise BadRequest(f"There is a user {name} already.", remedy=f"Remove it first: cli.py user remove {name}")
        log.info(telemetry.ACCESS_CHANGED, what="user added", user=name, scopes=sorted(scopes))
        _say_when_nothing_is_asked_for(settings)
        return await done(f"{name} can sign in and may {_words(added.scopes)}.")

    _run(work)


def _read_password() -> str:
    """Return the password; never from the command line, where the whole machine can read it."""
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if len(password) < SHORTEST_PASSWORD:
        raise click.UsageError(f"The password must have at least {SHORTEST_PASSWORD} characters.")
    telemetry.register_secrets([password])
    return password


@user.command("list")
def list_users() -> None:
    """Show who can sign in."""

    async def work(_settings: Settings, database: Database) -> int:
        found = await select_users(database)
        rows = [(each.name, _words(each.scopes), _moment(each.created_at)) for each in found]
        return _show("Users", ("name", "scopes", "added"), rows)

    _run(work)


@user.command("remove")
@name_argument
def remove_user(name: str) -> None:
    """Remove a user; access tokens that they hold end at once."""

    async def work(_settings: Settings, database: Database) -> int:
        if not await delete_user(database, name):
            raise NotFound(f"There is no user {name}.", remedy="See cli.py user list.")
        log.info(telemetry.ACCESS_CHANGED, what="user removed", user=name)
        return await done(f"{name} cannot sign in any more.")

    _run(work)


@click.group()
def token() -> None:
    """Make, list and revoke the long-lived tokens of programs such as cron."""


@token.command("create")
@name_argument
@scope_option(default=())
@click.option(
    "--expires-days", type=click.IntRange(1, LONGEST_LIFE_DAYS), metavar="N", help="End after N days; else never."
)
def create_token(name: str, scopes: tuple[str, ...], expires_days: int | None) -> None:
    """Make a token and show it, this once, on standard output."""

    async def work(settings: Settings, database: Database) -> int:
        lifetime = None if expires_days is None else timedelta(days=expires_days)
        made, secret = await insert_token(database, name=name, scopes=known_scopes(scopes), lifetime=lifetime)
        log.info(telemetry.ACCESS_CHANGED, what="token created", id=made.id, name=name, scopes=sorted(scopes))
        _say_when_nothing_is_asked_for(settings)
        errors_output.print(Text(f"Token {made.id} may {_words(made.scopes)}. Keep it now; it cannot be shown again."))
        click.echo(secret)
        return 0

    _run(work)


@token.command("list")
def list_tokens() -> None:
    """Show the tokens, but not what they consist of."""

    async def work(_settings: Settings, database: Database) -> int:
        rows = [
            (
                str(each.id),
                each.name,
                _words(each.scopes),
                _moment(each.created_at),
                _moment(each.expires_at),
                _moment(each.last_used_at),
            )
            for each in await select_tokens(database)
        ]
        return _show("Service tokens", ("id", "name", "scopes", "created", "expires", "last used"), rows)

    _run(work)


@token.command("revoke")
@click.argument("number", type=click.IntRange(min=1, max=2**63 - 1), metavar="ID")
def revoke_token(number: int) -> None:
    """End a token at once."""

    async def work(_settings: Settings, database: Database) -> int:
        revoked = await delete_token(database, number)
        if revoked is None:
            raise NotFound(f"There is no token {number}.", remedy="See cli.py token list.")
        log.info(telemetry.ACCESS_CHANGED, what="token revoked", id=number, name=revoked.name)
        return await done(f"Token {number} ({revoked.name}) is worth nothing any more.")

    _run(work)


def _run(work: Callable[[Settings, Database], Awaitable[int]]) -> None:
    sys.exit(reporting(lambda settings: with_database(settings, lambda database: work(settings, database))))


def _show(title: str, columns: Iterable[str], rows: Sequence[tuple[str, ...]]) -> int:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(safe(cell) for cell in row))
    output.print(table)
    return 0


def _say_when_nothing_is_asked_for(settings: Settings) -> None:
    if not settings.needs_secret:
        errors_output.print(Text("The service asks nobody on this machine for it, unless REQUIRE_TOKEN=true is set."))


def _words(scopes: Iterable[str]) -> str:
    return ", ".join(sorted(scopes))


def _moment(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"
