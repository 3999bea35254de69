"""A real HTTP server on 127.0.0.1 that serves feeds, and misbehaves in every way that real ones do.

    async with FeedServer() as server:
        server.respond([{"id": 1}])
        ... fetch server.url ...
        assert server.requests[0].headers["accept"]

It writes raw bytes to the socket, so any fault can be put on the wire; see the fault classes and `Answer`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WRITE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """Close the connection after `at` bytes of the body, whatever the headers promised."""

    at: int


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Reset the connection (RST) after `at` bytes of the body."""

    at: int = 0


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Send the headers and `at` bytes of the body, set `server.stalled`, and wait for `server.released`."""

    at: int = 0


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Take the request, set `server.stalled`, and send nothing at all until `server.released`."""


@dataclass(frozen=True, kw_only=True)
class Drip:
    """Send the body in pieces of `size` bytes, with `gap_seconds` between them."""

    size: int = 1
    gap_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BadChunk:
    """Send `at` bytes as a chunk, and then a chunk whose size is not a number."""

    at: int = 0


@dataclass(frozen=True, kw_only=True)
class HangUp:
    """Close the connection without any answer."""


Fault = Truncate | Reset | Stall | Silence | Drip | BadChunk | HangUp


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. `encodings` are applied to `body` in their order; `fault` says what goes wrong while sending it."""

    body: bytes = b""
    status: int = 200
    content_type: str | None = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    encodings: tuple[str, ...] = ()
    framing: Literal["length", "chunked", "close"] = "length"
    etag: str | None = None
    """With it or `last_modified`, a request that carries the same validator is answered 304."""
    last_modified: str | None = None
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it was received; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = b""


Answers = Answer | Sequence[Answer] | Callable[[Request], Answer]


def redirect(location: str, *, status: int = 302) -> Answer:
    """Return an answer that leads elsewhere."""
    return Answer(status=status, headers={"Location": location})


def compress(body: bytes, encoding: str) -> bytes:
    """Return `body` in one content encoding; `deflate-raw` is deflate without zlib's header."""
    match encoding:
        case "gzip":
            return gzip.compress(body, 1)
        case "deflate":
            return zlib.compress(body, 1)
        case "deflate-raw":
            engine = zlib.compressobj(1, wbits=-15)
            return engine.compress(body) + engine.flush()
        case "br":
            return bytes(brotli.compress(body, quality=1))
        case "zstd":
            return bytes(zstd.compress(body))
    raise ValueError(encoding)


def bomb(size_bytes: int) -> bytes:
    """Return the gzip of an array that never ends: one record of blanks, `size_bytes` of them."""
    engine = zlib.compressobj(9, wbits=31)
    pieces = [engine.compress(b'[{"id":1},')]
    blanks = b" " * WRITE_BYTES
    pieces += [engine.compress(blanks) for _ in range(size_bytes // WRITE_BYTES)]
    return b"".join([*pieces, engine.flush()])


class FeedServer:
    """The server. Set `answers` to one answer, a sequence (the last one repeats), or a function of the request."""

    def __init__(self, answers: Answers | None = None, *, host: str = "127.0.0.1") -> None:
        self.answers: Answers = answers or Answer(status=404)
        self.requests: list[Request] = []
        self.connections = 0
        """How many were made; an answer with the header `Connection: keep-alive` leaves its own open for the next."""
        self.stalled = asyncio.Event()
        """Set once a Stall or Silence has been reached."""
        self.released = asyncio.Event()
        """Set it to let stalled answers go on."""
        self._host = host
        self._served = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
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

    @property
    def url(self) -> str:
        """The address of the feed; any path and query below it is answered too."""
        return f"http://{self._host}:{self.port}/feed.json"

    @property
    def origin(self) -> str:
        """Scheme, host and port, without a path."""
        return f"http://{self._host}:{self.port}"

    def respond(self, content: bytes | Iterable[Any], **details: Any) -> None:
        """Answer every request from now on with `content`: bytes as they are, anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(list(content)).encode()
        self.answers = Answer(body=body, **details)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        self.connections += 1
        try:
            # Only this server cancels its connections, when it closes.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tell whether another one may follow on the same connection."""
        request = _read(await reader.readuntil(b"\r\n\r\n"))
        if length := int(request.headers.get("content-length", 0)):
            request = replace(request, body=await reader.readexactly(length))
        self.requests.append(request)
        answer = _condition(self._choose(request), request)
        if isinstance(answer.fault, HangUp):
            return False
        if isinstance(answer.fault, Silence):
            await self._stall()
        body = answer.body
        for encoding in answer.encodings:
            body = compress(body, encoding)
        writer.write(_head(answer, len(body)))
        await self._send(writer, answer, memoryview(body))
        await writer.drain()
        return answer.headers.get("Connection") == "keep-alive" and answer.fault is None

    def _choose(self, request: Request) -> Answer:
        if callable(self.answers):
            return self.answers(request)
        if isinstance(self.answers, Answer):
            return self.answers
        answer = self.answers[min(self._served, len(self.answers) - 1)]
        self._served += 1
        return answer

    async def _stall(self) -> None:
        self.stalled.set()
        await self.released.wait()

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, body: memoryview) -> None:
        chunked = answer.framing == "chunked"
        match answer.fault:
            case Truncate(at=at):
                await _write(writer, body[:at], chunked=chunked)
                return
            case Reset(at=at):
                await _write(writer, body[:at], chunked=chunked)
                _reset(writer)
                return
            case BadChunk(at=at):
                await _write(writer, body[:at], chunked=True)
                writer.write(b"not-a-size\r\n")
                return
            case Stall(at=at):
                await _write(writer, body[:at], chunked=chunked)
                await self._stall()
                await _write(writer, body[at:], chunked=chunked)
            case Drip(size=size, gap_seconds=gap):
                for start in range(0, len(body), size):
                    await _write(writer, body[start : start + size], chunked=chunked)
                    await asyncio.sleep(gap)
            case _:
                await _write(writer, body, chunked=chunked)
        if chunked:
            writer.write(b"0\r\n\r\n")


def _read(head: bytes) -> Request:
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = request_line.split(" ")
    parts = urlsplit(target)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method=method, path=parts.path, query=parse_qs(parts.query), headers=headers)


def _condition(answer: Answer, request: Request) -> Answer:
    etag, modified = request.headers.get("if-none-match"), request.headers.get("if-modified-since")
    if (answer.etag and etag == answer.etag) or (
        not etag and answer.last_modified and modified == answer.last_modified
    ):
        return replace(answer, status=304, body=b"", encodings=(), fault=None)
    return answer


def _head(answer: Answer, length: int) -> bytes:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Whatever"
    names = {"deflate-raw": "deflate"}
    headers = {
        "Content-Type": answer.content_type,
        "Content-Length": str(length) if answer.framing == "length" else None,
        "Transfer-Encoding": "chunked" if answer.framing == "chunked" else None,
        "Content-Encoding": ", ".join(names.get(name, name) for name in answer.encodings) or None,
        "ETag": answer.etag,
        "Last-Modified": answer.last_modified,
        "Connection": "close",
        **answer.headers,
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {answer.status} {phrase}", *lines, "", ""]).encode("latin-1")


async def _write(writer: asyncio.StreamWriter, data: memoryview, *, chunked: bool) -> None:
    for start in range(0, len(data), WRITE_BYTES):
        piece = data[start : start + WRITE_BYTES]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN: the way a crashed peer looks."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
