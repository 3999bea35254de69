"""Decode spooled records into rows: fast where nothing is unusual, exactly wherever something is.

The fast way lets msgspec decode a whole frame into typed structs. It is taken only where a few searches over the
frame's bytes prove that it cannot lose anything: no NUL, no repeated field name, no number too long for a double.
Whatever is not proved, or does not decode, is halved until few records are left, and those are read exactly.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Raw

from columns import BIGINT, MAX_COLUMNS, NUMERIC, Column, infer, join, key_type
from errors import SourceInvalid
from fast_rows import CHECKS, EXACT_TYPES, HAZARDS, SHAPE, SWIFT_TYPES, FastWay, Rows, can_be_read_fast
from models import KEPT_PROBLEMS, Problem
from records import RecordError, check_key, check_storable, parse, read_key, without_nul
from spool import DIGEST_BYTES, Frame, Spool
from values import Misfit, fit_for

INTEGER_TEXT = re.compile(r"-?(?:0|[1-9][0-9]*)")
SMALLEST_SPLIT = 8

_objects = msgspec.json.Decoder(dict[str, Raw])
_raws = msgspec.json.Decoder(list[Raw])


@dataclass(frozen=True, kw_only=True)
class ColumnMisfit:
    """The first value of a field that its column could not hold: reported where the column may not be widened."""

    column: Column | None
    """None for a field that has no column."""
    position: int
    key: Mapping[str, Any]
    reason: str


class RowDecoder:
    """Decodes frames into rows for a set of columns, and notes whatever those columns cannot hold.

    After a frame, `wanted` holds the types that fields need beyond what their columns have; as long as it is empty,
    every row is complete. Rejected records are counted, and the keys of those that have one are kept, so that their
    rows can be protected from deletion.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        key: Sequence[str],
        *,
        nul_characters: Literal["reject", "strip"] = "reject",
        declared: Collection[str] = (),
    ) -> None:
        """Make a decoder; fields that were `declared` to be numeric may spell their numbers as text."""
        self.columns = tuple(columns)
        self.key = tuple(key)
        self.wanted: dict[str, str | None] = {}
        self.misfits: dict[str, ColumnMisfit] = {}
        self.problems: list[Problem] = []
        self.rejected = 0
        self.rejected_at: list[int] = []
        self.unidentified = 0
        self.protected: list[tuple[Any, ...]] = []
        self._strip = nul_characters == "strip"
        self._fits = [
            fit_for(column.sql_type, numbers_as_text=column.field in declared and column.field not in self.key)
            for column in self.columns
        ]
        self._by_field = {column.field: place for place, column in enumerate(self.columns)}
        self._key_places = [self._by_field[name] for name in self.key]
        self._hazards = {shape for column in self.columns for shape in HAZARDS.get(column.sql_type, ())}
        self._key_hashes: list[npt.NDArray[np.int64]] = []
        self._only_null: dict[str, None] = {}
        self._ways: tuple[FastWay | None, ...] | None = None

    def decode(self, frame: Frame) -> Rows:
        """Decode a frame; records that are rejected or misfit are left out of the rows.

        Raises SourceInvalid for a record that is nested so deeply that its end cannot be found.
        """
        rows = self._fast(frame)
        if rows is not None:
            return rows
        try:
            raws = _raws.decode(frame.payload)
        except RecursionError as error:
            raise SourceInvalid("One of the records is nested too deeply to be read.") from error
        return self._split(raws, frame.positions, frame.digests)

    async def rows(self, spool: Spool, *, positions: bool) -> AsyncIterator[Sequence[Any]]:
        """Yield the spooled records as rows for COPY: the columns' values, the position if wanted, the fingerprint.

        From the first record that does not fit, nothing is yielded: the others are only looked at, so that `wanted`
        tells at the end what all of them need.
        """
        async for frame in spool.frames():
            rows = self.decode(frame)
            await asyncio.sleep(0)  # decoding and encoding take some milliseconds each; others get their turn between
            if not self.wanted:
                self._key_hashes.append(self._hash_keys(rows))
                for row in zip(*rows.columns, *([rows.positions] if positions else []), rows.digests, strict=True):
                    yield row
            await asyncio.sleep(0)

    async def may_share_keys(self) -> bool:
        """Tell whether two of the rows may have the same key; without equal hashes, none have."""
        hashes = np.concatenate([np.empty(0, dtype=np.int64), *self._key_hashes])
        await asyncio.to_thread(hashes.sort)
        return bool((hashes[1:] == hashes[:-1]).any())

    def protect(self, key: Mapping[str, Any] | None) -> bool:
        """Keep the key of a rejected record, so that its row is not deleted; count it if it names no row."""
        try:
            values = [self._row_key(place, (key or {}).get(self.columns[place].field)) for place in self._key_places]
        except (ValueError, ArithmeticError):
            self.unidentified += 1
            return False
        self.protected.append(tuple(values))
        return True

    def _hash_keys(self, rows: Rows) -> npt.NDArray[np.int64]:
        keys = [rows.columns[place] for place in self._key_places]
        hashes = map(hash, keys[0] if len(keys) == 1 else zip(*keys, strict=True))
        return np.fromiter(hashes, dtype=np.int64, count=len(rows.positions))

    def _fast_ways(self) -> tuple[FastWay | None, ...]:
        """Return the swift way and the careful one, which are the same where no column has hazards."""
        is_same = not any(column.sql_type in CHECKS for column in self.columns)
        return tuple(
            FastWay.make(self.columns, self.key, self._fits, tuple(self._only_null), typed)
            for typed in ((EXACT_TYPES,) if is_same else (SWIFT_TYPES, EXACT_TYPES))
        )

    def _fast(self, frame: Frame) -> Rows | None:
        """Decode a frame at once, or return None where it is not certain that nothing would be lost."""
        if b"\\u0000" in frame.payload:
            return None
        self._ways = self._ways or self._fast_ways()
        for way in self._ways[-1:] if self._is_hazardous(frame.payload) else self._ways:
            with suppress(msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
                return way.rows(frame) if way else None
        return None

    def _is_hazardous(self, payload: bytes) -> bool:
        if not self._hazards:
            return False
        shape = payload.translate(SHAPE)
        return any(hazard in shape for hazard in self._hazards)

    def _split(self, raws: Sequence[Raw], positions: npt.NDArray[np.int64], digests: bytes) -> Rows:
        """Go on with both halves of what could not be decoded at once, down to few records, read exactly."""
        rows = Rows(columns=[[] for _ in self.columns])
        if len(raws) <= SMALLEST_SPLIT:
            for place, raw in enumerate(raws):
                self._exact(rows, raw, int(positions[place]), digests[DIGEST_BYTES * place :][:DIGEST_BYTES])
            return rows
        middle = len(raws) // 2
        for start, end in ((0, middle), (middle, len(raws))):
            half = Frame(
                payload=b"[%b]" % b",".join(raws[start:end]),
                positions=positions[start:end],
                digests=digests[DIGEST_BYTES * start : DIGEST_BYTES * end],
            )
            rows.extend(self._fast(half) or self._split(raws[start:end], half.positions, half.digests))
        return rows

    def _exact(self, rows: Rows, raw: Raw, position: int, digest: bytes) -> None:
        """Read one record exactly, and say what is wrong with it if it cannot become a row."""
        try:
            text = without_nul(bytes(raw), strip=self._strip)
            record, repeated = parse(text)
            key = {name: record.get(name) for name in self.key}
            check_key(key)
            check_storable(record)
            values = self._values(record, text, _Place(position=position, key=key))
        except RecordError as error:
            self._reject(position, str(error), read_key(raw, self.key))
            return
        if repeated is not None:
            self._note("repeated_field", position, f"the field name {repeated!r} stands in it twice", key)
        if values is not None:
            rows.append(values, position, digest)

    def _values(self, record: Mapping[str, Any], text: bytes, at: _Place) -> list[Any] | None:
        """Return the values of all columns, None where a field has no column that holds it."""
        values: list[Any] = [None] * len(self.columns)
        texts = _objects.decode(text)
        complete = True
        for name, value in record.items():
            place = self._by_field.get(name)
            if place is None:
                complete &= self._unknown(name, value, at)
            elif value is not None:
                try:
                    values[place] = self._fits[place].convert(value, str(texts[name], "utf-8"))
                except Misfit as misfit:
                    self._widen(self.columns[place], value, at, misfit)
                    complete = False
        return values if complete else None

    def _unknown(self, name: str, value: Any, at: _Place) -> bool:
        """Note a field without a column; one that has only been null needs none yet."""
        if value is not None:
            self._want(None, name, value, at, "has no column")
            return False
        if name not in self._only_null and len(self._only_null) < MAX_COLUMNS and can_be_read_fast(name):
            self._only_null[name] = None
            self._ways = None
        return True

    def _widen(self, column: Column, value: Any, at: _Place, misfit: Misfit) -> None:
        if column.field in self.key and not (column.sql_type == BIGINT and key_type(value) == NUMERIC):
            raise RecordError(f"its key field {column.field!r} {misfit}")
        self._want(column, column.field, value, at, str(misfit))

    def _want(self, column: Column | None, name: str, value: Any, at: _Place, reason: str) -> None:
        self.wanted[name] = join(self.wanted.get(name), infer(value))
        if name not in self.misfits:
            self.misfits[name] = ColumnMisfit(column=column, position=at.position, key=at.key, reason=reason)

    def _reject(self, position: int, reason: str, key: Mapping[str, Any] | None) -> None:
        self.rejected += 1
        self.rejected_at.append(position)
        self._note("rejected", position, reason, key if self.protect(key) else None)

    def _row_key(self, place: int, value: Any) -> Any:
        """Return the key value that a rejected record may have meant: `"1"` may be row 1."""
        fit = self._fits[place]
        if isinstance(value, str):
            value = value.replace("\0", "") if self._strip else value
            check_storable(value)
            if "\0" in value:
                raise Misfit("is not a key")
        elif key_type(value) is None:
            raise Misfit("is not a key")
        try:
            return fit.convert(value, str(value))
        except Misfit:
            if isinstance(value, str) and INTEGER_TEXT.fullmatch(value):
                return fit.convert(int(value), value)
            return fit.convert(str(value), str(value))

    def _note(
        self, kind: Literal["rejected", "repeated_field"], position: int, reason: str, key: Mapping[str, Any] | None
    ) -> None:
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(Problem(kind=kind, position=position, reason=reason, key=key))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a record stands, for messages about it."""

    position: int
    key: Mapping[str, Any]
