"""Ask a URL at a steady beat from a process of its own: python -m bench.pinger URL, until its standard input closes.

Every latency counts from the moment the beat was due, not from when the request got away: a stalled server is not
excused by the requests it kept from being sent. Prints the latencies in seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

BEAT_SECONDS = 0.005


@asynccontextmanager
async def pinging(url: str) -> AsyncIterator[list[float]]:
    """Ping `url` for the length of the block; the yielded list is filled when the block ends."""
    latencies: list[float] = []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, url), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both asked for as pipes
    await process.stdout.readline()
    try:
        yield latencies
    finally:
        process.stdin.close()
        output, _ = await process.communicate()
        latencies.extend(json.loads(output))


async def ping(url: str) -> list[float]:
    latencies: list[float] = []

    async def ask(due: float) -> None:
        async with http.get(url) as response:
            response.raise_for_status()
            await response.read()
        latencies.append(time.perf_counter() - due)

    closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, asyncio.TaskGroup() as requests:
        await ask(time.perf_counter())
        latencies.clear()
        print("ready", flush=True)
        due = time.perf_counter()
        while not closed.done():
            requests.create_task(ask(due))
            due += BEAT_SECONDS
            await asyncio.sleep(due - time.perf_counter())
    return latencies


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ping(sys.argv[1]))))
