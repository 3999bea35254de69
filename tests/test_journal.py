"""The journal: numbered in the order of commits, read by the page, and watched."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.engine import make_url

from models import Change, RunRow
from store import Database
from store.journal import JOURNAL_LOCK, insert_entries, page_query, select_page
from store.watching import JournalWatch
from sync import sync_data
from tests.engine import Engine
from tests.events import journal
from tests.faults.pgbouncer import SERVER_CONNECTIONS, pooler
from tests.postgres import connect
from tests.working import until
from web.answers import change_content, encode

BIG_JOURNAL = (
    """INSERT INTO lockstep.runs (source, mirror, owner, status, lease_until, first_seq, last_seq)
       SELECT name, 'public.' || name, '', 'succeeded', now(), first_seq, last_seq
         FROM (SELECT CASE WHEN n % 1000 = 500 THEN 'rare' ELSE 'common' END AS name,
                      n * 100 + 1 AS first_seq, n * 100 + 100 AS last_seq FROM generate_series(0, 4999) n
               UNION ALL SELECT 'common', 500001, 999000
               UNION ALL SELECT 'rare', 999001, 1000000) r ORDER BY last_seq""",
    """INSERT INTO lockstep.changes (run, mirror, op, key, changes)
       SELECT least((n - 1) / 100, 5000) + 1, 'public.x', 'updated', '{"id": 1}', '{"a": [1, 2]}'
         FROM generate_series(1, 1000000) n""",
    "VACUUM ANALYZE lockstep.changes",
    "ANALYZE lockstep.runs",
)
DIALECT = asyncpg_dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
WAITING = """SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'advisory'
              AND datname = current_database() AND clock_timestamp() - query_start > interval '100 ms'"""
MOST_BUFFERS = 100
"""Of 8 KB; the journal has 16,000."""


def entries(count: int) -> sa.Subquery:
    """Make entries for the journal."""
    empty = sa.literal({}, JSONB)
    columns = sa.literal("created").label("op"), empty.label("key"), empty.label("changes")
    return sa.select(*columns).select_from(sa.func.generate_series(1, count).alias()).subquery()


class TestOrder:
    async def test_a_run_waits_for_its_turn(self, engine: Engine, database_url: str) -> None:
        """A run waits for its turn longer than for other locks, and keeps it no longer than to commit."""
        await engine.sync([{"id": 1, "a": 1}])
        engine.serve([{"id": 1, "a": 2}])
        impatient = Database.connect(database_url, pool_size=2, lock_timeout_seconds=0.05)
        other = await connect(database_url)
        await other.execute("SELECT pg_advisory_lock($1)", JOURNAL_LOCK)
        run = asyncio.create_task(sync_data(impatient, engine.source))
        await until(engine.sql, WAITING, expected=True)
        later: list[str] = []
        sa.event.listen(impatient.engine.sync_engine, "before_cursor_execute", lambda *told: later.append(told[2]))
        await other.close()
        assert (await run).status == "succeeded"
        assert later == []
        await impatient.close()
        await engine.check()

    async def test_no_entry_appears_behind_a_reader(self, database: Database, database_url: str) -> None:
        """Whatever writers do at once, roll back included, those who read on find what is new after what they read."""
        many = Database.connect(database_url, pool_size=9)
        chance = random.Random(7)

        async def write(writer: int) -> None:
            for _ in range(8):
                with suppress(ZeroDivisionError):
                    async with many.transaction() as session:
                        mirror = f"public.m{writer % 3}"
                        row = RunRow(source="s", mirror=mirror, owner="", status="succeeded", lease_until=sa.func.now())
                        session.add(row)
                        await session.flush()
                        await insert_entries(session, row.id, mirror, entries(chance.randint(1, 3)))
                        # Time for others to commit before, if they could.
                        await session.execute(sa.select(sa.func.pg_sleep(chance.random() / 50)))
                        if chance.random() < 0.3:
                            raise ZeroDivisionError

        async def read(table: str | None) -> list[int]:
            seen: list[int] = []
            after, end = 0, None
            while end is None or after < end:
                end = (await journal(database))[-1][0] if writing.done() and end is None else end
                page = await select_page(many, after=after, limit=chance.randint(1, 9), table=table)
                seen += [entry.seq for entry in page.entries]
                after = page.upto
            return seen

        writing = asyncio.gather(*(write(number) for number in range(6)))
        tables = (None, "public.m0", "public.m2")
        seen = await asyncio.gather(*(read(table) for table in tables))
        await writing
        written = await journal(database)
        await many.close()
        for table, found in zip(tables, seen, strict=True):
            assert found == [seq for seq, mirror in written if table in (None, mirror)]

    async def test_the_sequence_keeps_no_numbers_back(self, engine: Engine) -> None:
        """Each number is taken when it is used: sessions that kept some for later would use them out of order."""
        query = "SELECT seqcache, seqincrement, seqcycle FROM pg_sequence WHERE seqrelid = $1::text::regclass"
        assert tuple(await engine.sql.fetchrow(query, "lockstep.changes_seq_seq") or ()) == (1, 1, False)


class TestPages:
    async def test_numbers_are_as_exact_as_in_the_journal(self, engine: Engine) -> None:
        """A number that no double can hold is shown digit by digit."""
        for price in (b"1.01234567890123456789000", b"2.01234567890123456789000"):
            await engine.sync(b'[{"id": 1, "price": %s}]' % price)
        (change,) = (await select_page(engine.database, after=1, limit=9)).entries
        assert isinstance(change, Change)
        assert b'"price":[1.01234567890123456789000,2.01234567890123456789000]' in encode(change_content(change))

    async def test_indexes_lead_to_a_page(self, engine: Engine) -> None:
        """A page of a large journal is found by reading little more than the page, whosesoever entries are wanted.

        A million entries: of a rare table a few runs, of a common one many, and one large run in between.
        """
        await engine.edit(*BIG_JOURNAL)
        for wanted in ({}, {"source": "rare"}, {"table": "public.rare"}, {"source": "common"}):
            for after in (0, 500_000, 999_000):
                query = page_query(after=after, limit=200, **wanted).compile(
                    dialect=DIALECT, compile_kwargs={"literal_binds": True}
                )
                (plan,) = json.loads(await engine.sql.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}"))
                buffers = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
                assert buffers < MOST_BUFFERS, json.dumps(plan, indent=1)


class TestWatch:
    async def test_behind_a_pooler_the_journal_is_polled(
        self, server_url: str, database_url: str, engine: Engine
    ) -> None:
        """Where no message comes through, no connection is left listening, and what is new is found all the same."""
        async with pooler(server_url) as pooled:
            url = pooled.set(database=make_url(database_url).database).render_as_string(hide_password=False)
            database = Database.connect(url, pool_size=2)
            watch = JournalWatch(database, poll_seconds=0.05)
            watching = asyncio.create_task(watch.keep())
            await engine.sync([{"id": 1}])
            async with asyncio.timeout(10):
                while watch.newest == 0:
                    await watch.wait_beyond(0, 10)
            for _ in range(SERVER_CONNECTIONS):
                async with database.transaction() as session:
                    assert await session.scalar(sa.text("SELECT count(*) FROM pg_listening_channels()")) == 0
            watching.cancel()
            await asyncio.wait([watching])
            await database.close()

    async def test_a_commit_wakes_those_who_wait(self, engine: Engine) -> None:
        """Nobody waits for the next poll where the database can send a message."""
        watch = JournalWatch(engine.database, poll_seconds=60)
        watching = asyncio.create_task(watch.keep())
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^LISTEN' AND datname = current_database()"
        async with asyncio.timeout(20):
            while not await engine.sql.fetchval(listening):
                pass
            await engine.sync([{"id": 1}])
            await watch.wait_beyond(0, 60)
        assert watch.newest == 1
        watching.cancel()
        await asyncio.wait([watching])
