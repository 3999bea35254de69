"""Tables as runs left them, held against a record of what every run did leave."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

from errors import BadRequest
from tests.engine import Engine
from tests.reading import Record, feed_of, rows


def live(states: dict[Any, Any]) -> dict[Any, Record]:
    """Return the rows of a state that are live, without nulls."""
    return {
        key: {n: v for n, v in row.values.items() if v is not None} for key, row in states.items() if not row.deleted
    }


@pytest.mark.parametrize("on_delete", ["soft", "hard"])
async def test_the_past_is_what_it_was(engine: Engine, on_delete: str) -> None:
    """Whatever runs do, the table as any of them left it can be read again."""
    chosen = random.Random(11)
    engine.configure(on_delete=on_delete, max_delete_rows=1000, key=("k", 'we"ird. :x'))
    feed: dict[tuple[int, str], Record] = {}
    states: dict[int, dict[Any, Record]] = {}
    for turn in range(12):
        for _ in range(chosen.randint(0, 5) if turn else 12):
            key = (chosen.randint(0, 6), chosen.choice("ab,"))
            if key in feed and chosen.random() < 0.4:
                del feed[key]
            else:
                value = chosen.choice([None, 1, 2, 2**60, Decimal("1.5")] if turn > 6 else [None, 1, 2])
                record = {"k": key[0], 'we"ird. :x': key[1], "v": value, "m": chosen.choice(["x", None])}
                if turn > 3:
                    record |= {"late": chosen.choice([None, {"a": [1, None]}, [2]]), "t": "2024-02-29T23:00:00Z"}
                feed[key] = record
        report = await engine.sync(feed_of([*feed.values()]))
        states[report.run] = live((await engine.state()).rows)
    for run, wanted in states.items():
        found = {
            (row["k"], row['we"ird. :x']): {name: value for name, value in row.items() if value is not None}
            for row in await rows(engine, f"as_of={run}")
        }
        assert found == wanted, run
        some = await rows(engine, f"as_of={run}&v=gt.1&order=v.desc,m&select=v")
        assert [row["v"] for row in some] == sorted(
            (r["v"] for r in wanted.values() if r.get("v", 0) > 1), reverse=True
        )


async def test_the_past_is_not_invented(engine: Engine) -> None:
    """Where the journal does not tell what a run left, the answer says so and names what can be asked for."""
    await engine.sync([{"id": 1, "v": 1}])
    first = (await engine.sync([{"id": 1, "v": 2}])).run
    last = (await engine.sync([{"id": 1, "v": 3}])).run
    assert await rows(engine, f"as_of={first}") == [{"id": 1, "v": 2}]
    await engine.edit(f"DELETE FROM lockstep.changes WHERE run = {last}")
    with pytest.raises(BadRequest, match="journal does not have all changes"):
        await rows(engine, f"as_of={first}")
    assert await rows(engine, f"as_of={last}") == [{"id": 1, "v": 3}]
    await engine.edit("TRUNCATE {table}")
    again = (await engine.sync()).run
    with pytest.raises(BadRequest, match=f"Run {again} was a first load"):
        await rows(engine, f"as_of={last}")
    engine.configure(table="other")
    await engine.sync([{"id": 1}])
    with pytest.raises(BadRequest, match=r"was one of public.my_data, not of public.other"):
        await rows(engine, f"as_of={last}")
