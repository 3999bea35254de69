"""A source is asked no more often than its limit allows, whatever it is that asks."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from definitions import LinkHeaderPaging, RateLimit, Source
from errors import SourceRefused, SourceTimeout
from sources.pace import Pace, pace_of
from tests.feed_server import Answer, FeedServer, Request, redirect
from tests.sources.support import fetch, source

_names = itertools.count()


def limited(url: str, requests: int, seconds: float, **details: Any) -> Source:
    """Return a source of its own that has a limit."""
    limit = RateLimit(requests=requests, seconds=seconds)
    return source(url, **({"name": f"limited {next(_names)}", "rate_limit": limit} | details))


async def moments(pace: Pace, count: int) -> list[float]:
    """Return when so many concurrent requests were let through."""

    async def one() -> float:
        async with pace.turn():
            return time.monotonic()

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


def assert_kept(made: list[float], limit: RateLimit) -> None:
    """Assert that no stretch of time of the limit's length holds more requests than it allows."""
    for earlier, later in zip(made, made[limit.requests :], strict=False):
        assert later - earlier >= limit.seconds - 0.001


async def test_any_stretch_of_time() -> None:
    """No stretch of the limit's length holds more requests, wherever it begins."""
    limit = RateLimit(requests=5, seconds=0.1)
    pace = Pace(limit)
    made = await moments(pace, 3)
    await asyncio.sleep(0.05)
    made += await moments(pace, 14)
    assert_kept(made, limit)
    assert made[-1] - made[0] < 0.6


async def test_who_gives_up_costs_nothing() -> None:
    """Those who stop waiting leave their turns to others."""
    pace = Pace(RateLimit(requests=1, seconds=0.2))
    began = time.monotonic()
    await moments(pace, 1)
    waiting = [asyncio.create_task(moments(pace, 1)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await moments(pace, 1)
    assert 0.19 < time.monotonic() - began < 1


async def test_a_request_counts_from_its_answer() -> None:
    """Where a request takes its time, the source may have met it late, so the next one waits from the answer on."""
    pace = Pace(RateLimit(requests=2, seconds=0.1))

    async def slow() -> None:
        async with pace.turn():
            await asyncio.sleep(0.15)

    under_way = [asyncio.create_task(slow()) for _ in range(2)]
    await asyncio.sleep(0)
    third = asyncio.create_task(moments(pace, 1))
    await asyncio.gather(*under_way)
    answered = time.monotonic()
    assert (await third)[0] - answered >= 0.095


def test_several_event_loops() -> None:
    """The limit holds over the event loops of a process."""
    limit = RateLimit(requests=2, seconds=0.1)
    pace = Pace(limit)
    made = [moment for _ in range(3) for moment in asyncio.run(moments(pace, 2))]
    assert_kept(made, limit)


async def test_everything_counts() -> None:
    """Pages, redirects and later fetches of a source share its limit, other sources do not."""
    made: list[float] = []

    def answer(request: Request) -> Answer:
        made.append(time.monotonic())
        if request.path == "/feed.json":
            return redirect("/1")
        headers = {"Link": f'</{int(request.path[1:]) + 1}>; rel="next"'} if request.path < "/3" else {}
        return Answer(body=f'[{{"id":"{request.path}"}}]'.encode(), headers=headers)

    async with FeedServer(answer) as server:
        one = limited(server.url, 2, 0.1, paging=LinkHeaderPaging())
        for _ in range(2):
            await fetch(one)
    assert len(made) == 8
    assert 0.29 < made[-1] - made[0] < 2
    assert pace_of(one) is pace_of(one) is not pace_of(limited(server.url, 2, 0.1))
    assert pace_of(source()) is None


async def test_waiting_counts_to_the_total_timeout() -> None:
    """A wait for the limit ends with the total timeout, and so does one that could never be granted."""
    async with FeedServer(Answer(body=b"[]")) as server:
        slow = limited(server.url, 1, 3600, total_timeout_seconds=0.1)
        await fetch(slow)
        with pytest.raises(SourceTimeout, match="SOURCE_TOTAL_TIMEOUT_SECONDS"):
            await fetch(slow)
    assert len(server.requests) == 1


async def test_a_refused_token_counts() -> None:
    """A refusal is a request like any other."""
    async with FeedServer(Answer(status=429)) as server:
        one = limited(server.url, 1, 0.1)
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(SourceRefused):
                await fetch(one)
    assert time.monotonic() - began > 0.09
