"""Whatever is killed whenever, nobody sees half a run, and nothing is lost; `scripts/crash-test` kills more often."""

from __future__ import annotations

from tests.faults.crash import VICTIMS, crash_test


async def test_kills_at_random_points_lose_nothing() -> None:
    """After the service, its backends and its database were killed, the mirror equals the feed, and the journal too."""
    figures = await crash_test(kills=len(VICTIMS), seed=7)
    assert set(figures.kills) == set(VICTIMS)
    assert figures.reader_checks > 100
