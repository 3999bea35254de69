"""One pull run, from top to bottom: gather the snapshot, decide what to do, apply it in one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from applying import FetchAll, apply
from deciding import Order, Outcome, total
from errors import DatabaseBlocked, DatabaseError, DatabaseUnavailable, LockstepError, RunInterrupted
from gathering import Gathered, OnProgress, gather
from models import KEPT_PROBLEMS, Counts, Plan, Report, RunStatus, Source, Verification
from spool import Spool, open_spool
from store import mirrors, runs
from store.database import Database
from store.mirrors import Mirror

log = structlog.get_logger()

READ_BACK_ATTEMPTS = 5
READ_BACK_WAIT_SECONDS = 1.0
CLOSING_SECONDS = 5.0
"""How long a run that was stopped may take to say so."""


async def sync_data(
    database: Database,
    source: Source,
    *,
    plan: str | None = None,
    approve: int | None = None,
    trust_fingerprints: bool = True,
    spool_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Bring a source's mirror in step with it, in one run; return how the run ended.

    `plan` is the hash of the plan that may be applied and no other; `approve` the held run whose deletions may be
    carried out. The run's row tells of failures too, and every error raised here carries its number as `run`.
    """
    mirror = mirrors.mirror_name(source)
    opened = await runs.insert_run(database, source=source.name, mirror=mirror, approves=approve)
    started = time.monotonic()
    with structlog.contextvars.bound_contextvars(run=opened.run, source=source.name):
        log.info("run_started", table=mirror, approves=approve)
        try:
            async with _lease(database, opened.run), open_spool(spool_dir) as spool:
                run = _Run(database, source, opened, spool, started, on_progress)
                report = await run.carry_out(plan=plan, trust_fingerprints=trust_fingerprints)
        except asyncio.CancelledError:
            stopped = RunInterrupted(f"Run {opened.run} was stopped.")
            await _close_failed(database, opened, "interrupted", stopped, started)
            raise
        except LockstepError as error:
            error.run = opened.run
            status: RunStatus = "interrupted" if isinstance(error, RunInterrupted) else "failed"
            await _close_failed(database, opened, status, error, started)
            raise
        except Exception as error:
            unexpected = LockstepError(f"An unexpected error ended the run: {type(error).__name__}.")
            unexpected.run = opened.run
            await _close_failed(database, opened, "failed", unexpected, started)
            raise unexpected from error
        log.info("run_finished", **_canonical_line(report))
        return report


async def plan_data(
    database: Database, source: Source, *, spool_dir: Path | None = None, on_progress: OnProgress | None = None
) -> Plan:
    """Tell what a run would do now; nothing is written."""
    started = time.monotonic()
    outcome = await _look(database, source, True, spool_dir, on_progress)
    return Plan(
        source=source.name,
        table=mirrors.mirror_name(source),
        counts=outcome.counts,
        differences=outcome.differences,
        hash=outcome.hash,
        problems=tuple(outcome.problems),
        duration_ms=_milliseconds_since(started),
    )


async def verify_data(
    database: Database,
    source: Source,
    *,
    repair: bool = False,
    spool_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Compare every value of the source with the live rows, without relying on any fingerprint.

    With `repair`, run a sync afterwards that compares in the same way.
    """
    started = time.monotonic()
    outcome = await _look(database, source, False, spool_dir, on_progress)
    counts = outcome.counts
    if repair:
        await sync_data(database, source, trust_fingerprints=False, spool_dir=spool_dir, on_progress=on_progress)
    return Verification(
        source=source.name,
        table=mirrors.mirror_name(source),
        records=counts.records,
        live_rows=outcome.live_rows,
        differing=counts.created + counts.updated + counts.restored + counts.deleted + counts.held,
        differences=outcome.differences,
        problems=tuple(outcome.problems),
        duration_ms=_milliseconds_since(started),
    )


class _Run:
    """A run under way."""

    def __init__(
        self,
        database: Database,
        source: Source,
        opened: Report,
        spool: Spool,
        started: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._source = source
        self._opened = opened
        self._spool = spool
        self._started = started
        self._on_progress = on_progress

    async def carry_out(self, *, plan: str | None, trust_fingerprints: bool) -> Report:
        """Gather and apply; fetch everything again where fingerprints turn out not to be reliable."""
        approves = self._opened.approves
        approved = await runs.select_approved(self._database, approves) if approves is not None else None
        order = Order(run=self._opened.run, plan=plan, approved=approved)
        conditional = plan is None and approves is None
        for trust in (trust_fingerprints, False):
            gathered = await gather(
                self._database,
                self._source,
                self._spool,
                conditional=conditional and trust,
                trust_fingerprints=trust,
                on_progress=self._on_progress,
            )
            if gathered.not_modified:
                return await self._leave(gathered)
            try:
                return await self._apply(gathered, order)
            except FetchAll:
                log.info("fetching_again", reason="the mirror has moved, so records are compared by value")
        raise AssertionError("without fingerprints, nothing asks to fetch again")

    async def _leave(self, gathered: Gathered) -> Report:
        """Close the run: the source has not changed, and nobody had written to the mirror when it was asked."""
        live = gathered.mirror.state.live_rows
        report = self._report(gathered, Outcome(counts=total(Counts(records=live)), live_rows=live))
        await runs.finish_run(self._database, report)
        return report

    async def _apply(self, gathered: Gathered, order: Order) -> Report:
        """Apply and close the run in one transaction; read the outcome back if the database's answer got lost."""
        reports: list[Report] = []

        async def close(session: AsyncSession, outcome: Outcome) -> None:
            reports.append(self._report(gathered, outcome))
            await runs.update_run(session, reports[-1])

        try:
            outcome = await apply(self._database, self._source, gathered, order, close)
        except DatabaseUnavailable:
            committed = await _read_back(self._database, self._opened.run)
            if committed is None:
                raise
            return committed
        except DatabaseBlocked as error:
            raise await _naming_blockers(self._database, gathered.mirror, error) from error
        if outcome.held_because:
            log.warning("deletions_held", held=outcome.counts.held, reason=outcome.held_because)
        return reports[-1]

    def _report(self, gathered: Gathered, outcome: Outcome) -> Report:
        return replace(
            self._opened,
            status=_status(outcome.counts),
            counts=outcome.counts,
            duration_ms=_milliseconds_since(self._started),
            body_bytes=gathered.body_bytes,
            first_load=outcome.first_load,
            not_modified=gathered.not_modified,
            cause=outcome.held_because,
            problems=tuple(outcome.problems[:KEPT_PROBLEMS]),
        )


async def _look(
    database: Database, source: Source, trust_fingerprints: bool, spool_dir: Path | None, on_progress: OnProgress | None
) -> Outcome:
    """Gather and compare, and roll everything back."""
    async with open_spool(spool_dir) as spool:
        for trust in (trust_fingerprints, False):
            gathered = await gather(
                database, source, spool, conditional=False, trust_fingerprints=trust, on_progress=on_progress
            )
            with suppress(FetchAll):
                return await apply(database, source, gathered, Order(run=None))
    raise AssertionError("without fingerprints, nothing asks to fetch again")


def _status(counts: Counts) -> RunStatus:
    if counts.held:
        return "held"
    return "succeeded" if counts.created or counts.updated or counts.restored or counts.deleted else "unchanged"


@asynccontextmanager
async def _lease(database: Database, run: int) -> AsyncIterator[None]:
    """Renew a run's lease until the block ends."""
    renewal = asyncio.create_task(_renew(database, run))
    try:
        yield
    finally:
        renewal.cancel()
        with suppress(asyncio.CancelledError):
            await renewal


async def _renew(database: Database, run: int) -> None:
    while True:
        await asyncio.sleep(runs.RENEWAL_SECONDS)
        try:
            await runs.renew_lease(database, run)
        except DatabaseError as error:
            # The run goes on: whether it may still write is decided when it tries to.
            log.warning("lease_not_renewed", cause=error.cause)


async def _read_back(database: Database, run: int) -> Report | None:
    """Return how a run ended if it did: the connection may have broken after the commit and before its answer."""
    for attempt in range(READ_BACK_ATTEMPTS):
        try:
            report = await runs.select_run(database, run)
        except DatabaseError:
            await asyncio.sleep(READ_BACK_WAIT_SECONDS * attempt)
        else:
            return report if report and report.status in ("succeeded", "unchanged", "held") else None
    return None


async def _naming_blockers(database: Database, mirror: Mirror, error: DatabaseBlocked) -> DatabaseBlocked:
    with suppress(DatabaseError):
        holders = await mirrors.select_lock_holders(database, mirror)
        if holders:
            pids = ", ".join(map(str, holders))
            return DatabaseBlocked(f"Backend {pids} holds a lock on {mirror.name} or its rows for too long.")
    return error


async def _close_failed(
    database: Database, opened: Report, status: RunStatus, error: LockstepError, started: float
) -> None:
    """Write down that a run came to nothing; where even that fails, its lease runs out."""
    report = replace(
        opened,
        status=status,
        error=error.code,
        cause=error.cause,
        remedy=error.remedy,
        duration_ms=_milliseconds_since(started),
    )
    log.error("run_failed", exc_info=error, **_canonical_line(report))
    try:
        async with asyncio.timeout(CLOSING_SECONDS):
            await runs.finish_run(database, report)
    except (DatabaseError, TimeoutError) as failure:
        log.warning("run_not_closed", cause=str(failure))


def _canonical_line(report: Report) -> dict[str, object]:
    """Return the fields of the one line that tells all about a run."""
    counts = {name: count for name, count in asdict(report.counts).items() if count}
    told = {
        name: getattr(report, name) for name in ("first_load", "not_modified", "approves", "error", "cause", "remedy")
    }
    return {
        "status": report.status,
        "table": report.table,
        **counts,
        "body_bytes": report.body_bytes,
        "duration_ms": report.duration_ms,
        **{name: value for name, value in told.items() if value},
    }


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
