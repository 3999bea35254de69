"""Jobs: who has which of them, and how many workers were lost while they worked on it.

What the job engine does with a job and what is written down about that happen in one transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
import structlog
from pgqueuer.domain.models import Job, TracebackRecord
from pgqueuer.domain.types import JOB_STATUS, JobId, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from definitions import RunMode
from errors import RunInterrupted
from models import RunRow
from store import owners
from store.database import Database
from store.job_engine import BUILDERS, NAMES, Patience, ServiceDriver, within
from store.runs import ENDED_WITHOUT_A_WORD
from store.schedules import JobStartRow, park

log = structlog.get_logger()

ENTRYPOINT = "sync"
MOST_LOSSES = 3
"""How many workers a job may cost before it is not run any more."""
LOG_KEPT = timedelta(minutes=15)
"""For how long pgqueuer's log of jobs is kept; what became of them stands in the runs."""
LONG = timedelta(days=1)

Wake = Callable[[], Awaitable[None]]

TAKE = sa.text("""
    WITH lost AS (
        SELECT job, owner FROM lockstep.job_starts WHERE job = ANY(:jobs) AND started AND worker <> :worker
    ), taken AS (
        INSERT INTO lockstep.job_starts AS s (job, worker, owner, started)
        SELECT job, :worker, :owner, true FROM unnest(:jobs) AS job
            ON CONFLICT (job) DO UPDATE
           SET worker = excluded.worker, owner = excluded.owner,
               losses = s.losses + (s.started AND s.worker <> excluded.worker)::int,
               started = CASE WHEN s.worker = excluded.worker AND s.started THEN true
                              ELSE s.losses = 0 AND NOT s.started END
        RETURNING job, losses
    )
    SELECT taken.job, taken.losses, lost.owner FROM taken LEFT JOIN lost USING (job) WHERE taken.losses > 0
""").bindparams(sa.bindparam("jobs", type_=ARRAY(sa.BigInteger)), sa.bindparam("worker", type_=sa.Uuid))
"""Take jobs for a worker. Those that have cost a worker are not started with that: they have to wait their turn."""

LOCK = f"SELECT FROM {NAMES.qualified.queue_table} WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE"
"""Whoever takes jobs has them before what is written down about them, so whoever ends them has to do the same."""

BEAT = f"""
    UPDATE {NAMES.qualified.queue_table} SET heartbeat = now() WHERE id IN (
        SELECT id FROM {NAMES.qualified.queue_table}
         WHERE id = ANY($1::bigint[]) AND queue_manager_id = $2 FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 (a constant)
"""Say that a worker is alive; a job that is locked is being ended, or taken by another one."""

MEND = sa.text(f"""
    UPDATE {NAMES.qualified.queue_table}
       SET execute_after = least(execute_after, now()), heartbeat = least(heartbeat, now())
     WHERE id IN (SELECT id FROM {NAMES.qualified.queue_table}
                   WHERE greatest(execute_after, heartbeat) > now() + :far FOR UPDATE SKIP LOCKED)
""").bindparams(sa.bindparam("far", timedelta(minutes=1), type_=sa.Interval))  # noqa: S608 (a constant)
"""No job waits for that long: somebody has put the clock back, and it would keep its source's ticks away until then."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job is for."""

    source: str
    mode: RunMode

    @property
    def key(self) -> str:
        """What tells whether there is such a job already, and what a job carries."""
        return f"{self.mode}:{self.source}"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A job whose worker ended, or fell silent, before the job did."""

    job: int
    order: Order
    losses: int
    owner: str | None
    """Who had started it last; None if it was lost before that."""


def order_of(job: Job) -> Order:
    """Return what a job is for."""
    mode, _, source = (job.payload or b"").decode().partition(":")
    return Order(source=source, mode="incremental" if mode == "incremental" else "snapshot")


class JobQueries(Queries):
    """The statements of pgqueuer for one worker, with our account of who has which job."""

    driver: ServiceDriver

    def __init__(self, database: Database, patiently: Patience, *, room: Callable[[], int]) -> None:
        """Make them; `room` tells how many jobs the worker may have."""
        super().__init__(ServiceDriver(database, patiently), *BUILDERS)
        self.losses: dict[int, int] = {}
        """How many workers a job has cost, for those of this worker's jobs that have cost any."""
        self._database = database
        self._patiently = patiently
        self._room = room
        self._next_eta: timedelta | None = None
        self._worker: UUID | None = None

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,  # noqa: ARG002 (there may be less room just now)
        heartbeat_timeout: timedelta,
    ) -> list[Job]:
        """Take jobs that wait, and those whose worker has fallen silent; park what has cost too many workers."""
        self._worker = queue_manager_id

        async def work() -> tuple[list[Job], list[Loss]]:
            async with self._database.transaction() as session:
                jobs = await within(session).dequeue(
                    batch_size, entrypoints, queue_manager_id, self._room(), heartbeat_timeout
                )
                return jobs, await _take(session, queue_manager_id, jobs) if jobs else []

        jobs, losses = await self._patiently(work)
        for loss in losses:
            _tell(loss)
        self.losses |= {loss.job: loss.losses for loss in losses if loss.losses < MOST_LOSSES}
        parked = {loss.job for loss in losses if loss.losses >= MOST_LOSSES}
        return [job for job in jobs if job.id not in parked]

    async def update_heartbeat(self, job_ids: list[JobId]) -> None:
        """Say that the worker is alive and still has these jobs; no other's are kept from being taken by that."""
        await self.driver.execute(BEAT, job_ids, self._worker)

    async def mark(self, job: Job, *, started: bool) -> None:
        """Say that the worker begins, or has ended, to work on a job that had to wait its turn."""

        async def work() -> None:
            async with self._database.transaction() as session:
                await _mark(session, job, started=started)

        await self._patiently(work)

    async def log_jobs(self, job_status: list[tuple[Job, JOB_STATUS, TracebackRecord | None]]) -> None:
        """Remove jobs that have ended, unless another worker has taken them meanwhile."""

        async def work() -> None:
            async with self._database.transaction() as session:
                await _lock(session, [job for job, _, _ in job_status])
                mine = await _release(session, [job for job, _, _ in job_status])
                ended = [entry for entry in job_status if entry[0].id in mine]
                if ended:
                    await within(session).log_jobs(ended)

        await self._patiently(work)
        for job, _, _ in job_status:
            self.losses.pop(job.id, None)
        await self.driver.wake()

    async def retry_job(self, job: Job, delay: timedelta, traceback_record: TracebackRecord | None) -> None:  # noqa: ARG002 (why stands in our log)
        """Hand a job back, unless another worker has taken it meanwhile."""

        async def work() -> None:
            async with self._database.transaction() as session:
                await _lock(session, [job])
                if await _mark(session, job, started=False):
                    await within(session).retry_job(job, delay, None)

        await self._patiently(work)

    async def eligible_queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:
        """Return whether a job waits; if not, when one will is known with that."""
        query = f"""SELECT min(execute_after) - clock_timestamp() AS eta FROM {NAMES.qualified.queue_table}
                    WHERE status = 'queued' AND entrypoint = $1"""  # noqa: S608 (a constant)
        eta = (await self.driver.fetch(query, *entrypoints))[0]["eta"]
        self._next_eta = eta if isinstance(eta, timedelta) else LONG
        return int(self._next_eta <= timedelta(0))

    async def next_deferred_eta(self, entrypoints: list[QueueEntrypoint]) -> timedelta | None:  # noqa: ARG002 (asked before)
        """Return how long it is until a job has waited long enough."""
        return self._next_eta


async def insert_jobs(session: AsyncSession, orders: Sequence[Order]) -> list[Order]:
    """Add jobs; return those for which there was one already, waiting or under way, so that none was added."""
    if not orders:
        return []
    count = len(orders)
    added = await within(session).enqueue(
        [ENTRYPOINT] * count,
        [order.key.encode() for order in orders],
        [0] * count,
        dedupe_key=[order.key for order in orders],
        on_conflict="skip",
    )
    return [order for order, job in zip(orders, added, strict=True) if job is None]


async def keep_jobs(database: Database) -> None:
    """Mend jobs that wait for a clock that was put back, and remove what pgqueuer wrote about jobs once it is old."""
    statement = f"DELETE FROM {NAMES.qualified.queue_table_log} WHERE created < now() - :age"  # noqa: S608 (a constant)
    async with database.transaction() as session:
        await session.execute(MEND)
        await session.execute(sa.text(statement).bindparams(sa.bindparam("age", LOG_KEPT, type_=sa.Interval)))


async def _take(session: AsyncSession, worker: UUID, jobs: Sequence[Job]) -> list[Loss]:
    """Write down who has these jobs; return those that have cost workers, the runs of which are over with that."""
    found = await session.execute(TAKE, {"jobs": [job.id for job in jobs], "worker": worker, "owner": owners.OWNER})
    orders = {int(job.id): order_of(job) for job in jobs}
    losses = [Loss(job=job, order=orders[job], losses=lost, owner=owner) for job, lost, owner in found]
    await _interrupt_runs(session, losses)
    parked = {loss.job for loss in losses if loss.losses >= MOST_LOSSES}
    for job in parked:
        await park(session, orders[job].source, orders[job].mode, reason=f"its jobs have cost {MOST_LOSSES} workers")
    if parked:
        await _release(session, [job for job in jobs if job.id in parked])
        await within(session).log_jobs([(job, "canceled", None) for job in jobs if job.id in parked])
    return losses


async def _interrupt_runs(session: AsyncSession, losses: Iterable[Loss]) -> None:
    """Close the runs that lost workers have left behind, so that nobody waits for their leases.

    A run that is being applied holds its row locked, so it is alive; one that is alive all the same finds out before it
    writes.
    """
    left = {(loss.owner, loss.order.source) for loss in losses if loss.owner is not None}
    if not left:
        return
    dead = await session.scalars(
        sa.select(RunRow.id)
        .where(RunRow.status == "running", sa.tuple_(RunRow.owner, RunRow.source).in_(left))
        .with_for_update(skip_locked=True)
    )
    await session.execute(
        sa.update(RunRow)
        .where(RunRow.id.in_(dead.all()))
        .values(
            status="interrupted",
            finished_at=sa.func.clock_timestamp(),
            error=RunInterrupted.code,
            cause=ENDED_WITHOUT_A_WORD,
            remedy=RunInterrupted.default_remedy,
        )
    )


async def _lock(session: AsyncSession, jobs: Sequence[Job]) -> None:
    await within(session).driver.execute(LOCK, [job.id for job in jobs])


async def _release(session: AsyncSession, jobs: Sequence[Job]) -> set[int]:
    """Forget who has these jobs; return those that their worker still has."""
    released = await session.execute(
        sa.delete(JobStartRow)
        .where(
            JobStartRow.job == sa.any_(sa.literal([job.id for job in jobs], ARRAY(sa.BigInteger))),
            JobStartRow.worker == jobs[0].queue_manager_id,
        )
        .returning(JobStartRow.job)
    )
    return set(released.scalars())


async def _mark(session: AsyncSession, job: Job, *, started: bool) -> bool:
    """Write down whether somebody works on a job; return False if it is another worker's by now."""
    mine = await session.execute(
        sa.update(JobStartRow)
        .where(JobStartRow.job == job.id, JobStartRow.worker == job.queue_manager_id)
        .values(started=started)
        .returning(JobStartRow.job)
    )
    return mine.scalar_one_or_none() is not None


def _tell(loss: Loss) -> None:
    told = {"source": loss.order.source, "mode": loss.order.mode, "job": loss.job, "losses": loss.losses}
    if loss.losses >= MOST_LOSSES:
        remedy = f"Find out what ends the worker, then python cli.py resume --source {loss.order.source}."
        log.error("source_parked", **told, remedy=remedy)
    elif loss.owner is not None:
        log.warning("worker_lost", **told, worker=loss.owner)
