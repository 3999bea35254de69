"""The service as processes: one or several on one database, and what their tests ask of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.packages import install
from tests.service import free_port
from tests.test_serving import HOUSE, Running

CLOCK_LIBRARIES = ("/usr/lib", "/usr/local/lib")


@asynccontextmanager
async def service_process(
    *,
    source_url: str,
    database_url: str,
    home: Path,
    ready: bool = True,
    settings: Mapping[str, str] | None = None,
    program: Sequence[str] = (str(HOUSE / "app.py"),),
) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """Run `python app.py`, or another program of Python, on a free port; yield it and a client for it."""
    home.mkdir(exist_ok=True)
    port = free_port()
    usual = {"SOURCE_URL": source_url, "DATABASE_URL": database_url, "PORT": str(port), "SETTLE_SECONDS": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program,
        cwd=home, env={**os.environ, "PYTHONPATH": str(HOUSE), **usual, **(settings or {})},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    running = Running(process, f"http://127.0.0.1:{port}")
    listening: asyncio.Task[None] | None = None
    try:
        if ready:
            await running.logged("database_ready")
            listening = asyncio.create_task(_listen(running))  # or its pipe would fill up
        # No limit on connections: hundreds of callers call at once.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(running.url, connector=connector) as client:
            yield running, client
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])
        await running.end()


async def _listen(running: Running) -> None:
    assert running.process.stderr
    while line := await running.process.stderr.readline():
        running.lines.append(line.decode())


async def call(client: aiohttp.ClientSession, path: str = "/sync_data") -> tuple[int, Any]:
    """Call and return status and body."""
    async with client.post(path) as response:
        return response.status, await response.json(content_type=None)


def movable_clock(offset_file: Path) -> dict[str, str]:
    """Return the environment of a process whose wall clock is moved by what stands in a file; skip without faketime."""
    if _clock_library() is None:
        install("libfaketime")
    library = _clock_library()
    if library is None:
        pytest.skip("libfaketime is not installed; install it (apt-get install libfaketime) to run this test")
    offset_file.write_text("+0\n", encoding="ascii")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset_file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _clock_library() -> Path | None:
    found = (path for place in CLOCK_LIBRARIES for path in Path(place).glob("**/faketime/libfaketime.so.1"))
    return next(found, None)
