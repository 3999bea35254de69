"""Look at the beginning of a source's answer, whatever it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from definitions import Source
from errors import SourceTimeout
from sources.address import redact
from sources.asking import first_ask
from sources.charset import Transcoder
from sources.decompress import Decompressor
from sources.fetch import Answer, request
from sources.hiding import hidden
from sources.links import next_link
from sources.wire import Wire, translated


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of an answer."""

    body: bytes
    """Its beginning, decompressed, in UTF-8."""
    is_whole: bool
    """Whether that is all of it."""
    content_type: str
    headers: Mapping[str, str]
    """Names are found in any case."""
    next_link: str | None
    """Where the header Link leads for the next page."""


async def look_at(source: Source, *, max_bytes: int) -> Look:
    """Return the beginning of the first answer of a source, about `max_bytes` of it at most.

    Raises:
        SourceError: the source cannot be reached, refuses, or answers too slowly.
    """
    seconds = source.total_timeout_seconds
    try:
        async with asyncio.timeout(seconds) as deadline, Wire(source) as wire:
            with hidden(wire.secrets):
                return await _read(source, await request(source, wire, first_ask(source)), max_bytes)
    except TimeoutError as exc:
        if not deadline.expired():
            raise
        raise SourceTimeout(f"{redact(source.url)} took longer than {seconds:g} s in all.") from exc


async def _read(source: Source, answer: Answer, max_bytes: int) -> Look:
    response = answer.response
    decompressor = Decompressor(", ".join(response.headers.getall("Content-Encoding", [])))
    transcoder = Transcoder(response.charset)
    seen = bytearray()
    is_whole = False
    with translated(source, answer.ask.url):
        while len(seen) <= max_bytes and not is_whole:
            piece = await response.content.readany()
            is_whole = not piece
            for data in decompressor.feed(piece):
                seen += transcoder.feed(data)
                if len(seen) > max_bytes:
                    break
    if is_whole:
        decompressor.finish()
        seen += transcoder.finish()
    return Look(
        body=bytes(seen),
        is_whole=is_whole,
        content_type=response.content_type,
        headers=response.headers,
        next_link=next_link(response.headers.getall("Link", [])),
    )
