"""How often a source may be asked: a limit that holds in any stretch of time, over everything the process asks of it.

A leaky bucket, as aiolimiter has it, lets ten through at once where ten a second are allowed, and then one every tenth
of a second: nineteen in the first. A source that counts in a sliding window would turn us away.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from definitions import RateLimit, Source


class Pace:
    """Lets so many requests through in so much time, however many ask, and on whichever event loop."""

    def __init__(self, limit: RateLimit) -> None:
        self._seconds = limit.seconds
        self._made: deque[float] = deque(maxlen=limit.requests)
        """When the last requests were let through: as many as the limit allows."""

    async def wait(self) -> None:
        """Return once one more request may be made."""
        while (seconds := self._seconds_to_wait()) > 0:  # noqa: ASYNC110 (what is waited for is the time, not an event)
            await asyncio.sleep(seconds)
        self._made.append(time.monotonic())

    def _seconds_to_wait(self) -> float:
        if len(self._made) < (self._made.maxlen or 1):
            return 0.0
        return self._made[0] + self._seconds - time.monotonic()


_paces: dict[tuple[str, RateLimit], Pace] = {}


def pace_of(source: Source) -> Pace | None:
    """Return the one pace of a source in this process, None where it has no limit."""
    if source.rate_limit is None:
        return None
    return _paces.setdefault((source.name, source.rate_limit), Pace(source.rate_limit))
