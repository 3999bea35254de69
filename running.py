"""The life of a run, whatever it does: it is opened, its lease is renewed, and it is closed however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace

import structlog

import telemetry
from definitions import Source
from errors import DatabaseBlocked, DatabaseError, DatabaseUnavailable, LockstepError, RunInterrupted
from models import Report, RunStatus
from store import locks, mirrors, owners, runs
from store.database import Database

log = structlog.get_logger()

READ_BACK_ATTEMPTS = 5
READ_BACK_WAIT_SECONDS = 1.0
CLOSING_SECONDS = 5.0
"""How long a run that was stopped may take to say so."""

Work = Callable[[float], Awaitable[Report]]
"""Does what a run is for, given when it began by the monotonic clock; returns its report once it is closed."""


async def run_to_end(database: Database, opened: Report, work: Work) -> Report:
    """Do the work of a run that was just opened; if it comes to nothing, say so in its row and in the log.

    Every LockstepError that leaves here carries the run's number.
    """
    started = time.monotonic()
    with structlog.contextvars.bound_contextvars(run=opened.run, source=opened.source):
        reasons = {"approves": opened.approves, "undoes": opened.undoes}
        log.info("run_started", table=opened.table, **{name: run for name, run in reasons.items() if run is not None})
        try:
            async with _lease(database, opened.run):
                report = await work(started)
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
            unexpected.__cause__ = error  # already now, so that the log tells where it came from
            await _close_failed(database, opened, "failed", unexpected, started)
            raise unexpected from error
        finally:
            owners.under_way.discard(opened.run)
        log.info("run_finished", **_canonical_line(report))
        return report


async def written(database: Database, source: Source, run: int, write: Awaitable[Report]) -> Report:
    """Await the transaction that writes; read the outcome back if the database's answer got lost, name who blocks."""
    try:
        return await write
    except DatabaseUnavailable:
        committed = await _read_back(database, run)
        if committed is None:
            raise
        return committed
    except DatabaseBlocked as error:
        raise await _naming_blockers(database, source, error) from error


def milliseconds_since(started: float) -> int:
    """Return how long ago a moment of the monotonic clock was."""
    return round((time.monotonic() - started) * 1000)


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


async def _naming_blockers(database: Database, source: Source, error: DatabaseBlocked) -> DatabaseBlocked:
    with suppress(DatabaseError):
        holders = await locks.select_lock_holders(database, source)
        if holders:
            pids = ", ".join(map(str, holders))
            return DatabaseBlocked(
                f"Backend {pids} holds a lock on {mirrors.mirror_name(source)} or its rows for too long."
            )
    return error


async def _close_failed(
    database: Database, opened: Report, status: RunStatus, error: LockstepError, started: float
) -> None:
    """Write down that a run came to nothing; where even that fails, its lease runs out."""
    report = replace(
        opened,
        status=status,
        error=error.code,
        cause=telemetry.redact(error.cause),  # a source may repeat in its answer what it was sent
        remedy=error.remedy,
        duration_ms=milliseconds_since(started),
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
    names = ("first_load", "not_modified", "approves", "undoes", "error", "cause", "remedy")
    told = {name: getattr(report, name) for name in names}
    return {
        "status": report.status,
        "table": report.table,
        **counts,
        "body_bytes": report.body_bytes,
        "duration_ms": report.duration_ms,
        **{name: value for name, value in told.items() if value},
    }
