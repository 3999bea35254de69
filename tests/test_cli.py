"""The commands say what they did, in words and by their exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.service import free_port, get

HOUSE = Path(__file__).parents[1]


class Shell:
    """Runs the commands in one directory with one environment."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self.environment = {**os.environ, "COLUMNS": "200", "SETTLE_SECONDS": "0", **environment}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, HOUSE / "cli.py", *arguments, cwd=self.directory, env=self.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await self.start(*arguments)
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Serve for as long as the block lasts, then end it by SIGTERM."""
        service = await self.start("serve", "--first-sync")
        try:
            yield service
        finally:
            service.send_signal(signal.SIGTERM)
            await service.communicate()


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    """Give a shell whose source is the sample feed."""
    return Shell(tmp_path, DATABASE_URL=database_url, PORT=str(free_port()))


def counts(output: str) -> dict[str, int]:
    """Read the table of counts."""
    lines = [line for line in output.splitlines() if line and line[0] in "┃│"]
    names, values = ([cell.strip() for cell in line[1:-1].split("┃" if "┃" in line else "│")] for line in lines[:2])
    return {name: int(value.replace(",", "")) for name, value in zip(names, values, strict=True)}


async def test_sync_plan_and_verify_go_together(shell: Shell) -> None:
    """The sample is loaded, verified exact, planned and brought in step by exactly that plan, without a service."""
    code, output, errors = await shell.run("sync")
    assert (code, errors) == (0, "")
    assert counts(output)["created"] == 2495
    code, output, _ = await shell.run("verify")
    assert code == 0
    assert "exact" in output
    code, output, _ = await shell.run("plan")
    planned = counts(output)
    assert code == 0
    assert planned["updated"] > 0
    code, output, _ = await shell.run("sync", "--plan", output.split()[-1])
    assert code == 0
    assert {name: counts(output)[name] for name in ("created", "updated", "deleted")} == {
        name: planned[name] for name in ("created", "updated", "deleted")
    }


async def test_held_deletions_exit_with_1(shell: Shell, tmp_path: Path) -> None:
    """Deletions over the guard exit with 1 and say how to approve them; the approval exits with 0."""
    await shell.run("sync")
    (tmp_path / "data" / "sample_version").write_text("400")
    code, output, _ = await shell.run("sync")
    assert code == 1
    command = output.splitlines()[-1].split()
    assert command[:3] == ["python", "cli.py", "sync"]
    (tmp_path / "data" / "sample_version").write_text("400")
    code, output, _ = await shell.run(*command[2:])
    assert code == 0
    assert counts(output)["deleted"] > 100


async def test_verify_finds_and_repairs_an_edit(shell: Shell, database_url: str) -> None:
    """A value changed by hand makes verify exit with 1 and name it; --repair writes the source's value again."""
    await shell.run("sync")
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    await connection.execute("UPDATE my_data SET brand = 'edited' WHERE id = 700")
    await connection.close()
    code, output, _ = await shell.run("verify")
    assert code == 1
    assert "edited" in output
    code, output, _ = await shell.run("verify", "--repair")
    assert code == 0
    assert counts(output)["updated"] == 1
    assert (await shell.run("verify"))[0] == 0


async def test_failures_are_said_in_words(shell: Shell) -> None:
    """A failure exits with 3 and cause and remedy instead of a traceback; a wrong setting or usage exits with 2."""
    shell.environment["SOURCE_URL"] = f"http://127.0.0.1:{free_port()}/feed?api_key=canary-key"
    shell.environment["SOURCE_ATTEMPTS"] = "1"
    code, _, errors = await shell.run("sync")
    assert code == 3
    assert "Traceback" not in errors
    assert "sync again" in errors
    log = (shell.directory / "app.log").read_text()
    assert "canary-key" not in errors + log
    shell.environment["PORT"] = "http"
    code, _, errors = await shell.run("sync")
    assert (code, "PORT" in errors) == (2, True)
    assert (await shell.run("sync", "--approve", "0"))[0] == 2


async def test_migrations_go_up_and_down(shell: Shell) -> None:
    """`migrate` brings the tables up, `migrate down base` takes them away, `migrate up` brings them back."""
    for arguments in (("migrate",), ("migrate", "down", "base"), ("migrate", "up")):
        code, output, errors = await shell.run(*arguments)
        assert (code, errors) == (0, ""), arguments
        assert output


async def read_until(stream: asyncio.StreamReader | None, text: str) -> str:
    """Return what a process writes up to and with the line that has `text` in it."""
    assert stream is not None
    seen = ""
    while text not in seen:
        line = (await stream.readline()).decode()
        assert line, f"{text} never came: {seen}"
        seen += line
    return seen


async def test_serve_shows_a_first_and_a_second_sync(tmp_path: Path) -> None:
    """A start with nothing set brings PostgreSQL and a sample of its own, and shows all that a sync can do."""
    shell = Shell(tmp_path, PORT=str(free_port()))
    shell.environment.pop("DATABASE_URL", None)
    async with shell.serving() as service:
        shown = await read_until(service.stdout, "Try:")
        assert counts(shown)["created"] == 2495
        assert "psql" in await read_until(service.stdout, "psql")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{shell.environment['PORT']}") as client:
            _, report = await get(client, "/sync_data")
        assert all(report[name] > 0 for name in ("created", "updated", "restored", "deleted", "unchanged"))
        assert (await shell.run("verify"))[0] == 0
    assert service.returncode == 0
    assert "embedded_postgres_stopped" in (tmp_path / "app.log").read_text()
