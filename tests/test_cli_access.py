"""The commands about users and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from cli import cli
from store import Database
from store.access import select_tokens, select_user, select_users
from tests.access import PASSWORD, SECRET_KEY
from tests.test_cli import Shell
from web.passwords import Passwords

Answer = TypeVar("Answer")
Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a way to run a command that reads `said` from its standard input, without waiting for a process."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "REQUIRE_TOKEN": "true",
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)

    def invoke(*arguments: str, said: str = "") -> Result:
        return CliRunner().invoke(cli, arguments, input=said)

    return invoke


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], str]:
    return (tmp_path / "app.log").read_text


def ask(database_url: str, question: Callable[[Database], Awaitable[Answer]]) -> Answer:
    """Look into the database; the test itself has no loop, since every command makes its own."""

    async def answer() -> Answer:
        database = Database.connect(database_url, pool_size=1)
        try:
            return await question(database)
        finally:
            await database.close()

    return asyncio.run(answer())


def test_users_come_and_go(run: Run, database_url: str, log: Callable[[], str]) -> None:
    """A user is added with a password from standard input, listed, not added twice, and removed."""
    added = run("user", "add", "Ada", "--scope", "read", "--scope", "sync", said=PASSWORD)
    assert (added.exit_code, added.stderr) == (0, "")
    user = ask(database_url, lambda database: select_user(database, "ada"))
    assert user is not None
    assert user.scopes == {"read", "sync"}
    assert asyncio.run(Passwords().match(user.password_hash, PASSWORD))
    assert not Passwords().are_outdated(user.password_hash)
    twice, listed = run("user", "add", "ada", said=PASSWORD), run("user", "list")
    assert (twice.exit_code, "already" in twice.stderr) == (3, True)
    assert all(word in listed.stdout for word in ("ada", "read, sync"))
    assert run("user", "remove", "ada").exit_code == 0
    assert ask(database_url, select_users) == []
    assert run("user", "remove", "ada").exit_code == 3
    everything = log() + added.output + twice.output + listed.output
    assert PASSWORD not in everything
    assert user.password_hash not in everything


def test_tokens_are_shown_once_and_revoked(run: Run, database_url: str, log: Callable[[], str]) -> None:
    """A token stands alone on standard output, so that a script can take it; the list does not show it."""
    created = run("token", "create", "cron", "--scope", "sync", "--expires-days", "30")
    (token,) = created.stdout.splitlines()
    assert (created.exit_code, token[:3], token in created.stderr) == (0, "ls_", False)
    (kept,) = ask(database_url, select_tokens)
    assert kept.expires_at is not None
    assert kept.scopes == {"sync"}
    assert (kept.name, (kept.expires_at - kept.created_at).days) == ("cron", 30)
    listed = run("token", "list")
    assert all(word in listed.stdout for word in ("cron", "sync", str(kept.id)))
    assert run("token", "revoke", str(kept.id)).exit_code == 0
    assert ask(database_url, select_tokens) == []
    assert run("token", "revoke", str(kept.id)).exit_code == 3
    assert (token in listed.stdout + log(), log().count("access_changed")) == (False, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("user", "add", "ada"), "short\n"),
        (("user", "add", "a b"), PASSWORD),
        (("user", "add", "ada", PASSWORD), ""),
        (("token", "create", "cron"), ""),
        (("token", "create", "cron", "--scope", "root"), ""),
        (("token", "create", "cron", "--scope", "read", "--expires-days", "0"), ""),
    ],
)
def test_wrong_usage_is_said(run: Run, arguments: tuple[str, ...], said: str) -> None:
    """A short password or one on the command line, a strange name, a token without a known scope: 2."""
    outcome = run(*arguments, said=said)
    assert (outcome.exit_code, "Usage:" in outcome.stderr) == (2, True)


async def test_what_has_no_effect_yet_is_said(tmp_path: Path, database_url: str) -> None:
    """On loopback the service asks nobody, and whoever makes a token is told so."""
    shell = Shell(tmp_path, DATABASE_URL=database_url)
    code, _, errors = await shell.run("token", "create", "cron", "--scope", "read")
    assert (code, "REQUIRE_TOKEN" in errors) == (0, True)
