"""Decompress a body piece by piece, in bounded pieces, and insist that every stream reaches its end."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli

from errors import SourceIncomplete, SourceInvalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED = "gzip, deflate, br, zstd"
_MAX_ENCODINGS = 4
_PIECE_BYTES = 1 << 18
_GZIP_WBITS, _ZLIB_WBITS, _RAW_WBITS = 31, 15, -15
_ZLIB_METHOD = 8
# RFC 9659: what is sent over HTTP needs a window of at most 8 MB.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_DAMAGE = (zlib.error, brotli.error, zstd.ZstdError)


class Stage(Protocol):
    """One layer of compression."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next piece of input into pieces of bounded size."""

    @property
    def is_complete(self) -> bool:
        """Whether the input may end here."""


class Decompressor:
    """Undo the layers that a Content-Encoding header names."""

    def __init__(self, content_encoding: str) -> None:
        self._names = [name for part in content_encoding.split(",") if (name := part.strip().lower())]
        if len(self._names) > _MAX_ENCODINGS:
            raise SourceInvalid(f"The answer is compressed {len(self._names)} times over.")
        self._stages = [_stage(name) for name in reversed(self._names) if name != "identity"]

    def __bool__(self) -> bool:
        return bool(self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next piece of input into pieces of bounded size."""
        pieces = iter((data,))
        for stage in self._stages:
            pieces = _through(stage, pieces)
        try:
            yield from pieces
        except _DAMAGE as exc:
            raise SourceInvalid(f"The answer's compression ({', '.join(self._names)}) is damaged: {exc}") from exc

    def finish(self) -> None:
        """Raise SourceIncomplete unless every stream has reached its end."""
        if not all(stage.is_complete for stage in self._stages):
            raise SourceIncomplete(f"The answer's compression ({', '.join(self._names)}) ends before its end mark.")


def _through(stage: Stage, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from stage.feed(piece)


def _stage(name: str) -> Stage:
    match name:
        case "gzip" | "x-gzip":
            return _Members(lambda _: _Zlib(_GZIP_WBITS), padding=b"\0")
        case "deflate":
            return _Members(_open_deflate)
        case "zstd":
            return _Members(lambda _: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS))
        case "br":
            return _Brotli()
    raise SourceInvalid(f"The answer's Content-Encoding, {name!r}, is not one of those asked for: {ACCEPTED}.")


class _Member(Protocol):
    """The shape that the standard library gives its decompressors."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decompressor in that shape."""

    def __init__(self, wbits: int) -> None:
        self._engine = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        output = self._engine.decompress(self._engine.unconsumed_tail + data, max_length)
        # A full output may leave more waiting inside zlib even though it has taken all input.
        self.needs_input = not self._engine.unconsumed_tail and len(output) < max_length
        return output


def _open_deflate(data: bytes) -> _Zlib:
    """Servers send both forms: with zlib's header, as RFC 9110 says, and raw."""
    return _Zlib(_ZLIB_WBITS if data[0] & 0x0F == _ZLIB_METHOD else _RAW_WBITS)


class _Members:
    """Streams that may follow one another."""

    def __init__(self, open_member: Callable[[bytes], _Member], *, padding: bytes = b"") -> None:
        self._open_member = open_member
        self._padding = padding
        self._member: _Member | None = None
        self._ended = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None:
                data = data.lstrip(self._padding) if self._ended else data
                if not data:
                    return
                self._member = self._open_member(data)
            if output := self._member.decompress(data, _PIECE_BYTES):
                yield output
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = None
                self._ended += 1
            elif self._member.needs_input:
                return

    @property
    def is_complete(self) -> bool:
        return self._member is None and self._ended > 0


class _Brotli:
    def __init__(self) -> None:
        self._engine = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._engine.process(data, output_buffer_limit=_PIECE_BYTES)
        while not (self._engine.can_accept_more_data() or self._engine.is_finished()):
            yield self._engine.process(b"", output_buffer_limit=_PIECE_BYTES)

    @property
    def is_complete(self) -> bool:
        return bool(self._engine.is_finished())
