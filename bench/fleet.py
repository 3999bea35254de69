"""Worker processes, `python cli.py worker`: started, killed, replaced and stopped; and who used the processors."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

COMMAND = Path(__file__).parent.parent / "cli.py"
READY = b"worker_ready"
START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.05


class FleetFailed(Exception):
    """A worker did not start, or did not end as it should."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One worker process."""

    process: asyncio.subprocess.Process
    watched: psutil.Process
    console: Path


class Fleet:
    """Any number of worker processes with the same settings."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self._directory = directory
        self._settings = settings
        self._started = 0
        self._spent_seconds = 0.0
        """What workers used that are gone."""
        self.start_seconds = 0.0
        """The longest that one of the latest workers took from its start until it took jobs."""
        self.members: list[Member] = []

    async def start(self, count: int = 1) -> None:
        """Start workers, and wait until they take jobs."""
        self.start_seconds = 0.0
        self.members += await asyncio.gather(*(self._start() for _ in range(count)))

    async def kill(self, place: int) -> None:
        """Kill a worker as a power failure would, and start another in its place."""
        member = self.members.pop(place)
        self._spent_seconds += cpu_seconds(member.watched)
        member.process.kill()
        await member.process.wait()
        await self.start()

    async def stop(self) -> None:
        """Stop all workers in an orderly way."""
        members, self.members = self.members, []
        for member in members:
            self._spent_seconds += cpu_seconds(member.watched)
            with suppress(ProcessLookupError):
                member.process.terminate()
        for member in members:
            if await member.process.wait() != 0:
                raise FleetFailed(f"a worker did not end in order: {tail_of(member.console)}")

    @property
    def cpu_seconds(self) -> float:
        """What all workers have used, those that are gone included."""
        return self._spent_seconds + sum(cpu_seconds(member.watched) for member in self.members)

    async def _start(self) -> Member:
        self._started += 1
        console = self._directory / f"worker-{self._started}.txt"
        began = time.perf_counter()
        with console.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(COMMAND), "worker"),
                cwd=self._directory,  # away from any .env
                env={"PATH": os.environ["PATH"], **self._settings, "LOG_FILE": str(console.with_suffix(".log"))},
                stdout=output,
                stderr=output,
            )
        member = Member(process=process, watched=psutil.Process(process.pid), console=console)
        try:
            await wait_until_ready(member)
        except BaseException:
            process.kill()
            raise
        self.start_seconds = max(self.start_seconds, time.perf_counter() - began)
        return member


async def wait_until_ready(member: Member) -> None:
    """Wait until a worker says in its log that it takes jobs."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while READY not in member.console.read_bytes():
        if member.process.returncode is not None or time.monotonic() > deadline:
            raise FleetFailed(f"a worker did not become ready: {tail_of(member.console)}")
        await asyncio.sleep(POLL_SECONDS)


def tail_of(console: Path) -> str:
    return console.read_text(errors="replace")[-2000:]


def cpu_seconds(process: psutil.Process) -> float:
    """Return what a process and its children have used, those that have ended included."""
    used = float(sum(process.cpu_times()[:4]))
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            used += float(sum(child.cpu_times()[:2]))
    return used


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Processor seconds since the machine or the process began."""

    moment: float
    workers: float
    postgres: float
    machine: float

    def shares_since(self, before: Usage) -> dict[str, float]:
        """Return how many processors each had on average; `others` is whatever else ran, the feeds included."""
        elapsed = self.moment - before.moment
        used = {name: getattr(self, name) - getattr(before, name) for name in ("workers", "postgres")}
        used["others"] = self.machine - before.machine - sum(used.values())
        return {name: seconds / elapsed for name, seconds in used.items()}


def usage(fleet: Fleet, postmaster: psutil.Process | None) -> Usage:
    """Look at who has used the processors."""
    busy = psutil.cpu_times()
    return Usage(
        moment=time.monotonic(),
        workers=fleet.cpu_seconds,
        postgres=cpu_seconds(postmaster) if postmaster else 0.0,
        machine=busy.user + busy.nice + busy.system,
    )


async def postmaster_of(connection: asyncpg.Connection) -> psutil.Process | None:
    """Return the server's first process, if it runs on this machine."""
    with suppress(psutil.Error):
        parent = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
        if parent is not None and parent.name() == "postgres":
            return parent
    return None
