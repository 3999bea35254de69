"""Tell known records from unknown ones by their fingerprints alone, a batch at a time, with no work per row.

Fingerprints are 128 bits wide and held as two arrays of 64 bits, sorted by the first; with where in the snapshot each
was last seen and the way to find it, that is 24 to 28 bytes a row. If two rows agree in the first half, a record may be
taken for unknown although it is known; it is then decoded and found equal, so nothing is lost but a little time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
"""The 16 bytes of a digest as two machine words."""

COPY_ROW = np.dtype([("fields", ">i2"), ("length", ">i4"), ("digest", DIGEST)])
"""A row of a binary COPY of one uuid column (PostgreSQL documentation, "COPY", "Binary Format")."""
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"

NEVER = -1


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a batch compares with what is known, as places in the batch."""

    unknown: npt.NDArray[np.int64]
    repeated: npt.NDArray[np.int64]
    """Known, and seen before: copies, to the byte, of another record of the snapshot."""


class KnownFingerprints:
    """The fingerprints of a mirror's live rows, and which of them the snapshot contains."""

    def __init__(self, digests: npt.NDArray[Any]) -> None:
        order = np.argsort(digests["high"])
        self._high = digests["high"][order]
        self._low = digests["low"][order]
        del order
        self._seen_at = np.full(len(digests), NEVER, dtype=np.int32 if len(digests) < 2**31 else np.int64)
        # Fingerprints are spread evenly, so their first bits say almost exactly where in the order they stand. That
        # is some twenty times faster than a binary search, which waits for memory at every step.
        bits = max(len(digests).bit_length(), 1)
        self._shift = np.uint64(64 - bits)
        firsts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(self._high, firsts).astype(self._seen_at.dtype)

    @classmethod
    def from_copy(cls, copied: bytearray) -> tuple[KnownFingerprints, int]:
        """Read the output of a binary COPY; a zero uuid stands for a row without a fingerprint.

        Returns the fingerprints, and the number of rows that have none.
        """
        count = (len(copied) - len(COPY_HEADER) - len(COPY_TRAILER)) // COPY_ROW.itemsize
        rows = np.frombuffer(copied, dtype=COPY_ROW, offset=len(COPY_HEADER), count=count)
        digests = rows["digest"]
        missing = (digests["high"] == 0) & (digests["low"] == 0)
        without = int(missing.sum())
        return cls(digests[~missing] if without else digests), without

    @classmethod
    def none(cls) -> KnownFingerprints:
        """Know nothing, so that every record is decoded and compared by value."""
        return cls(np.empty(0, dtype=DIGEST))

    def __len__(self) -> int:
        return len(self._high)

    @property
    def has_copies(self) -> bool:
        """Whether rows share a fingerprint. Keys are part of what it covers, so only a copy made by hand does that."""
        alike = np.flatnonzero(self._high[1:] == self._high[:-1])
        return bool((self._low[alike] == self._low[alike + 1]).any())

    def match(self, digests: npt.NDArray[Any], position: int) -> Match:
        """Tell which records of a batch are not known, and note that the others were seen.

        `position` is the place of the batch's first record in the snapshot.
        """
        if not len(self):
            return Match(unknown=np.arange(len(digests)), repeated=np.empty(0, dtype=np.int64))
        found = self._find(digests["high"])
        is_known = (self._high[found] == digests["high"]) & (self._low[found] == digests["low"])
        known = np.flatnonzero(is_known)
        seen = found[known]
        was_seen = self._seen_at[seen] != NEVER
        self._seen_at[seen] = position + known
        # Where one batch names a row twice, the later place has been written over the earlier one.
        is_overwritten = self._seen_at[seen] != position + known
        return Match(unknown=np.flatnonzero(~is_known), repeated=known[was_seen | is_overwritten])

    def _find(self, wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return where in the order each of these stands, or would stand; the last place for those beyond it."""
        last = len(self) - 1
        places: npt.NDArray[np.int64] = np.minimum(self._starts[wanted >> self._shift], last).astype(np.int64)
        before = np.flatnonzero(self._high[places] < wanted)
        while len(before):
            places[before] += 1
            before = before[places[before] <= last]
            before = before[self._high[places[before]] < wanted[before]]
        np.minimum(places, last, out=places)
        return places

    def seen_at(self, digest: bytes) -> int:
        """Return where in the snapshot a fingerprint was seen last, NEVER if it was not."""
        wanted = np.frombuffer(digest, dtype=DIGEST)[0]
        if not len(self):
            return NEVER
        place = int(self._find(np.array([wanted["high"]]))[0])
        if self._high[place] != wanted["high"] or self._low[place] != wanted["low"]:
            return NEVER
        return int(self._seen_at[place])

    @property
    def seen(self) -> int:
        """How many known fingerprints the snapshot contains."""
        return int((self._seen_at != NEVER).sum())

    def copy_of(self, *, seen: bool) -> bytes:
        """Return the fingerprints that were seen, or those that were not, as a binary COPY of one uuid column."""
        chosen = np.flatnonzero((self._seen_at != NEVER) == seen)
        rows = np.empty(len(chosen), dtype=COPY_ROW)
        rows["fields"] = 1
        rows["length"] = DIGEST.itemsize
        rows["digest"]["high"] = self._high[chosen]
        rows["digest"]["low"] = self._low[chosen]
        return COPY_HEADER + rows.tobytes() + COPY_TRAILER
