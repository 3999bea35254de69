"""Proxies that cut a connection at a chosen point: before PostgreSQL at a request, before a source at a byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from sqlalchemy.engine import URL, make_url

Fault = Literal["request lost", "answer lost", "server lost", "stopped"]

SYNC, QUERY, COPY_DATA, COPY_DONE = b"SQdc"
REQUESTS = frozenset({SYNC, QUERY, COPY_DATA, COPY_DONE})
"""Messages of PostgreSQL's protocol after which something comes back, or which carry data."""
UNANSWERED = frozenset({COPY_DATA})
STARTUP_HEAD, MESSAGE_HEAD = 4, 5
READ_BYTES = 65_536


class Proxy:
    """Passes bytes between whoever connects to it and a server."""

    def __init__(self) -> None:
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server behind."""
        raise NotImplementedError

    async def upward(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Pass on what the client sends."""
        while data := await reader.read(READ_BYTES):
            line.server.write(data)
            await line.server.drain()

    async def downward(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Pass on what the server answers."""
        while data := await reader.read(READ_BYTES):
            line.client.write(data)
            await line.client.drain()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._pass_on(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self.connect()
        line = Line(client=writer, server=server_writer)
        directions = [
            asyncio.create_task(self.upward(reader, line)),
            asyncio.create_task(self.downward(server_reader, line)),
        ]
        try:
            # Whichever side ends it, the whole connection ends.
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            server_writer.close()


class Line:
    """Both ends of one connection."""

    def __init__(self, *, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.answer_is_lost = False

    def cut(self) -> None:
        """End the connection on both sides, without a goodbye."""
        for writer in (self.client, self.server):
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, which is what a crashed peer looks like."""
    connection: socket.socket = writer.get_extra_info("socket")
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class DatabaseWire(Proxy):
    """Counts requests to a PostgreSQL server, and lets one of them go wrong."""

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self._behind = make_url(database_url)
        self._waiting_for = 0
        self._fault: Fault = "request lost"
        self._stop: Callable[[], object] = lambda: None
        self.is_away = False
        """Whether nobody is let through; so it is from the moment on when the server is lost."""

    @property
    def url(self) -> str:
        """The database's address through this proxy."""
        through: URL = self._behind.set(host="127.0.0.1", port=self.port, query={"ssl": "disable"})
        return through.render_as_string(hide_password=False)

    @property
    def is_armed(self) -> bool:
        """Whether the fault is still to come."""
        return self._waiting_for > 0

    def arm(self, nth: int, fault: Fault, stop: Callable[[], object] = lambda: None) -> None:
        """Let the `nth` request from now on go wrong; `stop` is called where the fault is that somebody stops it."""
        self._waiting_for, self._fault, self._stop = nth, fault, stop

    def disarm(self) -> None:
        """Let everything pass."""
        self._waiting_for = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server, by its socket where it has one."""
        if self.is_away:
            raise ConnectionRefusedError
        host = str(self._behind.query.get("host") or self._behind.host)
        port = int(str(self._behind.query.get("port") or self._behind.port or 5432))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def upward(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Pass messages on one by one, and count those that are requests."""
        head = await reader.readexactly(STARTUP_HEAD)
        line.server.write(head + await reader.readexactly(int.from_bytes(head) - STARTUP_HEAD))
        while True:
            head = await reader.readexactly(MESSAGE_HEAD)
            message = head + await reader.readexactly(int.from_bytes(head[1:]) - STARTUP_HEAD)
            if self._goes_wrong(head[0]):
                self.is_away = self._fault == "server lost"
                if self._fault in ("request lost", "server lost") or (
                    self._fault == "answer lost" and head[0] in UNANSWERED
                ):
                    return line.cut()
                line.answer_is_lost = self._fault == "answer lost"
                if self._fault == "stopped":
                    self._stop()
            line.server.write(message)
            await line.server.drain()

    async def downward(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Pass answers on, unless they are to be lost."""
        while data := await reader.read(READ_BYTES):
            if line.answer_is_lost:
                return line.cut()
            line.client.write(data)
            await line.client.drain()
        return None

    def _goes_wrong(self, kind: int) -> bool:
        if kind not in REQUESTS or not self.is_armed:
            return False
        self._waiting_for -= 1
        return not self.is_armed


class SourceWire(Proxy):
    """Passes on so many bytes of a source's answer, and then ends the connection."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._behind = port
        self.passes_bytes: int | None = None
        """None lets everything pass."""
        self.resets = False
        """Whether the end is a reset, or looks like an orderly one."""
        self.was_cut = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the source."""
        return await asyncio.open_connection("127.0.0.1", self._behind)

    async def downward(self, reader: asyncio.StreamReader, line: Line) -> None:
        """Pass on as much as may pass."""
        left = self.passes_bytes
        while data := await reader.read(READ_BYTES):
            passed = data if left is None else data[:left]
            line.client.write(passed)
            await line.client.drain()
            if left is not None and len(passed) < len(data):
                self.was_cut = True
                if self.resets:
                    reset(line.client)
                return
            left = None if left is None else left - len(passed)
