"""Cursors: how far a source has been read, told by the greatest value of one of its records' fields.

Values are compared by what they mean: numbers by value, instants (RFC 3339) by instant, other texts by code point. A
number comes after any of these, a text that begins with a day after any number, and an instant after all: so an empty
text, or whatever else stands in one record instead of a moment, does not lead the cursor away from those of all others.
They are kept as the source wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Raw

from spool import DIGEST_BYTES, Spool

log = structlog.get_logger()

TEXT, NUMBER, DAY, INSTANT = range(4)
NO_FRACTION = Decimal(0)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RFC3339 = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})[Tt ](?P<time>\d{2}:\d{2}:\d{2})(?:\.(?P<fraction>\d+))?(?P<zone>[Zz]|[+-]\d{2}:\d{2})",
    re.ASCII,
)

DAY_FIRST = re.compile(r"\d{4}-\d{2}-\d{2}(?!\d)", re.ASCII)
"""What a moment without an offset begins with."""
CLOCKS_DIFFER = timedelta(days=1)
"""By how much a moment without an offset may be ahead; nobody knows the clock that it was read from."""

SHAPE = bytes.maketrans(b"123456789", b"000000000")
ALIKE = re.compile(rb'"0000-00-00[Tt]00:00:00(?:\.0+)?[Zz]"|0+(?:\.0+)?')
"""Shapes (digits as 0) within which the order of the bytes is the order of the values."""
NOTHING = b"null"
NULL = Raw(NOTHING)

_raws = msgspec.json.Decoder(list[Raw])
_objects = msgspec.json.Decoder(list[dict[str, Raw]])


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value that a cursor may have."""

    order: tuple[int, Any, Decimal]
    """Kind, value and, of an instant, the fraction of a second: what marks are compared by."""
    literal: str
    """As JSON, as the source wrote it."""

    @property
    def text(self) -> str:
        """The value as a parameter carries it."""
        return str(json.loads(self.literal)) if self.literal.startswith('"') else self.literal


def read_mark(literal: bytes | str) -> Mark | None:
    """Return what the JSON text of a value says, None where it cannot be a cursor: only numbers and texts can."""
    try:
        spelled = literal if isinstance(literal, str) else literal.decode()
        value = Decimal(spelled) if spelled[0] in "-0123456789" else json.loads(spelled)
        if not isinstance(value, str | Decimal):
            return None
        spelled.encode() if isinstance(value, Decimal) else value.encode()
    except (ValueError, ArithmeticError, RecursionError):
        return None
    if isinstance(value, Decimal):
        return Mark(order=(NUMBER, value, NO_FRACTION), literal=spelled)
    other = DAY if DAY_FIRST.match(value) else TEXT
    return Mark(order=_read_instant(value) or (other, value, NO_FRACTION), literal=spelled)


def _read_instant(text: str) -> tuple[int, timedelta, Decimal] | None:
    match = RFC3339.fullmatch(text)
    if match is None:
        return None
    try:
        second = datetime.fromisoformat(f"{match['day']}T{match['time']}{match['zone'].upper()}")
    except ValueError:
        return None
    return INSTANT, second - EPOCH, Decimal(f"0.{match['fraction'] or 0}")


def greatest(marks: Iterable[Mark | None]) -> Mark | None:
    """Return the mark with the greatest value, the first of several; None if there is none."""
    return max((mark for mark in marks if mark is not None), key=lambda mark: mark.order, default=None)


def greatest_of(literals: Iterable[bytes]) -> Mark | None:
    """Return the greatest of many values in JSON; few of them need to be read for that."""
    highest: dict[bytes, bytes] = {}
    for literal in literals:
        shape = literal.translate(SHAPE)
        if shape not in highest:
            highest[shape if ALIKE.fullmatch(shape) else literal] = literal
        elif literal > highest[shape]:
            highest[shape] = literal
    return greatest(map(read_mark, highest.values()))


class Track:
    """The values of a cursor's field in what was fetched, kept in a spool in case some records are rejected."""

    def __init__(self, field: str, spool: Spool, since: Mark | None) -> None:
        """Begin with nothing; `since` is how far the source has been read before."""
        self.since = since
        self._values = _reader(field)
        self._spool = spool
        self._greatest: Mark | None = None
        self._now = datetime.now(UTC)
        self._last_day = (self._now + CLOCKS_DIFFER).date().isoformat()

    async def note(self, records: Sequence[Raw], positions: npt.NDArray[np.int64]) -> None:
        """Take records of the feed into account, which stand at these places of the snapshot."""
        literals = self._read(records)
        self._greatest = greatest([self._greatest, self._greatest_of([each for each in literals if each != NOTHING])])
        await self._spool.write(literals, positions, bytes(DIGEST_BYTES * len(literals)))

    async def reached(self, rejected: Collection[int]) -> str | None:
        """Return how far the source is read now, as JSON, given the places of the records that were rejected.

        It never goes back, and takes no value of a rejected record. It stays before the first of these, so that they
        are fetched again; unless there is nothing before it to go on to, for then it would never go on.
        """
        last = await self._last_of_stored(frozenset(rejected)) if rejected else self._greatest
        reached = greatest([self.since, last])
        return reached.literal if reached else None

    async def _last_of_stored(self, rejected: frozenset[int]) -> Mark | None:
        """Return the greatest new value of stored records before the first that was rejected, or else of all."""
        first, last = None, None
        async for place, mark in self._new_marks():
            if place not in rejected:
                last = greatest([last, mark])
            elif first is None or mark.order < first.order:
                first = mark
        before = await self._last_before(first) if first else None
        if first is not None:
            passes = last is not None and before is None
            log.warning("cursor_passes_rejected" if passes else "cursor_waits_for_rejected", rejected=first.text)
        return before or last

    async def _last_before(self, limit: Mark) -> Mark | None:
        """Return the greatest new value below a limit."""
        last: Mark | None = None
        async for _, mark in self._new_marks():
            if mark.order < limit.order:
                last = greatest([last, mark])
        return last

    async def _new_marks(self) -> AsyncIterator[tuple[int, Mark]]:
        """Yield the places and values of what lies beyond where the source had been read to, and is not ahead."""
        async for frame in self._spool.frames():
            marks = map(read_mark, map(bytes, _raws.decode(frame.payload)))
            for place, mark in zip(frame.positions.tolist(), marks, strict=True):
                if mark is not None and self._is_new(mark) and not self._is_ahead(mark):
                    yield place, mark

    def _is_new(self, mark: Mark) -> bool:
        return self.since is None or mark.order > self.since.order

    def _greatest_of(self, literals: Sequence[bytes]) -> Mark | None:
        """Return the greatest value that does not lie ahead."""
        found = greatest_of(literals)
        if found is None or not self._is_ahead(found):
            return found
        log.info("cursor_leaves_out_future", value=found.text)
        return greatest(mark for mark in map(read_mark, literals) if mark and not self._is_ahead(mark))

    def _is_ahead(self, mark: Mark) -> bool:
        """Tell whether a moment is yet to come: as a cursor it would pass by all that changes until then."""
        kind, value, _ = mark.order
        return value > self._now - EPOCH if kind == INSTANT else kind == DAY and value[:10] > self._last_day

    def _read(self, records: Sequence[Raw]) -> list[bytes]:
        """Return the field's JSON text in each record, null where it has none or cannot be read."""
        with suppress(msgspec.DecodeError, ValueError, RecursionError):
            return [bytes(value) for value in self._values(b"[%b]" % b",".join(records))]
        return [self._read_one(record) for record in records]

    def _read_one(self, record: Raw) -> bytes:
        with suppress(msgspec.DecodeError, ValueError, RecursionError):
            return bytes(self._values(b"[%b]" % bytes(record))[0])
        return NOTHING


def _reader(field: str) -> Callable[[bytes], list[Raw]]:
    """Return what reads one field of an array of records, quicker where msgspec can give a struct's field its name."""
    if not field.isprintable() or '"' in field or "\\" in field:
        return lambda payload: [members.get(field, NULL) for members in _objects.decode(payload)]
    struct = msgspec.defstruct("Record", [("value", Raw, NULL)], rename={"value": field}, gc=False, eq=False)
    decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[struct])  # type: ignore[valid-type]
    return lambda payload: [record.value for record in decoder.decode(payload)]
