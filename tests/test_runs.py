"""Runs: one per mirror, and a lease that dead ones lose."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from errors import DatabaseUnavailable, LockstepError, MirrorBusy, RunInterrupted
from models import Counts
from store import Database, owners, runs
from sync import sync_data
from tests.engine import Engine
from tests.feed_server import Silence
from tests.postgres import connect

SNAPSHOT = [{"id": number, "a": 1} for number in range(1, 11)]
CHANGED = [{"id": number, "a": 2} for number in range(1, 11)]


class TestOnePerMirror:
    async def test_a_second_run_is_told_of_the_first(self, engine: Engine) -> None:
        """While a run is under way, another one is refused and learns which it is and since when."""
        async with engine.syncing(SNAPSHOT) as first:
            with pytest.raises(MirrorBusy) as caught:
                await engine.sync_unaccounted()
        report = await first
        assert (caught.value.run, caught.value.since) == (report.run, report.started_at)
        assert len(await runs.select_runs(engine.database)) == 1

    async def test_mirrors_do_not_wait_for_each_other(self, engine: Engine, database: Database) -> None:
        """Another mirror can be synced meanwhile."""
        async with engine.syncing(SNAPSHOT) as first:
            other = replace(engine.source, table="other")
            assert (await sync_data(database, other)).counts.created == 10
            assert not first.done()

    async def test_of_many_at_once_one_runs(self, engine: Engine) -> None:
        """Twenty calls at the same time make one run, and nineteen answers that say so."""
        engine.serve(SNAPSHOT)
        outcomes = await asyncio.gather(*(engine.sync_unaccounted() for _ in range(20)), return_exceptions=True)
        busy = [outcome for outcome in outcomes if isinstance(outcome, MirrorBusy)]
        reports = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(busy) + len(reports) == 20
        assert sum(report.counts.created for report in reports) == 10
        await engine.check()

    async def test_the_next_run_can_start_at_once(self, engine: Engine) -> None:
        """A run that ended, well or not, is in nobody's way."""
        with pytest.raises(LockstepError):
            await engine.sync(b"nonsense")
        assert (await engine.sync(SNAPSHOT)).counts.created == 10


async def pretend_running(engine: Engine, owner: str, lease: str = "1 hour") -> int:
    """Leave a run behind that seems to be under way."""
    query = """INSERT INTO lockstep.runs (source, mirror, owner, lease_until)
               VALUES ('test', $1, $2, now() + $3::text::interval) RETURNING id"""
    return int(await engine.sql.fetchval(query, engine.mirror, owner, lease))


class TestStaleRuns:
    async def test_a_run_whose_lease_ran_out_is_given_up(self, engine: Engine) -> None:
        """A run that did not renew its lease does not block the mirror, wherever it ran."""
        stale = await pretend_running(engine, "elsewhere/1/1/1.00", "-1 second")
        await engine.sync(SNAPSHOT)
        await engine.check()
        report = await runs.select_run(engine.database, stale)
        assert report is not None
        assert (report.status, report.error) == ("interrupted", "interrupted")

    async def test_a_run_whose_process_is_dead_is_given_up(self, engine: Engine) -> None:
        """A process of this host that is gone does not block the mirror until its lease runs out."""
        ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        await ended.wait()
        place = owners.OWNER.rsplit("/", 2)[0]
        stale = await pretend_running(engine, f"{place}/{ended.pid}/1.00")
        assert await runs.reap_stale_runs(engine.database) == 1
        report = await runs.select_run(engine.database, stale)
        assert report is not None
        assert report.status == "interrupted"

    async def test_a_process_number_that_was_given_again_is_no_life(self, engine: Engine) -> None:
        """The time at which a process was started tells it from another one with its number."""
        await pretend_running(engine, owners.OWNER.rpartition("/")[0] + "/1.00")
        assert await runs.reap_stale_runs(engine.database) == 1

    async def test_the_living_are_left_alone(self, engine: Engine) -> None:
        """Runs of this process and of other hosts go on as long as their lease holds."""
        await pretend_running(engine, "elsewhere/1/1/1.00")
        engine.configure(table="other")
        async with engine.syncing(SNAPSHOT):
            assert await runs.reap_stale_runs(engine.database) == 0
            with pytest.raises(MirrorBusy):
                await engine.sync_unaccounted()

    async def test_a_run_that_its_process_does_not_know_is_given_up(self, engine: Engine) -> None:
        """A run that was left behind because the connection broke while it was opened or closed is in nobody's way."""
        await pretend_running(engine, owners.OWNER)
        await engine.sync(SNAPSHOT)
        await engine.check()

    async def test_a_run_that_was_given_up_cannot_write(self, engine: Engine) -> None:
        """A run that lost its lease while it fetched finds out before it writes anything."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        async with engine.syncing(CHANGED) as slow:
            await engine.sql.execute("UPDATE lockstep.runs SET lease_until = now() - '1 s'::interval")
            assert await runs.reap_stale_runs(engine.database) == 1
        with pytest.raises(RunInterrupted, match="given up for dead"):
            await slow
        assert await engine.written() == before
        await engine.sync(CHANGED)
        await engine.check()

    async def test_a_lease_is_renewed(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """As long as a run lives, its lease moves on."""
        monkeypatch.setattr(runs, "RENEWAL_SECONDS", 0.01)
        query = "SELECT lease_until FROM lockstep.runs ORDER BY id DESC LIMIT 1"
        async with engine.syncing(SNAPSHOT):
            first = await engine.sql.fetchval(query)
            async with asyncio.timeout(10):
                while await engine.sql.fetchval(query) == first:
                    pass

    async def test_a_run_that_is_being_applied_is_alive(self, engine: Engine) -> None:
        """A run whose row is locked is not given up, though its lease has run out."""
        stale = await pretend_running(engine, "elsewhere/1/1/1.00", "-1 second")
        async with engine.database.transaction() as session:
            await runs.lock_run(session, stale)
            assert await runs.reap_stale_runs(engine.database) == 0
        assert await runs.reap_stale_runs(engine.database) == 1


class TestInterruption:
    async def test_a_cancelled_run_writes_nothing(self, engine: Engine) -> None:
        """A run that is stopped while it fetches ends interrupted, and the next one converges."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        async with engine.syncing(CHANGED) as run:
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        assert await engine.written() == before
        newest = (await runs.select_runs(engine.database, limit=1))[0]
        assert (newest.status, newest.counts) == ("interrupted", Counts())
        assert newest.finished_at is not None
        await engine.sync(CHANGED)
        await engine.check()

    async def test_a_run_that_is_cancelled_while_it_waits_for_a_lock(self, engine: Engine, database_url: str) -> None:
        """A run that is stopped in the middle of its transaction rolls it back, and leaves its connection usable."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        engine.serve(CHANGED)
        blocker = await connect(database_url)
        async with blocker.transaction():
            await blocker.execute(f"SELECT FROM {engine.table} FOR UPDATE")
            run = asyncio.create_task(engine.sync_unaccounted())
            await until_blocked(engine)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        await blocker.close()
        assert await engine.written() == before
        await engine.sync(CHANGED)
        await engine.check()

    async def test_a_run_that_is_stopped_before_any_answer(self, engine: Engine) -> None:
        """A source that says nothing at all does not keep a run from being stopped."""
        engine.serve(SNAPSHOT, fault=Silence())
        run = asyncio.create_task(engine.sync_unaccounted())
        await engine.feed.stalled.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await runs.select_runs(engine.database))[0].status == "interrupted"


async def until_blocked(engine: Engine) -> None:
    """Wait until a session of this database waits for another one."""
    query = """SELECT pid FROM pg_stat_activity
               WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
    async with asyncio.timeout(20):
        while await engine.sql.fetchval(query) is None:
            pass


class TestLostConnections:
    async def test_a_backend_that_is_ended_in_the_transaction(self, engine: Engine) -> None:
        """The transaction is rolled back, the run fails, the pool recovers and the next run converges."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        engine.serve(CHANGED)
        async with engine.sql.transaction():
            await engine.sql.execute(f"SELECT FROM {engine.table} FOR UPDATE")
            run = asyncio.create_task(engine.sync_unaccounted())
            await until_blocked(engine)
            await engine.sql.fetch(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
            )
            with pytest.raises(DatabaseUnavailable):
                await run
        assert await engine.written() == before
        for _ in range(20):
            await engine.database.ping()
        await engine.sync(CHANGED)
        await engine.check()

    @pytest.mark.parametrize("cut", ["before", "behind"])
    async def test_a_connection_that_breaks_at_the_commit(self, engine: Engine, database_url: str, cut: str) -> None:
        """When the answer to a commit is lost, the run reads back whether it was carried out."""
        await engine.sync(SNAPSHOT)
        before = await engine.written()
        engine.serve(CHANGED)
        async with CommitBreaker(database_url, cut=cut) as breaker:
            database = Database.connect(breaker.url, pool_size=2)
            outcome = (await asyncio.gather(sync_data(database, engine.source), return_exceptions=True))[0]
            await database.close()
        assert breaker.broken
        if cut == "before":
            assert isinstance(outcome, DatabaseUnavailable)
            assert await engine.written() == before
            await engine.sync()
        else:
            assert not isinstance(outcome, BaseException)
            assert (outcome.status, outcome.counts) == ("succeeded", Counts(records=10, updated=10))
            assert len(await engine.journal(outcome.run)) == 10
        await engine.check()


class CommitBreaker:
    """Stands between the service and PostgreSQL, and cuts the connection when a run commits.

    The cut comes `before` the commit reaches the server, or `behind` it, so that its answer is lost.
    """

    def __init__(self, url: str, *, cut: str) -> None:
        self._target = make_url(url)
        self._cut = cut
        self._connections: set[asyncio.Task[None]] = set()
        self.broken = False

    async def __aenter__(self) -> CommitBreaker:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where the service connects to."""
        port = self._server.sockets[0].getsockname()[1]
        query = {name: value for name, value in self._target.query.items() if name != "host"}
        return self._target.set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = self._target.query.get("host")
        if isinstance(directory, str):
            return await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{self._target.port or 5432}")
        return await asyncio.open_connection(self._target.host, self._target.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        server_reader, server_writer = await self._open()
        back = asyncio.create_task(self._pass_on(server_reader, writer))
        try:
            await self._pass_on(reader, server_writer, until=b"COMMIT;", after=b"_lockstep_differences")
            if self.broken and self._cut == "behind":
                back.cancel()
                await asyncio.wait([back])
                server_writer.write(self._commit)
                await server_reader.read(1)
        finally:
            back.cancel()
            await asyncio.wait([back])
            for each in (writer, server_writer):
                each.transport.abort()
                with suppress(ConnectionError):
                    await each.wait_closed()
            self._connections.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, until: bytes = b"", after: bytes = b""
    ) -> None:
        """Pass everything on, until one text comes after another."""
        armed = False
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                armed |= bool(after) and after in data
                if armed and until in data and not self.broken:
                    self.broken, self._commit = True, data
                    return
                writer.write(data)
                await writer.drain()
        writer.close()


class TestReaders:
    async def test_nobody_sees_part_of_a_run(self, engine: Engine, database_url: str) -> None:
        """A reader sees all of a run's changes, or none of them."""
        engine.configure(max_delete_share=1)
        await engine.sync([{"id": number, "a": 1} for number in range(3000)])
        engine.serve([{"id": number, "a": 2} for number in range(2000, 4500)])
        reader = await connect(database_url)
        query = f"""SELECT count(*) FILTER (WHERE _sync_deleted_at IS NULL AND a = 1),
                           count(*) FILTER (WHERE _sync_deleted_at IS NULL AND a = 2) FROM {engine.table}"""
        run = asyncio.create_task(engine.sync_unaccounted())
        seen: set[Any] = set()
        while not run.done():
            seen.add(tuple(await reader.fetchrow(query) or ()))
        await run
        seen.add(tuple(await reader.fetchrow(query) or ()))
        await reader.close()
        assert seen == {(3000, 0), (0, 2500)}


class TestHistory:
    async def test_runs_are_listed_newest_first(self, engine: Engine, database: Database) -> None:
        """The list of runs tells of each how it ended, and goes back in pages."""
        await engine.sync(SNAPSHOT)
        with pytest.raises(LockstepError):
            await engine.sync(b"nonsense")
        await engine.sync(SNAPSHOT)
        listed = await runs.select_runs(database)
        assert [report.status for report in listed] == ["unchanged", "failed", "succeeded"]
        assert [report.error for report in listed] == [None, "source_invalid", None]
        assert await runs.select_runs(database, before=listed[0].run, limit=1) == listed[1:2]
        assert await runs.select_runs(database, source="other") == []
        assert await runs.select_run(database, listed[1].run) == listed[1]
        assert await runs.select_run(database, 99) is None

    async def test_a_report_reads_back_as_it_was_given(self, engine: Engine, database: Database) -> None:
        """What a run reports is what its row tells later."""
        report = await engine.sync([*SNAPSHOT, {"id": None}, SNAPSHOT[0]])
        kept = await runs.select_run(database, report.run)
        assert kept is not None
        assert replace(kept, finished_at=None) == report
        assert kept.finished_at is not None
