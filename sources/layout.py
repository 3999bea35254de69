"""Work out how a body is laid out (an array, an array under a path, lines) and cut it accordingly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from definitions import Source
from errors import SourceIncomplete, SourceInvalid, SourceTooLarge
from projection import FeedKey
from sources.batch import Batch, Rejections
from sources.cut import WHITESPACE, ArrayCutter, LineCutter
from sources.frame import ArrayFinder, check_frame, find_value
from sources.verdict import excerpt, without_surrogates

LINE_TYPES = frozenset(
    f"{kind}/{name}"
    for kind in ("application", "text")
    for name in ("ndjson", "x-ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines", "x-json-lines")
)

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Document(Protocol):
    """A body whose layout is known."""

    @property
    def records(self) -> int:
        """The place in the snapshot of the record that comes next; rejected ones count."""

    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of the body."""

    def finish(self) -> Iterator[Batch | None]:
        """Cut what is left; raise unless the body is complete."""


class ArrayDocument:
    """A JSON document that holds the records in one array."""

    def __init__(self, source: Source, rejections: Rejections, *, position: int) -> None:
        self._path = source.records
        self._max_bytes = source.max_record_bytes
        self._finder = ArrayFinder(source.records, max_bytes=source.max_record_bytes)
        self._cutter = ArrayCutter(
            key=FeedKey.of(source),
            max_record_bytes=source.max_record_bytes,
            rejections=rejections,
            position=position,
        )
        self._suffix = bytearray()

    @property
    def records(self) -> int:
        """The place in the snapshot of the record that comes next; rejected ones count."""
        return self._cutter.records

    def find(self, path: tuple[str, ...]) -> bytes | None:
        """Return the JSON under a path beside the array, None where there is none, once `finish` was called."""
        return find_value(self._finder.prefix, bytes(self._suffix), path)

    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of the body."""
        yield from self._feed(data, is_all=False)

    def _feed(self, data: bytes, *, is_all: bool) -> Iterator[Batch | None]:
        if not self._finder.found:
            yield from self._finder.feed(data, is_all=is_all)
            if not self._finder.found:
                return
            data = self._finder.rest
        if not self._cutter.ended:
            yield from self._cutter.feed(data)
            data = self._cutter.rest
        if self._cutter.ended:
            self._take_suffix(data)

    def finish(self) -> Iterator[Batch | None]:
        """Cut what is left; raise unless the document is complete and valid."""
        if not self._finder.found:
            yield from self._feed(b"", is_all=True)
        if not self._finder.found:
            raise self._finder.explain_absence()
        if not self._cutter.ended:
            yield from self._cutter.finish()
            self._take_suffix(self._cutter.rest)
        check_frame(self._finder.prefix, bytes(self._suffix), self._path)

    def _take_suffix(self, data: bytes) -> None:
        if not self._path and data.strip(WHITESPACE):
            raise SourceInvalid(f"Something follows the array of records: {excerpt(data)}")
        self._suffix += data if self._path else b""
        if len(self._suffix) > self._max_bytes:
            raise SourceTooLarge(
                f"More than MAX_RECORD_BYTES, or max_record_bytes of the source ({self._max_bytes:,}), follow the "
                "array of records."
            )


class Layout:
    """Cut a body whose layout shows in the source's settings, the content type, or its first bytes."""

    def __init__(
        self,
        source: Source,
        *,
        content_type: str,
        end_is_marked: bool,
        rejections: Rejections,
        position: int = 0,
    ) -> None:
        """Take what is known of a body; `position` is the place of its first record, above 0 after other pages."""
        self._source = source
        self._position = position
        self._content_type = content_type
        self._end_is_marked = end_is_marked
        self._rejections = rejections
        self._head = b""
        self._document: Document | None = None

    @property
    def records(self) -> int:
        """The place in the snapshot of the record that comes next; rejected ones count."""
        return self._document.records if self._document else self._position

    @property
    def has_lines(self) -> bool:
        """Whether the records turned out to be lines."""
        return isinstance(self._document, LineCutter)

    def find(self, path: tuple[str, ...]) -> bytes | None:
        """Return the JSON under a path beside the records, None where there is none, once `finish` was called."""
        return self._document.find(path) if isinstance(self._document, ArrayDocument) else None

    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of the body."""
        if self._document is None:
            self._head += data
            self._document = self._recognise(is_all=False)
            if self._document is None:
                self._check_head()
                return
            data, self._head = self._head, b""
        yield from self._document.feed(data)

    def finish(self) -> Iterator[Batch | None]:
        """Cut what is left; raise unless the body is complete and valid."""
        if self._document is None:
            if self._is_page_without_lines():
                return
            self._document = self._recognise(is_all=True)
            if self._document is None:
                raise SourceInvalid("The answer is empty, which does not say that there are no records.")
            yield from self._document.feed(self._head)
        yield from self._document.finish()

    def _recognise(self, *, is_all: bool) -> Document | None:
        """Return the document that the head begins, or None if more of it has to be seen."""
        head = self._head.lstrip(WHITESPACE)
        if not head:
            return None
        if self._source.format == "json" or self._source.records:
            return self._array()
        if self._source.format == "ndjson" or (self._content_type in LINE_TYPES and not head.startswith(b"[")):
            return self._lines()
        if not head.startswith(b"{"):
            return self._array()
        return self._recognise_lines(head, is_all=is_all)

    def _recognise_lines(self, head: bytes, *, is_all: bool) -> Document | None:
        line, newline, following = head.partition(b"\n")
        following = following.lstrip(WHITESPACE)
        if not is_all and not newline:
            return None
        if _is_object(line):
            if following.startswith(b"{"):
                return self._lines()
            if not following and not is_all:
                return None
        raise SourceInvalid(
            f"The answer is one object, not an array of records: {excerpt(head)}",
            remedy="Nothing was written. Name the array inside it in SOURCE_RECORDS, or records of the source, as in "
            "data.items; if every line is one record, set SOURCE_FORMAT=ndjson, or format of the source.",
        )

    def _array(self) -> Document:
        return ArrayDocument(self._source, self._rejections, position=self._position)

    def _lines(self) -> Document:
        if not self._end_is_marked:
            raise SourceIncomplete(
                "The answer is lines of JSON without Content-Length, chunks or compression, so nothing tells whether "
                "it is complete.",
                remedy="Nothing was written. Let the source send Content-Length, or serve its records as an array.",
            )
        return LineCutter(
            key=FeedKey.of(self._source),
            max_record_bytes=self._source.max_record_bytes,
            rejections=self._rejections,
            position=self._position,
        )

    def _is_page_without_lines(self) -> bool:
        """Tell whether nothing means no records: after other pages, if it is said to be lines, and to be whole."""
        is_further_page = self._position > 0 and self._source.format == "ndjson"
        says_lines = self._content_type in LINE_TYPES and self._end_is_marked
        return is_further_page and says_lines and not self._head.strip(WHITESPACE)

    def _check_head(self) -> None:
        if len(self._head) > self._source.max_record_bytes:
            raise SourceTooLarge(
                f"The answer's first line is larger than MAX_RECORD_BYTES, or max_record_bytes of the source "
                f"({self._source.max_record_bytes:,})."
            )


def _is_object(line: bytes) -> bool:
    try:
        _object_decoder.decode(without_surrogates(line))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
