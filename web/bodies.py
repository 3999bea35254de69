"""The bodies of requests: none is larger than it may be, as it comes and when it is decompressed."""

from __future__ import annotations

import asyncio

from quart import Quart, g, request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from errors import BadRequest, SourceError
from sources.decompress import ACCEPTED, Decompressor


def read_all(app: Quart, *, most_bytes: int) -> None:
    """Have every request's body read before it is served, into `g.body`; those that are too large are refused."""
    app.config["MAX_CONTENT_LENGTH"] = most_bytes

    @app.before_request
    async def read() -> None:
        if request.url_rule is not None:
            g.body = decode(await _whole_body(), request.headers.get("Content-Encoding", ""), most_bytes)


async def _whole_body() -> bytes:
    """Return what was sent, not decoded yet.

    Quart's own way waits by asyncio.wait_for, which before Python 3.12 passes a cancellation over if the body is
    complete at that moment; a client who hung up would be served all the same.
    """
    try:
        async with asyncio.timeout(request.body_timeout):
            return bytes(await request.body)
    except TimeoutError as exc:
        raise RequestTimeout from exc


def decode(body: bytes, content_encoding: str, most_bytes: int) -> bytes:
    """Undo the compression of a body, never beyond `most_bytes`."""
    try:
        decompressor = Decompressor(content_encoding)
    except SourceError as exc:
        raise UnsupportedMediaType(f"The body may be compressed by {ACCEPTED}.") from exc
    if not decompressor or not body:
        return body
    decoded = bytearray()
    try:
        for piece in decompressor.feed(body):
            decoded += piece
            if len(decoded) > most_bytes:
                raise RequestEntityTooLarge
        decompressor.finish()
    except SourceError as exc:
        raise BadRequest("The body's compression is damaged.") from exc
    return bytes(decoded)
