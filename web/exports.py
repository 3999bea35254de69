"""Rows on their way to a client that may be slow, or gone: the database is not kept waiting for long.

A task of its own reads the rows, a few batches ahead of the client. A client that takes none for a while, or is not
done after a quarter of an hour, loses the connection; so does one whose rows cannot be read to the end. The end of an
answer that is complete is told apart from that by the last chunk (RFC 9112, 7.1).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import telemetry
from errors import TooManyStreams

STALL_SECONDS = 60.0
TOTAL_SECONDS = 900.0
"""An open look at a table keeps PostgreSQL from clearing up behind writers, and runs from altering the table."""
AHEAD = 2
"""Batches that wait for the client."""
EXPORT = "lockstep.export"
"""Under this name a request's scope has its export."""

Application = Callable[[Any, Any, Any], Awaitable[None]]

log = telemetry.get_logger(__name__)


class StreamCut(Exception):
    """An answer cannot be completed; it is ended so that its reader notices."""


class Export:
    """Chunks of an answer, made by a generator in a task of its own."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        ended: Callable[[object], None] = lambda _: None,
        stall_seconds: float = STALL_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._chunks = chunks
        self._stall_seconds = stall_seconds
        self._total_seconds = total_seconds
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self._first: bytes | None = None
        self._maker = asyncio.create_task(self._make())
        self._maker.add_done_callback(ended)

    async def begin(self) -> None:
        """Wait for the first chunk; raise what keeps it from coming, as long as that can still be told."""
        try:
            self._first = await self._next()
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._first = self._first, None
        if chunk is None:
            try:
                chunk = await self._next()
            except Exception as exc:
                log.warning("export_cut", reason=str(exc) or "the client was too slow")
                raise StreamCut("An answer was cut short.") from exc
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop reading rows."""
        self._maker.cancel()
        await asyncio.wait({self._maker})
        if not self._maker.cancelled():
            self._maker.exception()

    async def _next(self) -> bytes | None:
        """Return the next chunk, None after the last one; raise what ended them too early."""
        if self._waiting.empty() and not self._maker.done():
            getting = asyncio.ensure_future(self._waiting.get())
            try:
                await asyncio.wait({getting, self._maker}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
            finally:
                getting.cancel()
        if not self._waiting.empty():
            return self._waiting.get_nowait()
        self._maker.result()
        return None

    async def _make(self) -> None:
        async with asyncio.timeout(self._total_seconds), aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(self._stall_seconds):
                    await self._waiting.put(chunk)


class Exports:
    """The exports that one process has under way: never so many that all connections to the database are theirs."""

    def __init__(self) -> None:
        self.under_way = 0

    async def begin(self, chunks: AsyncGenerator[bytes, None], scope: Any, *, most: int) -> Export:
        """Begin one more for a request; TooManyStreams if there are as many as may be, or what else keeps it."""
        if self.under_way >= most:
            raise TooManyStreams(
                f"{most} exports are under way, which is as many as the connections to the database allow.",
                remedy="Try again when one of them has ended; pages (with a limit) are given meanwhile.",
            )
        self.under_way += 1
        scope[EXPORT] = export = Export(chunks, ended=self._end)
        await export.begin()
        return export

    def _end(self, _: object) -> None:
        self.under_way -= 1


def ending_exports(application: Application) -> Application:
    """Return an application whose exports end with their requests.

    The framework closes what it sends, but not what it has not begun to send when the client goes away.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        try:
            await application(scope, receive, send)
        finally:
            if EXPORT in scope:
                await scope[EXPORT].aclose()

    return call
