"""A file that keeps the records of a run whose fingerprints are not known, until the whole answer was seen to be sound.

The file has no name, so nothing is left behind however the process ends. Records are kept in frames: as many as came in
one batch, as one JSON array, with their positions and digests, so that a frame is written, read and decoded at once.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from errors import SpoolFailed

_HEAD = struct.Struct("<QQ")
DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Records as they came: a JSON array of them, their places in the snapshot, and their digests."""

    payload: bytes
    positions: npt.NDArray[np.int64]
    digests: bytes
    """DIGEST_BYTES for every record."""

    def __len__(self) -> int:
        return len(self.positions)


class Spool:
    """Frames in the order in which they were written, to be read any number of times."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.records = 0
        self.bytes = 0

    def clear(self) -> None:
        """Forget all frames; the file is written over from its start."""
        self.records = 0
        self.bytes = 0

    async def write(self, records: Sequence[Any], positions: npt.NDArray[np.int64], digests: bytes) -> None:
        """Append one frame; `records` are raw JSON texts."""
        payload = b"[%b]" % b",".join(records)
        head = _HEAD.pack(len(positions), len(payload))
        await asyncio.to_thread(self._append, head + positions.tobytes() + digests + payload)
        self.records += len(positions)

    async def frames(self) -> AsyncIterator[Frame]:
        """Read all frames from the start."""
        offset = 0
        while offset < self.bytes:
            frame, offset = await asyncio.to_thread(self._read, offset)
            yield frame

    def _append(self, data: bytes) -> None:
        try:
            self._file.seek(self.bytes)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise SpoolFailed(f"The spool file could not be written: {error.strerror}.") from error
        self.bytes += len(data)

    def _read(self, offset: int) -> tuple[Frame, int]:
        self._file.seek(offset)
        count, payload_bytes = _HEAD.unpack(self._file.read(_HEAD.size))
        positions = np.frombuffer(self._file.read(8 * count), dtype=np.int64)
        digests = self._file.read(DIGEST_BYTES * count)
        payload = self._file.read(payload_bytes)
        return Frame(payload=payload, positions=positions, digests=digests), self._file.tell()


@asynccontextmanager
async def open_spool(directory: Path | None) -> AsyncIterator[Spool]:
    """Open an empty spool in a directory, by default the system's for temporary files."""
    try:
        file = await asyncio.to_thread(tempfile.TemporaryFile, "w+b", dir=directory)
    except OSError as error:
        raise SpoolFailed(f"A spool file could not be made in {directory or tempfile.gettempdir()}.") from error
    try:
        yield Spool(file)
    finally:
        with suppress(OSError):  # Closing tries once more to write what could not be written, which was reported then.
            await asyncio.to_thread(file.close)
