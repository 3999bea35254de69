"""Event streams: how many there are, what wakes them, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakSet

import telemetry
from errors import TooManyStreams
from store.database import Database
from store.watching import POLL_SECONDS, JournalWatch

MOST_STREAMS = 100
"""In one process; each costs a query for every run that changes something, and the memory of one page."""
BEAT_SECONDS = 15.0
"""Between two signs of life; proxies close what is silent for a minute."""


class Place:
    """One of the streams that may be open; free again when it is gone, even if its stream never began."""


class Streams:
    """The event streams of one process."""

    def __init__(
        self, *, most: int = MOST_STREAMS, beat_seconds: float = BEAT_SECONDS, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self.beat_seconds = beat_seconds
        self.poll_seconds = poll_seconds
        self._most = most
        self._taken: WeakSet[Place] = WeakSet()
        self._ending = asyncio.Event()
        self._watch: JournalWatch | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._followers = 0

    def take_place(self) -> Place:
        """Return a place for one stream; raise TooManyStreams if there is none left."""
        if len(self._taken) >= self._most:
            raise TooManyStreams(f"{self._most} event streams are open.")
        place = Place()
        self._taken.add(place)
        return place

    @asynccontextmanager
    async def following(self, place: Place, database: Database) -> AsyncIterator[JournalWatch]:
        """Watch the journal together with the other streams; give the place back at the end."""
        if self._watch is None:
            self._watch = JournalWatch(database, poll_seconds=self.poll_seconds)
            self._keeper = asyncio.create_task(self._watch.keep())
            self._keeper.add_done_callback(telemetry.log_unheard)
        self._followers += 1
        try:
            yield self._watch
        finally:
            self._taken.discard(place)
            self._followers -= 1
            if not self._followers:
                await self._stop_watching()

    async def _stop_watching(self) -> None:
        keeper, self._keeper, self._watch = self._keeper, None, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})

    @property
    def ending(self) -> bool:
        """Whether the process is about to end, and its streams with it."""
        return self._ending.is_set()

    async def pause(self) -> None:
        """Wait before trying something again, but not beyond the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), self.poll_seconds)

    def end(self) -> None:
        """End all streams."""
        self._ending.set()
        if self._watch is not None:
            self._watch.release()
