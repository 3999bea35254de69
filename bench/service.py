"""The service under test, driven through its public face alone: its environment, its routes, its process."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.database import Database

APP = Path(__file__).parent.parent / "app.py"
MIRROR = "mirror"
START_TIMEOUT_SECONDS = 60.0
READY_POLL_SECONDS = 0.05
RESET_PEAK_MEMORY = "5"
"""What Linux wants written into /proc/PID/clear_refs to forget a process' peak."""


class ServiceFailed(Exception):
    """The service did not start, or a sync did not do what it was measured at."""


@dataclass(frozen=True, kw_only=True)
class SyncRun:
    """One call of /sync_data, as seen from outside."""

    seconds: float
    over_idle_bytes: int
    answer: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    url: str
    process: psutil.Process
    idle_bytes: int
    http: aiohttp.ClientSession

    async def sync(self, *, expect: dict[str, Any]) -> SyncRun:
        """Sync once and make sure that the answer has the values of `expect`."""
        forget_peak(self.process)
        start = time.perf_counter()
        async with self.http.get(f"{self.url}/sync_data") as response:
            answer = await response.json(content_type=None)
        seconds = time.perf_counter() - start
        found = {name: answer.get(name) for name in expect}
        if response.status != 200 or found != expect:
            raise ServiceFailed(f"/sync_data answered {response.status} {answer}, expected {expect}")
        over_idle_bytes = peak_bytes(self.process) - self.idle_bytes
        return SyncRun(seconds=seconds, over_idle_bytes=over_idle_bytes, answer=answer)


@asynccontextmanager
async def running_service(
    database: Database, source_url: str, *, key: str, types: str | None = None
) -> AsyncIterator[Service]:
    """Run the service on `database` for the length of the block; `types` declares columns, as in price=numeric."""
    with tempfile.TemporaryDirectory(prefix="bench-service-") as directory:
        port = free_port()
        settings = {
            "SOURCE_URL": source_url,
            "SOURCE_KEY": key,
            "DATABASE_URL": database.address("postgresql+asyncpg"),
            "table_name": MIRROR,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "SETTLE_SECONDS": "0",
            "DATA_DIR": directory,
            "LOG_FILE": str(Path(directory) / "app.log"),
        }
        if types is not None:
            settings["SOURCE_TYPES"] = types
        console = Path(directory) / "console.txt"
        with console.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(APP)),
                cwd=directory,  # away from any .env
                env={"PATH": os.environ["PATH"], **settings},
                stdout=output,
                stderr=output,
            )
        try:
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(timeout=timeout) as http:
                url = f"http://127.0.0.1:{port}"
                await wait_until_ready(process, http, url, console)
                watched = psutil.Process(process.pid)
                yield Service(url=url, process=watched, idle_bytes=resident_bytes(watched), http=http)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def wait_until_ready(
    process: asyncio.subprocess.Process, http: aiohttp.ClientSession, url: str, console: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        with suppress(aiohttp.ClientError):
            async with http.get(f"{url}/health/ready") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(READY_POLL_SECONDS)
    raise ServiceFailed(f"the service did not become ready: {tail_of(console)}")


def tail_of(console: Path) -> str:
    return console.read_text(errors="replace")[-2000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def resident_bytes(process: psutil.Process) -> int:
    return sum(member.memory_info().rss for member in family(process))


def forget_peak(process: psutil.Process) -> None:
    for member in family(process):
        Path(f"/proc/{member.pid}/clear_refs").write_text(RESET_PEAK_MEMORY)


def peak_bytes(process: psutil.Process) -> int:
    """Return the peak resident set of the service and its children since it was last reset."""
    return sum(peak_of(member.pid) for member in family(process))


def peak_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
