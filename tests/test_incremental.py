"""Incremental runs: only what is new is fetched, absence deletes nothing, and no record is passed by."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cursors import greatest_of, read_mark
from definitions import Cursor
from errors import SourceError
from models import Counts, Report
from store import pauses
from sync import plan_data, verify_data
from tests.engine import Engine, dump
from tests.feed_server import Answer, Request, Truncate
from undoing import undo_run

Record = dict[str, Any]


VALUES = st.one_of(
    st.integers(-5, 200).map(str),
    st.decimals(0, 200, places=2).map(str),
    st.sampled_from(['"x"', '"é"']),
    st.builds(
        '"2024-03-{:02d}T{:02d}:30:00{}Z"'.format,
        st.integers(1, 31),
        st.integers(0, 23),
        st.sampled_from(["", ".5", ".25"]),
    ),
)


class Shop:
    """A source that can be asked for what has changed since a moment."""

    def __init__(self, engine: Engine, *, inclusive: bool = True) -> None:
        self.engine = engine
        self.records: dict[int, Record] = {}
        self.asked: list[str | None] = []
        self.etag: str | None = None
        self.broken = False
        self._inclusive = inclusive
        engine.feed.answers = self.answer

    def put(self, number: int, at: int | None, **values: Any) -> None:
        """Change a record at a moment; numbers stand for seconds."""
        stamp = {} if at is None else {"at": f"2024-03-01T08:30:{at:02d}Z"}
        self.records[number] = {"id": number, **stamp, **(values or {"v": number})}

    def answer(self, request: Request) -> Answer:
        """Answer a request of the service."""
        since = request.query.get("since", [None])[0]
        self.asked.append(since)
        chosen = [record for record in self.records.values() if since is None or self._is_due(record, since)]
        body = dump(chosen)
        return Answer(
            body=body, etag=self.etag if since is None else None, fault=Truncate(at=5) if self.broken else None
        )

    def _is_due(self, record: Record, since: str) -> bool:
        at = record.get("at", "")
        return bool(at > since or (self._inclusive and at == since))

    async def sync(self, **options: Any) -> Report:
        """Sync, and hold counts and journal against what became of the rows."""
        return await self.engine.sync(**options)

    async def cursor(self) -> str | None:
        """Return the stored cursor."""
        query = "SELECT cursor FROM lockstep.mirrors WHERE name = $1 AND scope = $2"
        found = await self.engine.sql.fetchval(query, self.engine.mirror, self.engine.source.scope_id)
        return None if found is None else str(found)

    async def check(self) -> None:
        """Assert that the mirror holds all records."""
        assert set(await self.engine.rows()) == set(self.records)
        self.engine.served = dump(list(self.records.values()))
        assert (await verify_data(self.engine.database, self.engine.source)).exact


def at(second: int) -> str:
    """Return how the shop writes a moment."""
    return f"2024-03-01T08:30:{second:02d}Z"


@pytest.fixture
def shop(engine: Engine) -> Shop:
    """Sync a shop by increments."""
    engine.configure(mode="incremental", cursor=Cursor(field="at", parameter="since"))
    return Shop(engine)


class TestIncrements:
    @pytest.mark.parametrize("inclusive", [True, False])
    async def test_each_run_begins_where_the_last_one_ended(self, engine: Engine, *, inclusive: bool) -> None:
        """The greatest value seen is sent with the next request, whether the source takes it in or leaves it out."""
        engine.configure(mode="incremental", cursor=Cursor(field="at", parameter="since"))
        shop = Shop(engine, inclusive=inclusive)
        for number in range(1, 4):
            shop.put(number, number)
        first = await shop.sync()
        assert (first.first_load, first.counts.created) == (True, 3)
        shop.put(2, 4, v="changed")
        shop.put(9, 5)
        second = await shop.sync()
        assert (second.counts.created, second.counts.updated, second.counts.unchanged) == (1, 1, int(inclusive))
        third = await shop.sync()
        assert (third.status, third.counts.records) == ("unchanged", int(inclusive))
        assert shop.asked == [None, at(3), at(5)]
        await shop.check()

    async def test_a_start_is_sent_until_there_is_a_cursor(self, shop: Shop) -> None:
        """The first run sends what the source begins with; nothing new is a normal answer, even the first time."""
        shop.engine.configure(cursor=Cursor(field="at", parameter="since", start=at(10)))
        shop.put(1, 5)
        assert (await shop.sync()).counts == Counts()
        shop.put(2, 15)
        await shop.sync()
        await shop.sync()
        assert shop.asked == [at(10), at(10), at(15)]

    async def test_absence_and_emptiness_say_nothing(self, shop: Shop) -> None:
        """Rows whose records are not in an increment stay, and no guard holds anything."""
        shop.engine.configure(max_delete_rows=0, max_delete_share=0)
        for number in range(1, 30):
            shop.put(number, number)
        await shop.sync()
        del shop.records[29]
        stored = await shop.engine.stored()
        report = await shop.sync()
        assert (report.status, report.counts) == ("unchanged", Counts())
        assert await shop.engine.stored() == stored

    async def test_a_failed_run_leaves_the_cursor(self, shop: Shop) -> None:
        """What a run could not apply is asked for again."""
        shop.engine.configure(attempts=1)
        shop.put(1, 1)
        await shop.sync()
        shop.put(2, 2)
        shop.broken = True
        with pytest.raises(SourceError):
            await shop.sync()
        shop.broken = False
        assert (await shop.sync()).counts.created == 1
        assert shop.asked == [None, at(1), at(1)]

    async def test_the_cursor_never_goes_back(self, shop: Shop) -> None:
        """Records that come late, or have no value, move nothing; neither does beginning anew."""
        shop.put(1, 9)
        await shop.sync()
        shop.records = {}
        shop.put(2, None)
        shop.put(3, 4)
        shop.engine.feed.answers = Answer(body=dump(list(shop.records.values())))
        assert (await shop.sync()).counts.created == 2
        await shop.sync(trust_fingerprints=False)
        assert await shop.cursor() == f'"{at(9)}"'

    async def test_another_feed_is_read_from_its_start(self, shop: Shop) -> None:
        """Where the settings make an answer mean something else, the cursor of before means nothing."""
        shop.put(1, 1, v="a\0")
        shop.put(2, 2)
        assert (await shop.sync()).counts.rejected == 1
        shop.engine.configure(nul_characters="strip")
        assert (await shop.sync()).counts.created == 1
        assert shop.asked == [None, None]
        await shop.check()

    async def test_a_plan_and_a_verification(self, shop: Shop) -> None:
        """A plan tells of the next increment; a verification compares all that the source still has, and repairs it."""
        for number in range(1, 5):
            shop.put(number, number)
        await shop.sync()
        shop.put(5, 5)
        plan = await plan_data(shop.engine.database, shop.engine.source)
        assert [each.key for each in plan.differences] == [{"id": 5}]
        assert (await shop.sync(plan=plan.hash)).counts.created == 1
        await shop.engine.edit("DELETE FROM {table} WHERE id = 1", "UPDATE {table} SET v = 0 WHERE id = 2")
        verified = await verify_data(shop.engine.database, shop.engine.source, repair=True)
        assert (verified.differing, verified.repaired and verified.repaired.status) == (2, "succeeded")
        await shop.check()
        assert await shop.engine.sql.fetchval("SELECT count(*) FROM lockstep.foreign_writes") == 0

    async def test_an_undone_increment_comes_again(self, shop: Shop) -> None:
        """After an undo the source is read from its start, so that the next sync does all of it again."""
        shop.put(1, 1)
        await shop.sync()
        shop.put(2, 2)
        run = await shop.sync()
        await undo_run(shop.engine.database, shop.engine.source, run.run)
        await pauses.resume(shop.engine.database, shop.engine.source)
        assert (await shop.sync()).counts.restored == 1
        assert shop.asked == [None, at(1), None]
        await shop.check()

    async def test_a_column_that_loses_spellings(self, shop: Shop) -> None:
        """Where instants become texts, all records are fetched once more, so that none keeps another spelling."""
        shop.put(1, 1)
        shop.put(2, 2)
        await shop.sync()
        assert (await shop.engine.types())["at"] == "timestamp with time zone"
        shop.records[3] = {"id": 3, "at": "later"}
        await shop.sync()
        assert (await shop.engine.rows())[1]["at"] == at(1)
        assert shop.asked == [None, at(2), None]

    async def test_each_scope_has_its_own(self, shop: Shop) -> None:
        """Sources that share a table are each read as far as they are."""
        for region, second in (("eu", 3), ("us", 7)):
            shop.engine.configure(scope={"region": region}, key=("region", "id"))
            shop.records = {}
            shop.put(1, second)
            await shop.sync()
            await shop.sync()
            assert await shop.cursor() == f'"{at(second)}"'
        assert shop.asked == [None, at(3), None, at(7)]

    async def test_a_small_increment_reads_no_more_than_its_rows(self, shop: Shop) -> None:
        """No run reads the whole mirror for the sake of a few records."""
        for number in range(30_000):
            shop.put(number, int(number == 1))
        await shop.sync()
        await shop.engine.edit("ANALYZE {table}")
        before = await rows_read(shop.engine)
        shop.put(1, 51)
        assert (await shop.engine.sync_unaccounted()).counts.updated == 1
        assert await rows_read(shop.engine) - before < 30_000


async def rows_read(engine: Engine) -> int:
    """Return how many rows were read from the mirror by going through all of it, after what is under way."""
    async with engine.database.transaction() as session:
        await session.execute(sa.select(sa.func.pg_stat_force_next_flush()))
    query = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'my_data'"
    return int(await engine.sql.fetchval(query))


class TestRejected:
    async def test_the_cursor_waits_before_a_rejected_record(self, shop: Shop) -> None:
        """What was rejected is fetched again, as long as there is something before it to go on to."""
        for number in (1, 2, 4, 5):
            shop.put(number, number)
        shop.put(3, 3, v="a\0")
        assert (await shop.sync()).counts.rejected == 1
        assert await shop.cursor() == f'"{at(2)}"'
        shop.put(3, 3, v="mended")
        assert (await shop.sync()).counts.created == 1
        assert await shop.cursor() == f'"{at(5)}"'
        await shop.check()

    async def test_it_goes_on_all_the_same(self, shop: Shop) -> None:
        """A record that stays bad is rejected twice at least, and does not keep the source from being read on."""
        shop.put(1, 1)
        shop.put(2, 2, v="\0")
        shop.put(3, 3)
        cursors = []
        for number in range(4, 7):
            await shop.sync()
            cursors.append(await shop.cursor())
            shop.put(number, number)
        assert cursors == [f'"{at(second)}"' for second in (1, 4, 5)]
        await shop.sync()
        assert set(await shop.engine.rows()) == {1, 3, 4, 5, 6}


class TestBoth:
    @pytest.fixture(autouse=True)
    def both(self, shop: Shop) -> None:
        """Take snapshots between the increments."""
        shop.engine.configure(mode="both")

    async def test_snapshots_delete_and_move_the_cursor(self, shop: Shop) -> None:
        """A snapshot deletes what vanished and is as good a place to go on from as an increment."""
        for number in range(1, 6):
            shop.put(number, number)
        await shop.sync(mode="snapshot")
        del shop.records[1]
        shop.put(6, 6)
        assert (await shop.sync()).counts == Counts(records=2, created=1, unchanged=1)
        report = await shop.sync(mode="snapshot")
        assert report.counts == Counts(records=5, deleted=1, unchanged=5)
        shop.put(7, 7)
        assert (await shop.sync()).counts.created == 1
        assert shop.asked == [None, at(5), None, at(6)]
        await shop.check()

    async def test_a_known_snapshot_tells_how_far_it_reaches(self, shop: Shop) -> None:
        """A source that was mirrored without a cursor has one after its next snapshot, though nothing is new."""
        cursor = shop.engine.source.cursor
        shop.engine.configure(mode="snapshot", cursor=None)
        for number in range(1, 6):
            shop.put(number, number)
        await shop.sync()
        shop.engine.configure(mode="both", cursor=cursor)
        assert (await shop.sync(mode="snapshot")).status == "unchanged"
        assert await shop.cursor() == f'"{at(5)}"'

    async def test_validators_belong_to_snapshots(self, shop: Shop) -> None:
        """An increment neither sends nor keeps them; one that changed something clears those that there are."""
        shop.etag = '"1"'
        shop.put(1, 1)
        await shop.sync(mode="snapshot")
        assert (await shop.sync()).status == "unchanged"
        assert (await shop.sync(mode="snapshot")).not_modified
        shop.put(2, 2)
        assert (await shop.sync()).counts.created == 1
        assert not (await shop.sync(mode="snapshot")).not_modified
        sent = ["if-none-match" in request.headers for request in shop.engine.feed.requests]
        assert sent == [False, False, True, False, False]

    async def test_an_edit_is_left_to_the_next_snapshot(self, shop: Shop) -> None:
        """An increment that does not hold an edited row leaves the note of the edit for a run that can mend it."""
        shop.etag = '"1"'
        shop.put(1, 1)
        shop.put(2, 2)
        await shop.sync(mode="snapshot")
        await shop.engine.edit("UPDATE {table} SET v = 0 WHERE id = 1", "DELETE FROM {table} WHERE id = 2")
        assert (await shop.sync()).counts.created == 1
        assert (await shop.sync(mode="snapshot")).counts.updated == 1
        await shop.check()

    async def test_an_altered_column_is_left_to_the_next_snapshot(self, shop: Shop) -> None:
        """After an increment a snapshot still compares by value what it could not rely on before."""
        shop.put(1, 1)
        shop.put(2, 2)
        await shop.sync(mode="snapshot")
        await shop.engine.edit(
            "DROP VIEW my_data_live; DROP TRIGGER lockstep_forget ON {table}",
            "ALTER TABLE {table} ALTER COLUMN v TYPE numeric USING v + 1",
        )
        assert (await shop.sync()).counts.updated == 1
        assert (await shop.sync(mode="snapshot")).counts.updated == 1
        await shop.check()


class TestMarks:
    @pytest.mark.parametrize(
        "ascending",
        [
            ["-2", "-1.5", "0", "9", "10", "10.5", "1e2", "12345678901234567890", "12345678901234567890.1"],
            ['"2024-03-01T08:30:00+02:00"', '"2024-03-01T08:29:59.9Z"', '"2024-03-01T08:30:00.000000001Z"'],
            ['"10"', '"9"', '"a"', '"b\\u00e9"', '"é"', '"\\ud83d\\ude00"'],
            ['""', '"N/A"', "1", '"2024-03-01"', '"2024-13-01T08:30:00Z"', '"2024-03-01T08:30:00Z"'],
        ],
    )
    def test_values_are_compared_by_what_they_mean(self, ascending: list[str]) -> None:
        """Numbers by value, instants by instant, other texts by code point; kinds one after the other."""
        marks = [read_mark(literal.encode()) for literal in ascending]
        orders = [mark.order for mark in marks if mark]
        assert orders == sorted(orders)
        assert len(set(orders)) == len(ascending)

    @pytest.mark.parametrize("literal", [b"null", b"true", b"[1]", b"{}", b'"\\ud800"', b'"\xff"'])
    def test_nothing_else_is_a_cursor(self, literal: bytes) -> None:
        """Values that cannot be sent, or have no order, count for nothing."""
        assert read_mark(literal) is None

    @given(st.lists(VALUES, min_size=1))
    def test_the_quick_way_finds_the_same(self, literals: list[str]) -> None:
        """Reading only the greatest of each shape finds what reading all of them finds."""
        found = greatest_of(literal.encode() for literal in literals)
        marks = [mark for mark in map(read_mark, literals) if mark]
        assert found is not None
        assert found.order == max(mark.order for mark in marks)
