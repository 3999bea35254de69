"""How often a source may be asked: a limit that holds in any stretch of time, over everything the process asks of it.

A leaky bucket, as aiolimiter has it, lets ten through at once where ten a second are allowed, and then one every tenth
of a second: nineteen in the first. A source that counts in a sliding window would turn us away.

It is the source that counts, and nobody here knows when a request reaches it: at some time before it is answered. So
one counts until so long after its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from definitions import RateLimit, Source


@dataclass(slots=True)
class _Request:
    answered_at: float | None = None
    """By the monotonic clock; None while it is under way."""


class Pace:
    """Lets so many requests through in so much time, however many ask, and on whichever event loop."""

    def __init__(self, limit: RateLimit) -> None:
        self._seconds = limit.seconds
        self._made: deque[_Request] = deque(maxlen=limit.requests)
        """The last requests that were let through: as many as the limit allows."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Begin once one more request may be made, and end when it was answered."""
        while (seconds := self._seconds_to_wait()) > 0:  # noqa: ASYNC110 (what is waited for is the time, not an event)
            await asyncio.sleep(seconds)
        request = _Request()
        self._made.append(request)
        try:
            yield
        finally:
            request.answered_at = time.monotonic()

    def _seconds_to_wait(self) -> float:
        if len(self._made) < (self._made.maxlen or 1):
            return 0.0
        oldest = self._made[0].answered_at
        return self._seconds if oldest is None else oldest + self._seconds - time.monotonic()


_paces: dict[tuple[str, RateLimit], Pace] = {}


def pace_of(source: Source) -> Pace | None:
    """Return the one pace of a source in this process, None where it has no limit."""
    if source.rate_limit is None:
        return None
    return _paces.setdefault((source.name, source.rate_limit), Pace(source.rate_limit))
