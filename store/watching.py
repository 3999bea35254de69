"""Watching the journal: who follows it is woken by commits that add to it, and looks from time to time besides."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import structlog

from errors import DatabaseError
from store.database import Database
from store.journal import CHANNEL, select_newest

POLL_SECONDS = 3.0
"""Between two looks where nothing wakes the watch: behind a pooler, and if a message should be lost."""

log = structlog.get_logger()


class JournalWatch:
    """How far the journal goes, known to all who follow it in one process by one connection and one query.

    NOTIFY only wakes; what is new is read from the journal. A pooler that gives every transaction another connection
    lets no message through, so there the watch only polls.
    """

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.newest = 0
        self._database = database
        self._poll_seconds = poll_seconds
        self._released = False
        self._woken = asyncio.Event()
        self._moved = asyncio.Event()

    async def keep(self) -> None:
        """Watch until cancelled, whatever becomes of the database meanwhile."""
        may_listen = True
        while True:
            try:
                if may_listen:
                    async with self._database.own_connection() as connection:
                        may_listen = await self._listen(connection)
                        while may_listen and not connection.is_closed():
                            await self._look()
                            await self._wait()
            except DatabaseError as error:
                log.debug("journal_not_listened_to", cause=error.cause)
            with suppress(DatabaseError):
                await self._look()
            await self._wait()

    async def wait_beyond(self, seq: int, seconds: float) -> None:
        """Wait until the journal goes beyond `seq`, or `release` is called, but no longer than `seconds`."""
        if self.newest <= seq and not self._released:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), seconds)

    def release(self) -> None:
        """Let all who wait go on, and nobody wait any more."""
        self._released = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _look(self) -> None:
        """Find out how far the journal goes, and wake those who wait for that."""
        self._woken.clear()
        newest = await select_newest(self._database)
        if newest != self.newest:
            self.newest = newest
            self._wake()

    async def _wait(self) -> None:
        """Wait until there is a reason to look again."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), self._poll_seconds)

    async def _listen(self, connection: Any) -> bool:
        """Have commits wake the watch, if the connection leads straight to the server; return whether it does.

        A pooler shows its clients other process numbers than the server's, and a LISTEN would stay on a connection
        that others get.
        """
        async with connection.transaction():
            is_direct = bool(connection.get_server_pid() == await connection.fetchval("SELECT pg_backend_pid()"))
        if is_direct:
            connection.add_termination_listener(lambda *_: self._woken.set())
            await connection.add_listener(CHANNEL, lambda *_: self._woken.set())
        return is_direct
