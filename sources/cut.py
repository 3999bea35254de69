"""Cut JSON text that arrives piece by piece into records, without decoding them and in constant memory.

The fast way takes everything up to the last `},` and lets msgspec split it: a prefix of JSON that parses as complete
values ends at a true boundary, so it cannot cut wrongly. Where that fails a few times (long strings full of `},`, a
record that msgspec refuses) a scanner that follows strings and brackets finds the boundaries instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any

import msgspec
import numpy as np

from errors import SourceIncomplete, SourceInvalid, SourceTooLarge
from projection import FeedKey
from sources.batch import Batch, Rejections, fingerprint
from sources.scan import Scanner
from sources.verdict import excerpt, reject_or_fail

WHITESPACE = b" \t\r\n"
_SEPARATORS = (b"},", b"}\n,", b"}\r\n,", b"} ,")
_FAST_TRIES = 4
_RECORDS_PER_TURN = 10_000
_TOLERATED_BLANKS = 1 << 16

_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_lines_decoder = msgspec.json.Decoder(msgspec.Raw)

_TYPE_NAMES = {ord("["): "an array", ord('"'): "a string", ord("t"): "true", ord("f"): "false", ord("n"): "null"}


class Cutter(ABC):
    """Count records, hand on those that are objects, account for the others.

    `feed` and `finish` yield batches, and None wherever the event loop may be given a chance.
    """

    def __init__(self, *, key: FeedKey, max_record_bytes: int, rejections: Rejections, position: int = 0) -> None:
        self.records = position
        """The place in the snapshot of the record that comes next."""
        self._first = position
        self._key = key
        self._max_record_bytes = max_record_bytes
        self._rejections = rejections
        self._pieces: list[bytes] = []
        """The record that has begun but not ended, in the pieces in which it arrived."""
        self._pending_bytes = 0

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of input."""

    @abstractmethod
    def _decode(self, elements: list[bytes]) -> list[msgspec.Raw]:
        """Decode complete elements; raise DecodeError where one is malformed."""

    def _keep(self, data: bytes) -> None:
        """Keep a piece of a record that has not ended."""
        self._pieces.append(data)
        self._pending_bytes += len(data)

    def _keep_all(self, data: bytes) -> None:
        """Keep a piece in which no record ends; what is kept then is one record and the blanks around it."""
        self._keep(data)
        if self._pending_bytes > self._max_record_bytes + _TOLERATED_BLANKS:
            raise self._too_large()

    def _release(self) -> bytes:
        """Return what was kept, to be kept no longer."""
        kept = b"".join(self._pieces)
        self._pieces.clear()
        self._pending_bytes = 0
        return kept

    def _take(self, elements: list[bytes]) -> Iterator[Batch | None]:
        for start in range(0, len(elements), _RECORDS_PER_TURN):
            yield from self._salvage(elements[start : start + _RECORDS_PER_TURN])
            yield None

    def _salvage(self, elements: list[bytes]) -> Iterator[Batch | None]:
        """Decode as many elements at once as will decode, down to single ones that are rejected or spoil it all."""
        try:
            records = self._decode(elements)
            sound = len(records) == len(elements)
        except (msgspec.DecodeError, RecursionError):
            sound = False
        if sound:
            yield from self._emit(records)
        elif len(elements) == 1:
            reason, key = reject_or_fail(elements[0], self._key, f"Record {self.records} (counted from 0)")
            self._reject(reason, key)
            yield None
        else:
            middle = len(elements) // 2
            yield from self._salvage(elements[:middle])
            yield from self._salvage(elements[middle:])

    def _emit(self, records: list[msgspec.Raw]) -> Iterator[Batch | None]:
        for start in range(0, len(records), _RECORDS_PER_TURN):
            yield from self._emit_some(records[start : start + _RECORDS_PER_TURN])

    def _emit_some(self, records: list[msgspec.Raw]) -> Iterator[Batch | None]:
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        if lengths.max() > self._max_record_bytes:
            raise self._too_large()
        first_bytes = np.frombuffer(b"".join(records), np.uint8)[np.cumsum(lengths) - lengths]
        are_objects = first_bytes == ord("{")
        if are_objects.all():
            yield self._batch(records)
            return
        for is_object, run in groupby(zip(are_objects.tolist(), first_bytes.tolist(), records, strict=True), _first):
            if is_object:
                yield self._batch([record for _, _, record in run])
            else:
                for _, first_byte, _ in run:
                    self._reject(f"It is {_TYPE_NAMES.get(first_byte, 'a number')}, not an object.", None)
                yield None

    def _batch(self, records: list[msgspec.Raw]) -> Batch:
        batch = Batch(position=self.records, records=records, digests=fingerprint(records))
        self.records += len(records)
        return batch

    def _reject(self, reason: str, key: dict[str, Any] | None) -> None:
        self._rejections.add(self.records, reason, key)
        self.records += 1

    def _too_large(self) -> SourceTooLarge:
        return SourceTooLarge(
            f"Record {self.records} or one soon after it is larger than MAX_RECORD_BYTES, or max_record_bytes of the "
            f"source ({self._max_record_bytes:,})."
        )


class ArrayCutter(Cutter):
    """Cut what follows an array's opening bracket, up to the closing one."""

    def __init__(self, *, key: FeedKey, max_record_bytes: int, rejections: Rejections, position: int = 0) -> None:
        super().__init__(key=key, max_record_bytes=max_record_bytes, rejections=rejections, position=position)
        self.ended = False
        self.rest = b""
        """What followed the closing bracket in the piece that held it."""
        self._scanner: Scanner | None = None
        self._after_comma = False

    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of input; once `ended`, there is `rest` and no more may be fed."""
        if self._scanner is None:
            data = self._release() + data
            if (records := self._cut_at_last_brace(data)) is not None:
                yield from self._emit(records)
                return
            self._scanner = Scanner()
        yield from self._scan(self._scanner, data)

    def finish(self) -> Iterator[Batch | None]:
        """Cut what is left.

        Raises:
            SourceIncomplete: the closing bracket never came.
        """
        if self._scanner is None:
            yield from self._scan(Scanner(), self._release())
        if not self.ended:
            raise SourceIncomplete(
                f"The answer ends inside its array of records, after {self.records - self._first:,} of them."
            )

    def _decode(self, elements: list[bytes]) -> list[msgspec.Raw]:
        return _array_decoder.decode(b"[%b]" % b",".join(elements))

    def _cut_at_last_brace(self, text: bytes) -> list[msgspec.Raw] | None:
        for separator in _SEPARATORS:
            start = len(text)
            for _ in range(_FAST_TRIES):
                start = text.rfind(separator, 0, start)
                if start < 0:
                    break
                with suppress(msgspec.DecodeError, RecursionError):
                    records = _array_decoder.decode(b"[%b]" % text[: start + 1])
                    self._after_comma = True
                    self._keep(text[start + len(separator) :])
                    return records
        return None

    def _scan(self, scanner: Scanner, piece: bytes) -> Iterator[Batch | None]:
        found = scanner.scan(piece)
        ends = found.commas if found.end is None else [*found.commas, found.end]
        if not ends:
            self._keep_all(piece)
            return
        self._scanner = None
        elements = _split(piece, ends)
        elements[0] = self._release() + elements[0]
        rest = piece[ends[-1] + 1 :]
        if found.end is None:
            self._keep(rest)
        else:
            self._close(elements, piece[found.end])
            self.ended, self.rest = True, rest
        self._after_comma = True
        yield from self._take(elements)

    def _close(self, elements: list[bytes], bracket: int) -> None:
        """Check how the array ends, and take away the nothing that stands in an empty one."""
        if bracket != ord("]"):
            raise SourceInvalid(f"The array of records is closed by }} near: {excerpt(elements[-1])}")
        if elements[-1].strip(WHITESPACE):
            return
        if self._after_comma or len(elements) > 1:
            raise SourceInvalid("The array of records ends with a comma.")
        elements.clear()


class LineCutter(Cutter):
    """Cut lines, each of them one record."""

    def feed(self, data: bytes) -> Iterator[Batch | None]:
        """Cut the next piece of input."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep_all(data)
            return
        text = self._release() + data[:end]
        self._keep(data[end:])
        yield from self._cut(text)

    def finish(self) -> Iterator[Batch | None]:
        """Cut the last line, which may lack its end."""
        last_line = self._release()
        try:
            yield from self._cut(last_line + b"\n")
        except SourceInvalid as exc:
            raise SourceIncomplete(f"The answer's last line is cut short: {excerpt(last_line)}") from exc
        if self.records == self._first:
            raise SourceInvalid("The answer is empty, which does not say that there are no records.")

    def _cut(self, text: bytes) -> Iterator[Batch | None]:
        try:
            records = _lines_decoder.decode_lines(text)
        except (msgspec.DecodeError, RecursionError):
            records = []
        if len(records) == text.count(b"\n"):
            yield from self._emit(records)
        else:
            lines = text.split(b"\n")
            yield from self._take([line for line in lines if line.strip(WHITESPACE)])

    def _decode(self, elements: list[bytes]) -> list[msgspec.Raw]:
        return _lines_decoder.decode_lines(b"\n".join(elements))


def _split(text: bytes, ends: list[int]) -> list[bytes]:
    starts = [0, *(end + 1 for end in ends)]
    return [text[start:end] for start, end in zip(starts, ends, strict=False)]


def _first(entry: tuple[bool, int, msgspec.Raw]) -> bool:
    return entry[0]
