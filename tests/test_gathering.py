"""What comes from the feed is taken in parts, of which nothing shows afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from gathering import HEAVY_RECORDS_PER_TURN
from tests.engine import Engine

MANY = 2 * HEAVY_RECORDS_PER_TURN + 50


@pytest.mark.parametrize("nested", ["jsonb", "flatten"])
async def test_positions_are_those_of_the_snapshot(engine: Engine, nested: str) -> None:
    """However many records come at once, each is told by its own place, and none is lost or taken for another."""
    engine.configure(nested=nested)
    snapshot: list[dict[str, Any]] = [{"id": number, "size": {"width": number}} for number in range(MANY)]
    odd = HEAVY_RECORDS_PER_TURN + 7
    snapshot[odd] = {"id": odd, "size": {"width": 1}, "size_width": 1} if nested == "flatten" else {"id": None}
    snapshot[-1] = {"id": 20, "size": {"width": 0}}
    report = await engine.sync(snapshot)
    assert {(problem.kind, problem.position) for problem in report.problems} == {("rejected", odd), ("duplicate", 20)}
    widths = {number: number for number in range(MANY - 1) if number != odd} | {20: 0}
    stored = {"size_width": lambda width: width} if nested == "flatten" else {"size": lambda width: {"width": width}}
    ((name, made),) = stored.items()
    assert await engine.rows() == {number: {"id": number, name: made(width)} for number, width in widths.items()}
