"""One answer of a source on its way into batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator

import xxhash
from multidict import CIMultiDictProxy

from definitions import Source
from sources.asking import Ask
from sources.batch import Batch, Rejections
from sources.charset import Transcoder
from sources.decompress import Decompressor
from sources.fetch import Answer, is_end_marked
from sources.layout import Layout
from sources.wire import translated

CHUNK_BYTES = 1 << 18


class Page:
    """An answer, read once: its chunks go through `cut`, None at the end."""

    def __init__(
        self,
        source: Source,
        answer: Answer,
        *,
        position: int,
        rejections: Rejections,
        account: Callable[[bytes], None],
    ) -> None:
        response = answer.response
        self.rejections = rejections
        self._source = source
        self._answer = answer
        self._position = position
        self._account = account
        self._decompressor = Decompressor(", ".join(response.headers.getall("Content-Encoding", [])))
        self._transcoder = Transcoder(response.charset)
        self._layout = Layout(
            source,
            content_type=response.content_type,
            end_is_marked=is_end_marked(response, is_compressed=bool(self._decompressor)),
            rejections=rejections,
            position=position,
        )
        self._body_digest = xxhash.xxh3_128()
        self._records_digest = xxhash.xxh3_128()
        self._has_batches = False

    @property
    def ask(self) -> Ask:
        """The request that was answered, after all redirects."""
        return self._answer.ask

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The answer's headers."""
        return self._answer.response.headers

    @property
    def end(self) -> int:
        """The place in the snapshot of the record after the last one that was cut."""
        return self._layout.records

    @property
    def records(self) -> int:
        """How many records of this page were cut so far, rejected ones included."""
        return self.end - self._position

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """Of its body and of its records, rejected ones not included; of a paged source alone."""
        body = self._body_digest.digest()
        return body, self._records_digest.digest() if self._has_batches else body

    @property
    def has_lines(self) -> bool:
        """Whether its records turned out to be lines."""
        return self._layout.has_lines

    @property
    def length(self) -> int | None:
        """How many bytes the body has in all, where that is known before its end."""
        return None if self._decompressor else self._answer.response.content_length

    def find(self, path: tuple[str, ...]) -> bytes | None:
        """Return the JSON under a path beside the records; the page must have been read to its end."""
        return self._layout.find(path)

    async def chunks(self) -> AsyncGenerator[bytes | None, None]:
        """Yield the body as it was sent, in pieces worth cutting, and None at its end."""
        pieces: list[bytes] = []
        size = 0
        with translated(self._source, self.ask.url):
            async for piece in self._answer.response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size >= CHUNK_BYTES:
                    joined = b"".join(pieces)
                    pieces, size = [], 0
                    for start in range(0, len(joined), CHUNK_BYTES):
                        yield joined[start : start + CHUNK_BYTES]
        yield b"".join(pieces)
        yield None

    def cut(self, chunk: bytes | None) -> Iterator[Batch | None]:
        """Cut the next chunk; yield batches, and None wherever the event loop may be given a chance."""
        for batch in self._cut(chunk):
            if batch is not None and self._source.paging:
                self._records_digest.update(batch.digests.tobytes())
                self._has_batches = True
            yield batch

    def _cut(self, chunk: bytes | None) -> Iterator[Batch | None]:
        if chunk is not None:
            for data in self._decompressor.feed(chunk):
                self._account(data)
                if self._source.paging:
                    self._body_digest.update(data)
                yield from self._layout.feed(self._transcoder.feed(data))
                yield None
            return
        self._decompressor.finish()
        yield from self._layout.feed(self._transcoder.finish())
        yield from self._layout.finish()
