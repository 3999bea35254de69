"""The worker: it takes jobs, syncs their sources, and stops in an orderly way; its ticker makes the jobs.

Which of several workers takes a tick or a job is decided by the database, so there is no leader whose end would have to
be noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job

import telemetry
from definitions import RunMode, Source, Sources
from errors import DatabaseError, LockstepError, MirrorBusy, NotFound, RunInterrupted, SourceCooling, SourcePaused
from models import Report
from schedules import ticks_of
from store import job_engine, jobs
from store.database import Database
from store.job_engine import Patience
from store.jobs import JobQueries, Order
from ticking import Ticker

POLL_SECONDS = 1.0
"""Between two looks for jobs while there are none; this process's own ticks wake it at once."""
LOOK_AHEAD, QUICK_SECONDS, AVERAGED = 2, 0.5, 16
"""How many times the jobs that it works on a worker has, while as many jobs as tell that were quick on average."""
BUSY_SECONDS, LONGEST_BUSY_SECONDS = 1.0, 15.0
"""How long a job waits before it looks again whether the other run of its mirror has ended; each time longer."""
UNKNOWN_SECONDS, MOST_UNKNOWN = 2.0, 10
"""How long a job that this node's file has no source for is left to others, and how often."""
UNKNOWN_REMEDY = "Give all nodes the same SOURCES_FILE, and start them again."
HAND_BACK_SECONDS = 5.0
"""How long it may take to hand back the jobs whose runs were stopped."""
START_AGAIN_SECONDS = 5.0

log = telemetry.get_logger(__name__)


class Host(Protocol):
    """What a worker needs of the process that it works in."""

    @property
    def sources(self) -> Sources:
        """All sources."""

    @property
    def database(self) -> Database:
        """The database, once it is there."""

    async def wait_until_ready(self) -> None:
        """Wait for the database."""

    async def run(self, source: Source, *, mode: RunMode | None = None) -> Report:
        """Sync a source."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How a worker goes about it."""

    concurrency: int
    """How many jobs it works on at the same time."""
    heartbeat_seconds: float
    """For how long it may be silent before others take its jobs."""
    stop_seconds: float
    """How long runs under way may take to finish once it is to stop."""


class Worker:
    """Works until it is told to stop, whatever becomes of the database meanwhile."""

    def __init__(self, host: Host, options: WorkerOptions) -> None:
        self._host = host
        self._options = options
        self._sources = {source.name: source for source in host.sources}
        self._ticks = ticks_of(host.sources)
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._patiently = Patience(self._stopping)
        self._alone = asyncio.Lock()
        """Held by a job that has cost a worker before: of several such jobs, only the one that does it costs more."""
        self._turns = asyncio.Semaphore(options.concurrency)
        self._usual_seconds = QUICK_SECONDS
        """How long jobs take, of late."""
        self._jobs: set[asyncio.Task[None]] = set()
        self._manager: QueueManager | None = None

    async def work(self) -> None:
        """Work until `finish_jobs` is called."""
        logging.getLogger("pgqueuer").setLevel(logging.WARNING)  # what it does with each job stands in our own lines
        try:
            await self._host.wait_until_ready()
            while not self._stopping.is_set():
                await self._work_on()
        finally:
            self._ended.set()

    async def finish_jobs(self) -> None:
        """Take no further jobs, and wait as long as runs under way may take to finish."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.shutdown.set()
        if self._jobs:
            log.info("worker_stopping", jobs=len(self._jobs))
            await asyncio.wait(self._jobs, timeout=self._options.stop_seconds)

    async def hand_back(self) -> None:
        """Wait until the jobs whose runs were stopped are in the queue again."""
        if self._manager is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), HAND_BACK_SECONDS)

    async def _work_on(self) -> None:
        """Take jobs; a defect that ends that is logged, and does not end all schedules with it."""
        try:
            await self._take_jobs(self._host.database)
        except Exception:
            if self._stopping.is_set():
                return
            log.exception(telemetry.UNCAUGHT_ERROR)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), START_AGAIN_SECONDS)

    async def _take_jobs(self, database: Database) -> None:
        await self._patiently(partial(job_engine.install, database))
        queries = JobQueries(database, self._patiently, room=self._room)
        manager = QueueManager(queries, channel=job_engine.CHANNEL)
        manager.entrypoint(jobs.ENTRYPOINT, accepts_context=False)(partial(self._do_job, queries))
        self._manager = manager
        if self._stopping.is_set():
            return
        log.info("worker_ready", schedules=len(self._ticks), concurrency=self._options.concurrency)
        ticker = Ticker(database, self._ticks, patiently=self._patiently, wake=queries.driver.wake)
        ticking = asyncio.create_task(ticker.tick(self._stopping))
        ticking.add_done_callback(lambda _: manager.shutdown.set())  # without ticks, no jobs: begin anew
        try:
            await manager.run(
                dequeue_timeout=timedelta(seconds=min(POLL_SECONDS, self._options.heartbeat_seconds / 4)),
                batch_size=self._options.concurrency,
                max_concurrent_tasks=LOOK_AHEAD * self._options.concurrency,
                heartbeat_timeout=timedelta(seconds=self._options.heartbeat_seconds),
                log_aggregation_interval=timedelta(0),
            )
        finally:
            ticking.cancel()
            await asyncio.wait({ticking})
        if not ticking.cancelled():
            ticking.result()

    def _room(self) -> int:
        """Return how many jobs the worker may have: more than it works on while they are quick, to have the next ready.

        Slow ones would wait here although another worker might be free for them.
        """
        return self._options.concurrency * (LOOK_AHEAD if self._usual_seconds < QUICK_SECONDS else 1)

    async def _do_job(self, queries: JobQueries, job: Job) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a coroutine runs in a task")
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        if job.id in queries.losses:
            async with self._alone:
                await queries.mark(job, started=True)
                try:
                    await self._in_turn(job)
                finally:  # that it has ended is known before the next one begins, which may end the worker
                    await queries.mark(job, started=False)
        else:
            await self._in_turn(job)

    async def _in_turn(self, job: Job) -> None:
        async with self._turns:
            began = time.monotonic()
            await self._sync(job)
            self._usual_seconds += (time.monotonic() - began - self._usual_seconds) / AVERAGED

    async def _sync(self, job: Job) -> None:
        """Sync the source of a job; RetryRequested hands it back."""
        order = jobs.order_of(job)
        if self._stopping.is_set():
            raise RetryRequested
        try:
            await self._host.run(self._source_of(order, job), mode=order.mode)
        except RunInterrupted as error:
            log.info("job_handed_back", source=order.source, mode=order.mode, cause=error.cause)
            raise RetryRequested from None
        except MirrorBusy as error:
            raise _later(order, job, error) from None
        except (SourcePaused, SourceCooling) as error:
            log.debug("tick_skipped", source=order.source, mode=order.mode, reason=error.cause)
        except LockstepError as error:
            if error.run is not None:
                return  # it has told what happened, and stands in its row
            if isinstance(error, DatabaseError):
                raise _later(order, job, error) from None  # there was not even a run
            log.exception("job_failed", source=order.source, mode=order.mode, **_told(error))

    def _source_of(self, order: Order, job: Job) -> Source:
        """Return the source; one that this node's file does not have is left to nodes that do."""
        source = self._sources.get(order.source)
        if source is None and job.attempts < MOST_UNKNOWN:
            raise RetryRequested(timedelta(seconds=UNKNOWN_SECONDS))
        if source is None:
            raise NotFound(f"No worker has a source {order.source!r} in its file.", remedy=UNKNOWN_REMEDY)
        return source


def busy_wait(attempts: int) -> timedelta:
    """Return how long a job waits that found so many times already that it has to."""
    return timedelta(seconds=min(BUSY_SECONDS * 1.5 ** min(attempts, 20), LONGEST_BUSY_SECONDS))


def _later(order: Order, job: Job, error: LockstepError) -> RetryRequested:
    """Return what hands a job back for a while; why is told once."""
    if not job.attempts:
        log.info("job_waits", source=order.source, mode=order.mode, **_told(error))
    return RetryRequested(busy_wait(job.attempts))


def _told(error: LockstepError) -> dict[str, str]:
    return {"code": error.code, "cause": error.cause, "remedy": error.remedy}
