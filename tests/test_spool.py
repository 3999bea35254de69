"""The spool: frames come back as they were written, as often as wanted, and a full disk is told as what it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import SpoolFailed
from spool import DIGEST_BYTES, Frame, Spool, open_spool

ROOT = Path(__file__).parents[1]

frames_of_records = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([b"{}", b'{"a":"\xff"}', b'{"a":"' + b"x" * 3_000 + b'"}', "🎉".encode(), b'{"a":"\\n"}']),
            st.integers(0, 2**62),
            st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES),
        ),
        min_size=1,
        max_size=5,
    ),
    max_size=5,
)
Written = list[list[tuple[bytes, int, bytes]]]


async def write(spool: Spool, written: Written) -> None:
    """Write frames of raw records, positions and digests."""
    for records in written:
        raws, positions, digests = zip(*records, strict=True)
        await spool.write([msgspec.Raw(raw) for raw in raws], np.array(positions, dtype=np.int64), b"".join(digests))


async def read(spool: Spool) -> list[tuple[bytes, list[int], bytes]]:
    """Read what the frames hold."""
    return [(frame.payload, frame.positions.tolist(), frame.digests) async for frame in spool.frames()]


def expected(written: Written) -> list[tuple[bytes, list[int], bytes]]:
    """Return what should be read of what was written."""
    return [
        (
            b"[" + b",".join(raw for raw, _, _ in records) + b"]",
            [at for _, at, _ in records],
            b"".join(d for *_, d in records),
        )
        for records in written
    ]


@given(frames_of_records, frames_of_records)
@settings(deadline=None)
async def test_frames_come_back(first: Written, second: Written) -> None:
    """Frames are read as they were written, any number of times, also while more are written, and until a clear."""
    async with open_spool(None) as spool:
        await write(spool, first)
        assert await read(spool) == expected(first)
        assert await read(spool) == expected(first)
        await write(spool, second)
        assert await read(spool) == expected(first + second)
        assert spool.records == sum(map(len, first + second))
        spool.clear()
        assert (await read(spool), spool.records, spool.bytes) == ([], 0, 0)
        await write(spool, second)
        assert await read(spool) == expected(second)


async def test_a_frame_knows_its_length(tmp_path: Path) -> None:
    """A frame is as long as it has records, and two readers do not disturb each other."""
    async with open_spool(tmp_path) as spool:
        await write(spool, [[(b"1", 0, bytes(16)), (b"2", 1, bytes(16))], [(b"3", 2, bytes(16))]])
        lengths = []
        async for frame in spool.frames():
            assert [len(other) async for other in spool.frames()] == [2, 1]
            lengths.append(len(frame))
        assert lengths == [2, 1]
        assert isinstance(frame, Frame)


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The file has no name, so that its directory is as empty during a run as after it."""
    async with open_spool(tmp_path) as spool:
        await write(spool, [[(b"{}", 0, bytes(16))]])
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """Where no file can be made, the directory is named."""
    missing = tmp_path / "missing"
    with pytest.raises(SpoolFailed, match=str(missing)):
        async with open_spool(missing):
            pass


FULL_DISK = """
import asyncio, resource, sys
import numpy as np
from errors import SpoolFailed
from spool import open_spool

async def fill():
    async with open_spool(None) as spool:
        await spool.write([b"1"], np.array([0]), bytes(16))
        try:
            await spool.write([b"2" * int(sys.argv[1])], np.array([1]), bytes(16))
        finally:
            assert spool.records == 1

resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
try:
    asyncio.run(fill())
except SpoolFailed as error:
    sys.exit(f"SpoolFailed: {error} / {error.remedy}")
"""


@pytest.mark.parametrize("record_bytes", ["5000", "100000"])
def test_a_full_disk_is_told(record_bytes: str) -> None:
    """A file that cannot grow fails the run with cause and remedy, and nothing else is raised while it is closed."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, record_bytes],
        cwd=ROOT,
        # Coverage would be measured here too, and its own file could not grow either.
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("SpoolFailed: The spool file could not be written: File too large.")
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
