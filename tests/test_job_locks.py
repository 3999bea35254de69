"""Jobs are locked in one order by whoever takes, ends or keeps them, and wait for no clock that was put back."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest
from pgqueuer.domain.models import Job
from pgqueuer.domain.types import QueueEntrypoint, QueueManagerId
from pgqueuer.ports.repository import EntrypointExecutionParameter

from store import Database
from store.job_engine import Patience, install
from store.jobs import ENTRYPOINT, JobQueries, Order, insert_jobs, keep_jobs
from tests.postgres import connect
from tests.working import Connection, until

HEARTBEAT = timedelta(seconds=10)
ENTRYPOINTS = {QueueEntrypoint(ENTRYPOINT): EntrypointExecutionParameter(concurrency_limit=0)}
WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE wait_event_type = 'Lock' AND application_name = 'lockstep' AND datname = current_database()
"""
HAD = "SELECT count(*) FROM lockstep.job_starts"


async def take(queries: JobQueries, worker: QueueManagerId) -> list[Job]:
    """Take what there is for a worker."""
    return await queries.dequeue(10, ENTRYPOINTS, worker, None, HEARTBEAT)


@pytest.mark.parametrize("ending", ["ended", "handed back"])
async def test_who_ends_a_job_does_not_lock_out_who_takes_it(
    database: Database, database_url: str, ending: str
) -> None:
    """A job is locked before what is written down about it, so the two wait for each other in one order."""
    await install(database)
    async with database.transaction() as session:
        await insert_jobs(session, [Order(source="shop", mode="snapshot")])
    queries = JobQueries(database, Patience(asyncio.Event()), room=lambda: 10)
    (job,) = await take(queries, QueueManagerId(uuid.uuid4()))
    taker: Connection = await connect(database_url)
    async with taker.transaction():
        await taker.execute("SELECT FROM lockstep.pgqueuer FOR UPDATE")
        if ending == "ended":
            end = asyncio.create_task(queries.log_jobs([(job, "successful", None)]))
        else:
            end = asyncio.create_task(queries.retry_job(job, timedelta(0), None))
        await until(taker, WAITING, 1)
        assert await taker.fetch("SELECT job FROM lockstep.job_starts FOR UPDATE NOWAIT")
    await end
    assert await taker.fetchval(HAD) == int(ending != "ended")
    await taker.close()


async def test_a_worker_speaks_for_its_own_jobs_alone(database: Database, database_url: str) -> None:
    """One that was given up does not keep a job from being taken again, and a job that is locked is not waited for."""
    await install(database)
    async with database.transaction() as session:
        await insert_jobs(session, [Order(source="shop", mode="snapshot")])
    silent, other = (JobQueries(database, Patience(asyncio.Event()), room=lambda: 10) for _ in range(2))
    (job,) = await take(silent, QueueManagerId(uuid.uuid4()))
    sql: Connection = await connect(database_url)
    await sql.execute("UPDATE lockstep.pgqueuer SET heartbeat = now() - interval '1 minute'")
    assert [each.id for each in await take(other, QueueManagerId(uuid.uuid4()))] == [job.id]
    await sql.execute("UPDATE lockstep.pgqueuer SET heartbeat = now() - interval '1 minute'")
    late = "SELECT heartbeat < now() - interval '30 s' FROM lockstep.pgqueuer"
    await silent.update_heartbeat([job.id])
    assert await sql.fetchval(late)
    async with sql.transaction():
        await sql.execute("SELECT FROM lockstep.pgqueuer FOR UPDATE")
        await other.update_heartbeat([job.id])
    assert await sql.fetchval(late)
    await other.update_heartbeat([job.id])
    assert not await sql.fetchval(late)
    await sql.close()


async def test_jobs_do_not_wait_for_a_clock_that_was_put_back(database: Database, database_url: str) -> None:
    """A job that waits, and one that was lost, are taken soon after the clock was put back by an hour."""
    await install(database)
    async with database.transaction() as session:
        await insert_jobs(session, [Order(source=name, mode="snapshot") for name in ("lost", "waits")])
    sql: Connection = await connect(database_url)
    queries = JobQueries(database, Patience(asyncio.Event()), room=lambda: 1)
    await take(queries, QueueManagerId(uuid.uuid4()))
    await sql.execute("UPDATE lockstep.pgqueuer SET execute_after = now() + interval '1 h'")
    await sql.execute("UPDATE lockstep.pgqueuer SET heartbeat = now() + interval '1 h' WHERE status = 'picked'")
    other = JobQueries(database, Patience(asyncio.Event()), room=lambda: 10)
    assert await take(other, QueueManagerId(uuid.uuid4())) == []
    await keep_jobs(database)
    await sql.execute("UPDATE lockstep.pgqueuer SET heartbeat = heartbeat - interval '11 s' WHERE status = 'picked'")
    assert len(await take(other, QueueManagerId(uuid.uuid4()))) == 2
    await sql.close()
