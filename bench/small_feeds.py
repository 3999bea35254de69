"""Thousands of small feeds, and one big feed in parts, served by a process of their own.

What a feed holds follows from its number and the round alone, so whoever knows the round knows what every mirror must
hold and what every journal must say. A round changes one feed in five.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from bench.feed import item_of, json_of

ROUNDS_PER_CHANGE = 5
FEWEST_RECORDS, MOST_RECORDS = 5, 20
CHANGED_IN_PART = 100
"""A round changes one record in so many of the big feed."""


def version_of(feed: int, rounds: int) -> int:
    """Return how often a feed has changed in so many rounds."""
    return (rounds + feed) // ROUNDS_PER_CHANGE - feed // ROUNDS_PER_CHANGE


def records_of(feed: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Return what a feed serves, by key; a new version changes half of the records, one leaves and comes back."""
    version = version_of(feed, rounds)
    count = FEWEST_RECORDS + feed % (MOST_RECORDS - FEWEST_RECORDS + 1)
    left = 1 + version % count if version % 2 else None
    return {key: _record(feed, key, (version + key) // 2) for key in range(1, count + 1) if key != left}


def _record(feed: int, key: int, revision: int) -> dict[str, Any]:
    moving = (feed * 7_919 + key * 104_729 + revision * 1_299_709) % 999_983
    return {
        "id": key,
        "name": f"thing {key} of {feed}",
        "price": moving / 100,
        "stock": moving % 997,
        "active": moving % 7 != 0,
        "updated_at": f"2026-{1 + moving % 12:02}-{1 + moving % 28:02}T{moving % 24:02}:30:00Z",
        "tags": [f"t{moving % 5}", f"t{moving % 3}"],
    }


def changes_of(feed: int, before: int, after: int) -> Counter[str]:
    """Count what a journal must say once the feed has gone from one round to another, by operation."""
    old, new = records_of(feed, before), records_of(feed, after)
    return Counter(
        deleted=len(old.keys() - new.keys()),
        restored=len(new.keys() - old.keys()),
        updated=sum(old[key] != new[key] for key in old.keys() & new.keys()),
    )


@dataclass(kw_only=True)
class Answers:
    """How the server answers; mutable, because steering it is its purpose."""

    rounds: int = 0
    latency_seconds: float = 0.0
    parts: dict[tuple[int, int, int, int], bytes]
    """What was made of the big feed: records, part, parts, round."""


ANSWERS = web.AppKey("ANSWERS", Answers)


async def answer_feed(request: web.Request) -> web.Response:
    answers = request.app[ANSWERS]
    await asyncio.sleep(answers.latency_seconds)
    records = records_of(int(request.match_info["feed"]), answers.rounds)
    return web.Response(body=msgspec.json.encode(list(records.values())), content_type="application/json")


async def answer_part(request: web.Request) -> web.Response:
    answers = request.app[ANSWERS]
    records, part, parts = (int(request.match_info[name]) for name in ("records", "part", "parts"))
    wanted = (records, part, parts, answers.rounds)
    if wanted not in answers.parts:
        answers.parts[wanted] = part_of(*wanted)
    return web.Response(body=answers.parts[wanted], content_type="application/json")


def part_of(records: int, part: int, parts: int, rounds: int) -> bytes:
    """Return one part of the big feed, cut by ranges of the key."""
    first, last = records * part // parts + 1, records * (part + 1) // parts
    items = (json_of(item_of(key, rounds if key % CHANGED_IN_PART == 1 else 0)) for key in range(first, last + 1))
    return b"[" + b",".join(items) + b"]"


async def steer(request: web.Request) -> web.Response:
    wish = await request.json()
    answers = request.app[ANSWERS]
    answers.rounds, answers.latency_seconds = wish["rounds"], wish["latency_seconds"]
    answers.parts = {made: body for made, body in answers.parts.items() if made[-1] == answers.rounds}
    for records, part, parts in wish["prepare"]:  # so that making it counts for nothing
        answers.parts.setdefault((records, part, parts, answers.rounds), part_of(records, part, parts, answers.rounds))
    return web.json_response(wish)


@dataclass(frozen=True, kw_only=True)
class SmallFeeds:
    """The running server, seen from the process that steers it."""

    address: str
    http: aiohttp.ClientSession

    def url(self, feed: int) -> str:
        return f"{self.address}/feed/{feed}"

    def part_url(self, records: int, part: int, parts: int) -> str:
        return f"{self.address}/records/{records}/part/{part}/of/{parts}"

    async def steer(
        self, *, rounds: int, latency_seconds: float = 0.0, prepare: list[tuple[int, int, int]] | None = None
    ) -> None:
        """Serve what there is after so many rounds, each answer this much later."""
        wish = {"rounds": rounds, "latency_seconds": latency_seconds, "prepare": prepare or []}
        async with self.http.post(f"{self.address}/control", json=wish) as response:
            response.raise_for_status()


@asynccontextmanager
async def small_feeds() -> AsyncIterator[SmallFeeds]:
    """Run the server in a process of its own for the length of the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None  # noqa: S101 - asked for as a pipe, two lines above
        address = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
            yield SmallFeeds(address=address, http=http)
    finally:
        process.terminate()
        await process.wait()


async def serve_until_terminated() -> None:
    app = web.Application()
    app[ANSWERS] = Answers(parts={})
    app.router.add_get("/feed/{feed}", answer_feed)
    app.router.add_get("/records/{records}/part/{part}/of/{parts}", answer_part)
    app.router.add_post("/control", steer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_until_terminated())
