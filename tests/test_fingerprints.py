"""Fingerprints: what is known is found, what is not known never passes for it, and both come back as a COPY."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from fingerprints import COPY_HEADER, COPY_ROW, COPY_TRAILER, DIGEST, NEVER, KnownFingerprints

ZERO = bytes(16)
digest_bytes = st.one_of(
    st.binary(min_size=16, max_size=16),
    # Alike in the first half, in the last bits of it, or at either end of the order.
    st.builds(lambda low: bytes(8) + low.to_bytes(8, "little"), st.integers(0, 3)),
    st.builds(lambda high: high.to_bytes(8, "little") + bytes(8), st.integers(0, 3)),
    st.builds(lambda low: b"\xff" * 8 + low.to_bytes(8, "little"), st.integers(0, 3)),
)
batches = st.lists(st.lists(digest_bytes, max_size=12), max_size=6)


def copied(digests: list[bytes]) -> bytearray:
    """Spell digests as PostgreSQL spells a binary COPY of one uuid column."""
    rows = b"".join(b"\0\1\0\0\0\x10" + digest for digest in digests)
    return bytearray(COPY_HEADER + rows + COPY_TRAILER)


def listed(copy: bytes) -> list[bytes]:
    """Read a binary COPY of one uuid column."""
    assert copy.startswith(COPY_HEADER)
    assert copy.endswith(COPY_TRAILER)
    body = copy[len(COPY_HEADER) : -len(COPY_TRAILER)]
    assert len(body) % COPY_ROW.itemsize == 0
    return [body[start + 6 : start + 22] for start in range(0, len(body), COPY_ROW.itemsize)]


def array(digests: list[bytes]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return digests as a batch has them."""
    return np.frombuffer(b"".join(digests), dtype=DIGEST)


def check(known: list[bytes], snapshot: list[list[bytes]], *, collisions: bool) -> None:
    """Compare with a model of sets and dictionaries; colliding rows may be taken for unknown, never the reverse."""
    fingerprints, without = KnownFingerprints.from_copy(copied(known))
    rows = set(known) - {ZERO}
    assert without == known.count(ZERO)
    assert len(fingerprints) == len(known) - without
    seen_at: dict[bytes, int] = {}
    for batch, position in zip(snapshot, accumulate(map(len, snapshot), initial=0), strict=False):
        match = fingerprints.match(array(batch), position)
        unknown, repeated = match.unknown.tolist(), match.repeated.tolist()
        assert unknown == sorted(unknown)
        assert {batch[place] for place in range(len(batch)) if place not in unknown} <= rows
        if not collisions:
            assert unknown == [place for place, digest in enumerate(batch) if digest not in rows]
        before = set(seen_at)
        surplus = 0
        for place, digest in enumerate(batch):
            if place not in unknown:
                surplus += digest in seen_at
                seen_at[digest] = position + place
        assert len(repeated) == surplus
        assert all(batch[place] in before or batch.count(batch[place]) > 1 for place in repeated)
    assert fingerprints.seen == len(seen_at)
    for digest in {*rows, *(digest for batch in snapshot for digest in batch)}:
        assert fingerprints.seen_at(digest) == seen_at.get(digest, NEVER)
    assert sorted(listed(fingerprints.copy_of(seen=True))) == sorted(seen_at)
    assert sorted(listed(fingerprints.copy_of(seen=False))) == sorted(rows - set(seen_at))


@given(st.lists(digest_bytes, unique=True, max_size=20), batches)
@example([ZERO], [[ZERO]])
@example([], [[ZERO, ZERO]])
@example([b"\xff" * 16], [[b"\xff" * 16, b"\xff" * 16], [b"\xff" * 16]])
@example([b"\xff" * 8 + bytes(8), b"\xff" * 16], [[b"\xff" * 16], [b"\xff" * 8 + bytes(8)]])
def test_any_fingerprints(known: list[bytes], snapshot: list[list[bytes]]) -> None:
    """Whatever the fingerprints, one that is not known is never taken for known, and what was seen is told."""
    check(known, snapshot, collisions=True)


@given(st.data())
def test_fingerprints_without_collisions(data: st.DataObject) -> None:
    """Where no two rows agree in the first half, exactly the known ones are found."""
    known = data.draw(st.lists(digest_bytes, unique_by=lambda digest: digest[:8], max_size=40))
    either = st.one_of(digest_bytes, st.sampled_from(known)) if known else digest_bytes
    check(known, data.draw(st.lists(st.lists(either, max_size=12), max_size=6)), collisions=False)


def test_several_rows_without_fingerprint() -> None:
    """Rows without a fingerprint are counted, and no record is ever taken for one of them."""
    fingerprints, without = KnownFingerprints.from_copy(copied([ZERO, b"a" * 16, ZERO]))
    assert (without, len(fingerprints)) == (2, 1)
    assert fingerprints.match(array([ZERO, b"a" * 16]), 0).unknown.tolist() == [0]


def test_rows_that_agree_in_the_first_half_cost_time_only() -> None:
    """Of rows that agree in the first half at least one is found, and the others count as not seen."""
    twins = [b"a" * 8 + b"1" * 8, b"a" * 8 + b"2" * 8]
    fingerprints, _ = KnownFingerprints.from_copy(copied(twins))
    match = fingerprints.match(array(twins), 0)
    assert len(match.unknown) == 1
    assert fingerprints.seen == 1
    assert len(listed(fingerprints.copy_of(seen=False))) == 1


def test_nothing_known() -> None:
    """Who knows nothing takes every record for unknown."""
    fingerprints = KnownFingerprints.none()
    assert len(fingerprints) == 0
    assert fingerprints.match(array([b"a" * 16, b"a" * 16]), 0).unknown.tolist() == [0, 1]
    assert fingerprints.seen == 0
    assert fingerprints.seen_at(b"a" * 16) == NEVER
    assert listed(fingerprints.copy_of(seen=True)) == listed(fingerprints.copy_of(seen=False)) == []


def test_many_rows_are_all_found() -> None:
    """Among many rows every one is found at the place where it stood last."""
    generator = np.random.default_rng(5)
    digests = np.frombuffer(generator.bytes(16 * 20_000), dtype=DIGEST)
    fingerprints = KnownFingerprints(digests)
    order = generator.permutation(len(digests))
    for start in range(0, len(digests), 3_000):
        assert not len(fingerprints.match(digests[order[start : start + 3_000]], start).unknown)
    assert fingerprints.seen == len(digests)
    for place in (0, 1, 19_999):
        assert fingerprints.seen_at(digests[order[place]].tobytes()) == place
    assert fingerprints.match(digests[order], 20_000).repeated.tolist() == list(range(20_000))
