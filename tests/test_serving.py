"""The process starts, serves, and ends as it should, alone and with several workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from store.database import Database
from store.runs import select_runs
from tests.service import Feed, free_port, get, serve_feed
from web.serving import CONNECTIONS_END_SECONDS

HOUSE = Path(__file__).parents[1]


@dataclass
class Running:
    """A service in a process of its own, with what it has logged so far."""

    process: asyncio.subprocess.Process
    url: str
    lines: list[str] = field(default_factory=list)

    async def logged(self, event: str, times: int = 1) -> None:
        """Wait until `event` has been logged so many times."""
        assert self.process.stderr is not None
        while sum(event in line for line in self.lines) < times:
            line = (await self.process.stderr.readline()).decode()
            assert line, f"{event} never came: {self.lines}"
            self.lines.append(line)

    async def end(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        _, rest = await self.process.communicate()
        self.lines += rest.decode().splitlines()
        return self.process.returncode or 0


StartService = Callable[..., Awaitable[Running]]


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    async with serve_feed() as served:
        yield served


@pytest.fixture
async def start_service(feed: Feed, database_url: str, tmp_path: Path) -> AsyncIterator[StartService]:
    """Give a way to start `python app.py`; whatever still runs at the end is ended."""
    started: list[Running] = []

    async def start(**given: str) -> Running:
        port = free_port()
        usual = {"SOURCE_URL": feed.url, "DATABASE_URL": database_url, "PORT": str(port), "SETTLE_SECONDS": "0"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, HOUSE / "app.py", cwd=tmp_path, env={**os.environ, **usual, **given},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(Running(process, f"http://127.0.0.1:{port}"))
        return started[-1]

    yield start
    for running in started:
        await running.end()


async def test_sigterm_in_a_run_ends_it_cleanly(
    start_service: StartService, feed: Feed, database_url: str, tmp_path: Path
) -> None:
    """SIGTERM rolls the run back, records it as interrupted, tells its caller so, and exits with 0."""
    feed.may_answer.clear()
    running = await start_service()
    await running.logged("database_ready")
    async with aiohttp.ClientSession(running.url) as client:
        call = asyncio.create_task(get(client, "/sync_data"))
        await feed.asked.wait()
        running.process.send_signal(signal.SIGTERM)
        status, body = await call
    assert (status, body["status"]) == (503, "interrupted")
    assert await running.end() == 0
    database = Database.connect(database_url, pool_size=1)
    (run,) = await select_runs(database)
    await database.close()
    assert run.status == "interrupted"
    assert "service_stopped" in (tmp_path / "app.log").read_text()


async def test_the_log_tells_the_run_from_beginning_to_end(start_service: StartService, tmp_path: Path) -> None:
    """app.log has the start, the beginning and end of the run with its counts, and no line without its JSON."""
    running = await start_service(LOG_FORMAT="json")
    await running.logged("database_ready")
    async with aiohttp.ClientSession(running.url) as client:
        _, body = await get(client, "/sync_data")
    await running.end()
    lines = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    finished = next(line for line in lines if line["event"] == "run_finished")
    assert (finished["run"], finished["source"], finished["created"]) == (body["run"], "my_data", 40)
    assert {"service_started", "run_started", "service_stopping", "service_stopped"} <= {
        line["event"] for line in lines
    }


async def test_a_port_in_use_is_said(start_service: StartService) -> None:
    """A start on a port that is taken exits with 2 and one message that names PORT."""
    first = await start_service()
    await first.logged("database_ready")
    second = await start_service(PORT=first.url.rpartition(":")[2])
    assert await second.process.wait() == 2
    await second.end()
    assert "PORT" in second.lines[-1]
    assert "Traceback" not in "".join(second.lines)


async def test_several_workers_serve_one_port(start_service: StartService) -> None:
    """With WORKERS_COUNT=2 two processes serve, one that dies is replaced, and SIGTERM ends them all."""
    running = await start_service(WORKERS_COUNT="2")
    await running.logged("database_ready", times=2)
    pid = next(int(found[1]) for line in running.lines if (found := re.search(r"worker_started .*pid=(\d+)", line)))
    os.kill(pid, signal.SIGKILL)
    await running.logged("worker_started", times=3)
    await running.logged("database_ready", times=3)
    async with aiohttp.ClientSession(running.url) as client:
        assert (await get(client, "/sync_data"))[1]["created"] == 40
    assert await running.end() == 0


async def test_workers_do_not_outlive_their_parent(start_service: StartService) -> None:
    """When the parent is killed its workers stop by themselves, and stop cleanly."""
    running = await start_service(WORKERS_COUNT="2")
    await running.logged("database_ready", times=2)
    running.process.kill()
    await running.logged("service_stopped", times=2)


async def test_a_caller_that_stalls_does_not_delay_the_end(start_service: StartService) -> None:
    """A connection with half a request on it does not keep the service from ending with 0 within its bounds."""
    running = await start_service()
    await running.logged("database_ready")
    _, stalled = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    stalled.write(b"POST /sync_data HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    await stalled.drain()
    async with asyncio.timeout(CONNECTIONS_END_SECONDS + 5):
        assert await running.end() == 0
    assert any("service_stopped" in line for line in running.lines)
    stalled.close()
