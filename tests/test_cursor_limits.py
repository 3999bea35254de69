"""What must not lead a cursor astray: odd values, values ahead of their time, rejected records, removed rows."""

from __future__ import annotations

import pytest

from definitions import Cursor
from models import Report
from tests.engine import Engine
from tests.feed_server import Answer
from tests.test_incremental import Shop, at


@pytest.fixture
def shop(engine: Engine) -> Shop:
    """Sync a shop by increments."""
    engine.configure(mode="incremental", cursor=Cursor(field="at", parameter="since"))
    shop = Shop(engine)
    for number in range(1, 4):
        shop.put(number, number)
    return shop


class TestValues:
    @pytest.mark.parametrize(
        "odd", ["", "0000-00-00 00:00:00", "never", "9999-12-31T00:00:00Z", "9999-12-31 00:00:00", "9999-12-31"]
    )
    async def test_one_odd_value_leads_nowhere(self, shop: Shop, odd: str) -> None:
        """Neither another text among instants nor a moment that is yet to come passes by what is new."""
        shop.records[9] = {"id": 9, "at": odd}
        shop.engine.configure(types={"at": "text"})
        await shop.sync()
        assert await shop.cursor() == f'"{at(3)}"'
        shop.put(4, 4)
        await shop.sync()
        assert await shop.cursor() == f'"{at(4)}"'
        assert set(await shop.engine.rows()) == {1, 2, 3, 4, 9}

    async def test_moments_without_an_offset(self, shop: Shop) -> None:
        """They are followed by code point, and neither other texts nor a day beyond tomorrow leads away from them."""
        shop.records = {
            number: {"id": number, "at": moment}
            for number, moment in enumerate(["2024-03-01 08:30:00", "2024-03-01 08:30:00.5", "9999-12-31", "-", ""])
        }
        await shop.sync()
        assert await shop.cursor() == '"2024-03-01 08:30:00.5"'

    async def test_all_lie_ahead(self, shop: Shop) -> None:
        """A source whose moments are all yet to come is read from its start each time, and misses nothing."""
        shop.records = {1: {"id": 1, "at": "9999-12-31T00:00:00Z"}}
        await shop.sync()
        shop.records[2] = {"id": 2, "at": "9998-12-31T00:00:00Z"}
        assert (await shop.sync()).counts.created == 1
        assert shop.asked == [None, None]


class TestRejected:
    async def test_a_source_that_is_broken_for_a_while(self, shop: Shop) -> None:
        """Where nothing new can be stored the cursor waits, however often, and what is mended comes."""
        await shop.sync()
        shop.put(4, 4, v="\0")
        shop.put(5, 5, v="\0")
        for _ in range(3):
            assert (await shop.sync()).counts.rejected == 2
        assert await shop.cursor() == f'"{at(3)}"'
        shop.put(4, 4)
        shop.put(5, 5)
        assert (await shop.sync()).counts.created == 2
        await shop.check()

    async def test_the_value_of_a_rejected_record_is_not_taken(self, engine: Engine) -> None:
        """A number that cannot be stored is no place to go on from."""
        engine.configure(mode="incremental", cursor=Cursor(field="n", parameter="since"))
        shop = Shop(engine)
        engine.feed.answers = Answer(body=b'[{"id": 1, "n": 1}, {"id": 2, "n": 1e999}]')
        assert (await engine.sync()).counts.rejected == 1
        assert await shop.cursor() == "1"

    async def test_it_is_passed_by_when_something_follows(self, shop: Shop) -> None:
        """One bad record does not hold up those that come after it."""
        await shop.sync()
        shop.put(4, 4, v="\0")
        cursors = []
        for number in (5, 6):
            await shop.sync()
            cursors.append(await shop.cursor())
            shop.put(number, number)
        await shop.sync()
        assert [*cursors, await shop.cursor()] == [f'"{at(second)}"' for second in (3, 5, 6)]


@pytest.mark.parametrize("removed", ["DROP TABLE {table} CASCADE", "TRUNCATE {table}", "DELETE FROM {table}"])
@pytest.mark.parametrize("mode", ["incremental", "both"])
async def test_a_table_that_was_emptied_is_filled_again(shop: Shop, removed: str, mode: str) -> None:
    """Where all rows were removed by hand, an increment begins at the source's start, for it knows nothing any more."""
    shop.engine.configure(mode=mode)
    await shop.sync()
    await shop.engine.edit(removed)
    shop.put(4, 4)
    report: Report = await shop.sync()
    assert report.counts.created == 4
    await shop.check()


async def test_a_table_that_is_emptied_meanwhile(shop: Shop) -> None:
    """The same holds where that happens while an increment is fetched."""
    await shop.sync()
    shop.put(4, 4)
    async with shop.engine.syncing([]) as run:
        await shop.engine.edit("TRUNCATE {table}")
        shop.engine.feed.answers = shop.answer
    assert (await run).counts.created == 4
