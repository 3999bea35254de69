"""Do what a page of the documentation tells its reader to do, and compare what happens with what it says.

A page is followed from top to bottom, in a directory of its own, by a real shell. Blocks marked `toml NAME` or
`sh NAME` are written to that file; in blocks marked `console`, lines that begin with `$` are typed, and what follows is
what they are to print. A command that ends with `&` starts a service, which is waited for. A comment
`<!-- meanwhile: WHAT -->` is where something happens at the source. In what is printed, white space does not count,
`…` stands for anything, and moments, durations and other figures of the day stand for any of their kind.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.codebase import ROOT

STEP = re.compile(r"^```(\w+)(?: ([\w.]+))?\n(.*?)^```$|^<!-- meanwhile: ([\w ]+) -->$", re.MULTILINE | re.DOTALL)
SECONDS_TO_START = 60
SECONDS_FOR_A_COMMAND = 60

VOLATILE = (
    (r"\d{4}-\d{2}-\d{2}[T ]?\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:?\d{2}|UTC)?",) * 2,
    (r'"(?:duration_ms|latency_ms|age_seconds|retry_after_seconds|body_bytes)":\d+(?:\.\d+)?', r'"\w+":\d+(?:\.\d+)?'),
    (r"in\d+\.\d+s", r"in\d+\.\d+s"),
    (r"duration_ms=\d+", r"duration_ms=\d+"),
    (r'"[0-9a-f]{1,4}-[0-9a-f]{16}"', r'"[0-9a-f]{1,4}-[0-9a-f]{16}"'),
)
"""What differs from day to day, as it stands on a page without white space, and what may stand in its place."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do: write a file, have something happen, or type a command and see what it prints."""

    file: str | None = None
    happening: str | None = None
    command: str | None = None
    text: str = ""
    """The file's text, or what the command is to print."""


def steps(page: str) -> Iterator[Step]:
    """Yield what a page has its reader do."""
    for language, name, text, happening in STEP.findall(page):
        if happening:
            yield Step(happening=happening)
        elif name:
            yield Step(file=name, text=text)
        elif language == "console":
            yield from _typed(text)


def _typed(text: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(place for place, line in enumerate(lines) if not line.endswith("\\"))
        yield Step(command="\n".join(lines[: end + 1]), text="\n".join(lines[end + 1 :]))


def pattern(expected: str) -> re.Pattern[str]:
    """Return what the output of a command has to match, white space left out of both."""
    text = re.sub(r"\s+", "", expected)
    alternatives = "|".join(f"({told})" for told, _ in VOLATILE)
    spelled, place = "", 0
    for found in re.finditer(alternatives, text):
        spelled += re.escape(text[place : found.start()]) + VOLATILE[(found.lastindex or 1) - 1][1]
        place = found.end()
    return re.compile((spelled + re.escape(text[place:])).replace("…", ".*"), re.DOTALL)


class Reader:
    """Somebody who follows a page in a directory of their own; `replaced` are addresses that are elsewhere here."""

    def __init__(
        self,
        home: Path,
        *,
        replaced: Mapping[str, str],
        environment: Mapping[str, str],
        meanwhile: Callable[[str], Awaitable[None]],
    ) -> None:
        self._home = home
        self._replaced = replaced
        self._meanwhile = meanwhile
        self._services: list[asyncio.subprocess.Process] = []
        self._environment = {**os.environ, **environment, "COLUMNS": "200", "NO_COLOR": "1"}
        (home / ".venv/bin").mkdir(parents=True)
        python = home / ".venv/bin/python"  # a link would not find the packages of the environment that it leads to
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        for name in ("app.py", "cli.py"):
            (home / name).symlink_to(ROOT / name)

    async def follow(self, todo: Sequence[Step], *, ready_at: str) -> None:
        """Do every step; AssertionError where a command does not print what it is to print."""
        for step in todo:
            if step.happening:
                await self._meanwhile(step.happening)
            elif step.file:
                (self._home / step.file).write_text(self._here(step.text), encoding="utf-8")
            elif step.command and step.command.endswith("&"):
                await self._start(step.command.rstrip(" &"), ready_at)
            elif step.command:
                printed = self._there(await self._type(self._here(step.command)))
                wanted = pattern(step.text)
                told = f"$ {step.command}\nprinted\n{printed}\nwhich is not\n{step.text}"
                assert wanted.fullmatch(re.sub(r"\s+", "", printed)), told

    async def leave(self) -> None:
        """End the services that were started."""
        for service in self._services:
            with suppress(ProcessLookupError):
                service.send_signal(signal.SIGTERM)
            await asyncio.wait_for(service.wait(), SECONDS_TO_START)

    async def _start(self, command: str, ready_at: str) -> None:
        shell = f"exec {self._here(command)} > service.out 2>&1"
        service = await asyncio.create_subprocess_shell(shell, cwd=self._home, env=self._environment)
        self._services.append(service)
        async with asyncio.timeout(SECONDS_TO_START), aiohttp.ClientSession() as client:
            while not await _answers(client, ready_at):
                assert service.returncode is None, (self._home / "service.out").read_text()
                await asyncio.sleep(0.1)

    async def _type(self, command: str) -> str:
        process = await asyncio.create_subprocess_shell(
            command,
            cwd=self._home,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await asyncio.wait_for(process.communicate(), SECONDS_FOR_A_COMMAND)
        return printed.decode()

    def _here(self, text: str) -> str:
        for told, real in self._replaced.items():
            text = text.replace(told, real)
        return text

    def _there(self, text: str) -> str:
        for told, real in self._replaced.items():
            text = text.replace(real, told)
        return text


async def _answers(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(url) as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
