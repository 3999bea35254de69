"""Runs: who may run, who is running, and how each run ended.

One run per mirror, or per scope where sources share one, is what a unique index over the running ones says, so it
holds over all processes and through any connection pooler. A run's owner renews its lease; a run whose lease ran out,
or whose process is known to be dead, is marked interrupted by whoever comes next. The transaction that applies a run
locks its row first, so a run that was given up for dead can never write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from errors import ApprovalRefused, MirrorBusy, RunInterrupted, SourcePaused
from models import Counts, MirrorRow, Problem, Report, RunRow, RunStatus
from store import owners
from store.cooldowns import demand_cooled, is_cooling
from store.database import Database

LEASE = timedelta(seconds=30)
RENEWAL_SECONDS = 8

ENDED_WITHOUT_A_WORD = "The process that ran it ended before the run did."


OUTCOME = "status", "duration_ms", "body_bytes", "first_load", "not_modified", "error", "cause", "remedy"
"""What a run's row and its report say in the same words, besides the counts and the problems."""

RUNS = RunRow.__table__
MINE = RUNS.c.id == sa.bindparam("run", type_=sa.BigInteger), RUNS.c.status == "running"
LOCK = sa.select(RUNS.c.id).where(*MINE).with_for_update()
CLOSE = (
    sa.update(RUNS)  # type: ignore[arg-type] # declared as FromClause
    .where(*MINE)
    .values(
        finished_at=sa.func.clock_timestamp(),
        **{name: sa.bindparam(name) for name in ("problems", *OUTCOME, *Counts.__dataclass_fields__)},
    )
)


def _lease_end() -> sa.ColumnElement[datetime]:
    return sa.func.clock_timestamp() + sa.literal(LEASE)


async def insert_run(
    database: Database,
    *,
    source: str,
    mirror: str,
    scope: str = "",
    approves: int | None = None,
    undoes: int | None = None,
) -> Report:
    """Open a run, committed at once; raise MirrorBusy if the mirror has one under way.

    Raises SourcePaused or SourceCooling while it must not be, which an `undoes` run may all the same, and with
    `approves` ApprovalRefused unless that run holds deletions that nobody has approved yet.
    """
    values = {"source": source, "mirror": mirror, "scope": scope, "approves": approves, "undoes": undoes}
    opened: Report | None = None
    try:
        async with database.transaction() as session:
            if approves is not None:
                await select_hold(session, mirror, approves, scope=scope)
            opened = await _open(session, values)
            if opened is None and await _interrupt_dead_runs(session, mirror):
                opened = await _open(session, values)
            if opened is not None:
                return opened
            if undoes is None:
                await _demand_unpaused(session, source, mirror, scope)
                await demand_cooled(session, source)
            running = await session.scalar(
                sa.select(RunRow).where(RunRow.mirror == mirror, RunRow.scope == scope, RunRow.status == "running")
            )
    except BaseException:
        if opened is not None:
            owners.under_way.discard(opened.run)  # it may have been committed all the same
        raise
    if running is None:
        # It ended between the statements, so the way is free now.
        return await insert_run(database, source=source, mirror=mirror, scope=scope, approves=approves, undoes=undoes)
    what = f"{mirror} ({scope})" if scope else mirror
    raise MirrorBusy(
        f"Run {running.id} has been syncing {what} since {running.started_at:%Y-%m-%d %H:%M:%S} UTC.",
        run=running.id,
        since=running.started_at,
    )


def _opening(*conditions: sa.ColumnElement[bool]) -> sa.Executable:
    names = ("source", "mirror", "scope", "approves", "undoes", "owner")
    values = [sa.bindparam(name, type_=RUNS.c[name].type) for name in names]
    return (
        insert(RUNS)  # type: ignore[arg-type] # declared as FromClause
        .from_select([*names, "lease_until"], sa.select(*values, _lease_end()).where(*conditions))
        .on_conflict_do_nothing(index_elements=["mirror", "scope"], index_where=RUNS.c.status == "running")
        .returning(RUNS)
    )


_is_paused = sa.exists().where(
    MirrorRow.name == sa.bindparam("mirror"),
    MirrorRow.scope == sa.bindparam("scope"),
    MirrorRow.paused_since.is_not(None),
)
OPEN = _opening(~_is_paused, ~is_cooling(sa.bindparam("source", type_=sa.Text)))
OPEN_UNDO = _opening()


async def _open(session: AsyncSession, values: dict[str, Any]) -> Report | None:
    """Insert a running run, or return None if the mirror has one, or if it must not run and this is not an undo."""
    opened = await session.execute(OPEN if values["undoes"] is None else OPEN_UNDO, {**values, "owner": owners.OWNER})
    row = opened.one_or_none()
    if row is None:
        return None
    owners.under_way.add(row.id)  # before anybody can see it
    return report_of(row)


async def _demand_unpaused(session: AsyncSession, source: str, mirror: str, scope: str) -> None:
    row = await session.get(MirrorRow, (mirror, scope))
    if row is not None and row.paused_since is not None:
        raise SourcePaused(source=source, since=row.paused_since, reason=row.pause_reason or "")


async def select_hold(session: AsyncSession, mirror: str, run: int, *, scope: str = "") -> int:
    """Return how many deletions a run holds that may be approved; raise ApprovalRefused if there are none."""
    of_source = RunRow.mirror == mirror, RunRow.scope == scope
    held = await session.scalar(sa.select(RunRow).where(RunRow.id == run, *of_source))
    if held is None or held.status != "held":
        raise ApprovalRefused(f"Run {run} of {mirror} holds no deletions.")
    newer = await session.scalar(
        sa.select(RunRow.id)
        .where(*of_source, RunRow.id > run, RunRow.status.in_(("held", "succeeded")))
        .order_by(RunRow.id.desc())
        .limit(1)
    )
    if newer is not None:
        raise ApprovalRefused(f"Run {newer} of {mirror} has come since run {run}.")
    return held.held


async def select_approved(database: Database, run: int) -> int:
    """Return how many deletions a held run had shown, which is how many an approval of it covers."""
    async with database.transaction() as session:
        return await session.scalar(sa.select(RunRow.held).where(RunRow.id == run)) or 0


async def renew_lease(database: Database, run: int) -> None:
    """Say that a run is alive; one that is being applied is locked, which says the same."""
    async with database.transaction() as session:
        mine = sa.select(RunRow.id).where(RunRow.id == run).with_for_update(skip_locked=True).scalar_subquery()
        await session.execute(sa.update(RunRow).where(RunRow.id == mine).values(lease_until=_lease_end()))


async def lock_run(session: AsyncSession, run: int) -> None:
    """Lock a run's row until the transaction ends; raise RunInterrupted if it was given up for dead."""
    alive = await session.scalar(LOCK, {"run": run})
    if alive is None:
        raise RunInterrupted(f"Run {run} was given up for dead, because its lease had not been renewed in time.")


async def update_run(session: AsyncSession, report: Report) -> None:
    """Close a run as its report says; a run that is closed already stays as it is."""
    counts = asdict(report.counts)
    outcome = {name: getattr(report, name) for name in OUTCOME}
    problems = msgspec.to_builtins(report.problems, str_keys=True)
    await session.execute(CLOSE, {"run": report.run, "problems": problems, **counts, **outcome})


async def finish_run(database: Database, report: Report) -> None:
    """Close a run in a transaction of its own."""
    async with database.transaction() as session:
        await update_run(session, report)


async def select_run(database: Database, run: int) -> Report | None:
    """Return one run, or None."""
    async with database.transaction() as session:
        row = await session.get(RunRow, run)
        return report_of(row) if row else None


async def select_runs(
    database: Database, *, before: int | None = None, limit: int = 50, source: str | None = None
) -> list[Report]:
    """Return the newest runs first, older than `before` if that is given."""
    query = sa.select(RunRow).order_by(RunRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(RunRow.id < before)
    if source is not None:
        query = query.where(RunRow.source == source)
    async with database.transaction() as session:
        return [report_of(row) for row in await session.scalars(query)]


async def reap_stale_runs(database: Database) -> int:
    """Mark runs interrupted whose process is gone; return how many there were."""
    async with database.transaction() as session:
        return await _interrupt_dead_runs(session, None)


async def _interrupt_dead_runs(session: AsyncSession, mirror: str | None) -> int:
    # Rows that are locked belong to runs that are being applied, so they are alive whatever their lease says.
    query = sa.select(RunRow.id, RunRow.owner, RunRow.lease_until < sa.func.clock_timestamp()).where(
        RunRow.status == "running"
    )
    if mirror is not None:
        query = query.where(RunRow.mirror == mirror)
    running = await session.execute(query.with_for_update(skip_locked=True))
    dead = [run for run, owner, expired in running if expired or owners.has_lost(run, owner)]
    if dead:
        await session.execute(
            sa.update(RunRow)
            .where(RunRow.id.in_(dead))
            .values(
                status="interrupted",
                finished_at=sa.func.clock_timestamp(),
                error=RunInterrupted.code,
                cause=ENDED_WITHOUT_A_WORD,
                remedy=RunInterrupted.default_remedy,
            )
        )
    return len(dead)


def report_of(row: RunRow | sa.Row[Any]) -> Report:
    """Return what a row says of its run."""
    return Report(
        run=row.id,
        source=row.source,
        table=row.mirror,
        scope=row.scope,
        status=msgspec.convert(row.status, type=RunStatus),
        counts=Counts(**{name: getattr(row, name) for name in Counts.__dataclass_fields__}),
        started_at=row.started_at,
        finished_at=row.finished_at,
        duration_ms=row.duration_ms,
        body_bytes=row.body_bytes,
        first_load=row.first_load,
        not_modified=row.not_modified,
        approves=row.approves,
        undoes=row.undoes,
        error=row.error,
        cause=row.cause,
        remedy=row.remedy,
        problems=_problems(row.problems),
    )


def _problems(problems: Sequence[dict[str, Any]]) -> tuple[Problem, ...]:
    return tuple(msgspec.convert(problem, Problem) for problem in problems)
