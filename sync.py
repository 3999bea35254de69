"""One pull run, from top to bottom: gather the snapshot, decide what to do, apply it in one transaction."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from applying import FetchAll, apply
from deciding import Approach, Order, Outcome, demand_mode, total
from definitions import RunMode, Source
from errors import DatabaseError
from gathering import Gathered, OnProgress, Spools, gather, open_spools
from models import KEPT_PROBLEMS, Counts, Plan, Report, RunStatus, Verification
from running import milliseconds_since, run_to_end, written
from store import mirrors, runs
from store.database import Database

log = structlog.get_logger()

PURGED_AT_ONCE = 50_000
"""How many tombstones one transaction deletes, so that none lasts long."""


async def sync_data(
    database: Database,
    source: Source,
    *,
    mode: RunMode | None = None,
    plan: str | None = None,
    approve: int | None = None,
    trust_fingerprints: bool = True,
    spool_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Bring a source's mirror in step with it, in one run; return how the run ended.

    `mode` is the source's usual one unless it is given; BadRequest if the source has no such mode. An incremental run
    that does not `trust_fingerprints` begins anew instead of where the last one had come to. `plan` is the
    hash of the plan that may be applied and no other; `approve` the held run whose deletions may be carried out. The
    run's row tells of failures too, and every error raised here carries its number as `run`.
    """
    mode = demand_mode(source, mode)
    mirror = mirrors.mirror_name(source)
    opened = await runs.insert_run(database, source=source.name, mirror=mirror, scope=source.scope_id, approves=approve)

    async def work(started: float) -> Report:
        async with open_spools(source, spool_dir) as spools:
            run = _Run(database, source, opened, spools, started, on_progress)
            return await run.carry_out(Approach(mode=mode, trust=trust_fingerprints), plan=plan)

    report = await run_to_end(database, opened, work)
    if source.purge_after_days is not None and report.status in ("succeeded", "unchanged"):
        await _purge(database, source, report.run, timedelta(days=source.purge_after_days))
    return report


async def plan_data(
    database: Database,
    source: Source,
    *,
    mode: RunMode | None = None,
    spool_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Plan:
    """Tell what a run would do now; nothing is written."""
    approach = Approach(mode=demand_mode(source, mode))
    started = time.monotonic()
    outcome = await _look(database, source, approach, spool_dir, on_progress)
    return Plan(
        source=source.name,
        table=mirrors.mirror_name(source),
        counts=outcome.counts,
        differences=outcome.differences,
        hash=outcome.hash,
        problems=tuple(outcome.problems),
        duration_ms=milliseconds_since(started),
    )


async def verify_data(
    database: Database,
    source: Source,
    *,
    repair: bool = False,
    spool_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Compare every value of the source with the live rows, without relying on any fingerprint or cursor.

    With `repair`, run a sync afterwards that compares in the same way.
    """
    approach = Approach(mode="incremental" if source.mode == "incremental" else "snapshot", trust=False)
    started = time.monotonic()
    outcome = await _look(database, source, approach, spool_dir, on_progress)
    counts = outcome.counts
    repaired = None
    if repair:
        repaired = await sync_data(
            database,
            source,
            mode=approach.mode,
            trust_fingerprints=False,
            spool_dir=spool_dir,
            on_progress=on_progress,
        )
    return Verification(
        source=source.name,
        table=mirrors.mirror_name(source),
        records=counts.records,
        live_rows=outcome.live_rows,
        differing=counts.created + counts.updated + counts.restored + counts.deleted + counts.held,
        differences=outcome.differences,
        problems=tuple(outcome.problems),
        repaired=repaired,
        duration_ms=milliseconds_since(started),
    )


class _Run:
    """A run under way."""

    def __init__(
        self,
        database: Database,
        source: Source,
        opened: Report,
        spools: Spools,
        started: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._source = source
        self._opened = opened
        self._spools = spools
        self._started = started
        self._on_progress = on_progress

    async def carry_out(self, approach: Approach, *, plan: str | None) -> Report:
        """Gather and apply; fetch everything again where fingerprints turn out not to be reliable."""
        approves = self._opened.approves
        approved = await runs.select_approved(self._database, approves) if approves is not None else None
        order = Order(run=self._opened.run, plan=plan, approved=approved)
        may_be_conditional = plan is None and approves is None and approach.mode == "snapshot"
        for trust in (approach.trust, False):
            approach = replace(approach, trust=trust, conditional=may_be_conditional and trust)
            gathered = await gather(self._database, self._source, self._spools, approach, on_progress=self._on_progress)
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

        async def write() -> Report:
            outcome = await apply(self._database, self._source, gathered, order, close)
            if outcome.held_because:
                log.warning("deletions_held", held=outcome.counts.held, reason=outcome.held_because)
            return reports[-1]

        return await written(self._database, self._source, self._opened.run, write())

    def _report(self, gathered: Gathered, outcome: Outcome) -> Report:
        return replace(
            self._opened,
            status=_status(outcome.counts),
            counts=outcome.counts,
            duration_ms=milliseconds_since(self._started),
            body_bytes=gathered.body_bytes,
            first_load=outcome.first_load,
            not_modified=gathered.not_modified,
            cause=outcome.held_because,
            problems=tuple(outcome.problems[:KEPT_PROBLEMS]),
        )


async def _purge(database: Database, source: Source, run: int, age: timedelta) -> None:
    """Delete tombstones that are older than the source keeps them; the run has ended well whatever becomes of it."""
    purged, last = 0, PURGED_AT_ONCE
    try:
        while last >= PURGED_AT_ONCE:
            async with database.transaction(run=run) as session:
                last = await mirrors.delete_tombstones(session, source, age=age, limit=PURGED_AT_ONCE)
            purged += last
    except DatabaseError as error:
        log.warning("tombstones_not_purged", run=run, source=source.name, cause=error.cause, remedy=error.remedy)
    if purged:
        log.info("tombstones_purged", run=run, source=source.name, rows=purged)


async def _look(
    database: Database, source: Source, approach: Approach, spool_dir: Path | None, on_progress: OnProgress | None
) -> Outcome:
    """Gather and compare, and roll everything back."""
    async with open_spools(source, spool_dir) as spools:
        for trust in (approach.trust, False):
            gathered = await gather(database, source, spools, replace(approach, trust=trust), on_progress=on_progress)
            with suppress(FetchAll):
                return await apply(database, source, gathered, Order(run=None))
    raise AssertionError("without fingerprints, nothing asks to fetch again")


def _status(counts: Counts) -> RunStatus:
    if counts.held:
        return "held"
    return "succeeded" if counts.created or counts.updated or counts.restored or counts.deleted else "unchanged"
