"""What a cutter hands on: batches of raw records, and the account of those it had to reject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from models import KEPT_PROBLEMS, Problem

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
"""A record's fingerprint: the 16 bytes of `xxhash.xxh3_128_digest` as they stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive records of a snapshot."""

    position: int
    """Zero-based place of the first record in the snapshot."""
    records: list[msgspec.Raw]
    """The bytes of each record: one syntactically valid JSON object."""
    digests: npt.NDArray[Any]
    """The fingerprint of each record, of type DIGEST."""


def fingerprint(records: list[msgspec.Raw]) -> npt.NDArray[Any]:
    """Return the fingerprints of `records`, in order."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, records)), dtype=DIGEST)


@dataclass(kw_only=True, slots=True)
class Rejections:
    """The records that could not be handed on: all counted and their keys kept, the first ones described."""

    problems: list[Problem] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    unidentified: int = 0

    def add(self, position: int, reason: str, key: Mapping[str, Any] | None = None) -> None:
        """Account for one record; `key` is None where it could not be read."""
        self.count += 1
        if key is None:
            self.unidentified += 1
        else:
            self.keys.append(dict(key))
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(Problem(kind="rejected", position=position, reason=reason, key=key))

    def absorb(self, other: Rejections) -> None:
        """Account for what another one accounted for."""
        self.count += other.count
        self.unidentified += other.unidentified
        self.keys += other.keys
        self.problems += other.problems[: KEPT_PROBLEMS - len(self.problems)]
