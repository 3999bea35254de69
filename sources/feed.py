"""One fetch of a source, from its URL to batches of records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import xxhash

from definitions import Source
from errors import SourceTimeout, SourceTooLarge
from models import Problem, Progress, Validators
from sources.address import redact
from sources.batch import Batch, Rejections
from sources.charset import Transcoder
from sources.decompress import Decompressor
from sources.fetch import is_end_marked, read_validators, request, translated
from sources.layout import Layout

CHUNK_BYTES = 1 << 18
_PROGRESS_INTERVAL_SECONDS = 0.1
_TURN_SECONDS = 0.001

ProgressListener = Callable[[Progress], None]


class Feed:
    """The answer of a source: where it stands, and its records."""

    def __init__(
        self,
        source: Source,
        response: aiohttp.ClientResponse,
        *,
        sent: Validators | None,
        on_progress: ProgressListener | None,
        on_end: Callable[[], None],
    ) -> None:
        self.not_modified = response.status == HTTPStatus.NOT_MODIFIED
        self.response_headers: Mapping[str, str] = response.headers
        self.validators = read_validators(response) or (sent if self.not_modified and sent else Validators())
        self.body_bytes = 0
        self.digest = ""
        self._source = source
        self._response = response
        self._on_progress = on_progress
        self._on_end = on_end
        self._decompressor = Decompressor(", ".join(response.headers.getall("Content-Encoding", [])))
        self._transcoder = Transcoder(response.charset)
        self._rejections = Rejections()
        self._layout = Layout(
            source,
            content_type=response.content_type,
            end_is_marked=is_end_marked(response, is_compressed=bool(self._decompressor)),
            rejections=self._rejections,
        )
        self._body_digest = xxhash.xxh3_128()

    @property
    def records(self) -> int:
        """How many records were cut so far, rejected ones included."""
        return self._layout.records

    @property
    def problems(self) -> list[Problem]:
        """The first records that were rejected; see models.KEPT_PROBLEMS."""
        return self._rejections.problems

    @property
    def rejected(self) -> int:
        """How many records were rejected while cutting."""
        return self._rejections.count

    @property
    def rejected_keys(self) -> list[dict[str, Any]]:
        """The keys of all rejected records that could be identified."""
        return self._rejections.keys

    @property
    def unidentified(self) -> int:
        """How many rejected records could not be identified."""
        return self._rejections.unidentified

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the records; ending without an error means that the body was complete and valid.

        Raises:
            SourceError: anything is wrong with the answer; what was yielded must not be used then.
        """
        if self.not_modified:
            return
        turn_ends = time.monotonic() + _TURN_SECONDS
        progress_due = 0.0
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                for batch in self._cut(chunk):
                    if batch is not None:
                        yield batch
                    if (now := time.monotonic()) >= turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + _TURN_SECONDS
                    if now >= progress_due:
                        self._tell_progress()
                        progress_due = now + _PROGRESS_INTERVAL_SECONDS
        self.digest = self._body_digest.hexdigest()
        self._tell_progress()
        self._on_end()

    async def _chunks(self) -> AsyncGenerator[bytes | None, None]:
        """Yield the body as it was sent, in pieces worth cutting, and None at its end."""
        pieces: list[bytes] = []
        size = 0
        with translated(self._source):
            async for piece in self._response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size >= CHUNK_BYTES:
                    joined = b"".join(pieces)
                    pieces, size = [], 0
                    for start in range(0, len(joined), CHUNK_BYTES):
                        yield joined[start : start + CHUNK_BYTES]
        yield b"".join(pieces)
        yield None

    def _cut(self, chunk: bytes | None) -> Iterator[Batch | None]:
        if chunk is not None:
            for data in self._decompressor.feed(chunk):
                self._account(data)
                yield from self._layout.feed(self._transcoder.feed(data))
                yield None
            return
        self._decompressor.finish()
        yield from self._layout.feed(self._transcoder.finish())
        yield from self._layout.finish()

    def _account(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self.body_bytes > self._source.max_body_bytes:
            raise SourceTooLarge(f"The answer is larger than MAX_BODY_BYTES ({self._source.max_body_bytes:,}).")
        self._body_digest.update(data)

    def _tell_progress(self) -> None:
        if self._on_progress:
            total = None if self._decompressor else self._response.content_length
            self._on_progress(Progress(body_bytes=self.body_bytes, records=self.records, total_bytes=total))


@asynccontextmanager
async def open_feed(
    source: Source, *, validators: Validators | None = None, on_progress: ProgressListener | None = None
) -> AsyncIterator[Feed]:
    """Yield the answer of one attempt at fetching `source`; `validators` make it a conditional one.

    `source.total_timeout_seconds` runs from here until the last batch was taken. `on_progress` is called at most ten
    times a second, and once at the end.

    Raises:
        SourceError: the source cannot be reached, refuses, answers too slowly or something else than was asked for.
    """
    seconds = source.total_timeout_seconds
    try:
        async with asyncio.timeout(seconds) as deadline, request(source, validators) as response:
            yield Feed(
                source,
                response,
                sent=validators,
                on_progress=on_progress,
                on_end=lambda: deadline.reschedule(None),
            )
    except TimeoutError as exc:
        if not deadline.expired():
            raise
        raise SourceTimeout(
            f"{redact(source.url)} took longer than {seconds:g} s in all (SOURCE_TOTAL_TIMEOUT_SECONDS)."
        ) from exc
