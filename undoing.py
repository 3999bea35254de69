"""Undo: take the changes of one run back, in a run of its own, and pause the source."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from applying import CONTENTION_WAIT_SECONDS, MAX_ATTEMPTS
from definitions import Source, Sources
from errors import DatabaseContended, NotFound, UndoRefused
from models import Counts, Report
from running import milliseconds_since, run_to_end, written
from store import mirrors, pauses, runs
from store.database import Database
from store.journal import insert_entries
from store.scopes import lock_shape
from store.undo import Obstacles, Undo, select_undone


async def select_source_of_run(database: Database, sources: Sources, run: int) -> Source:
    """Return the source that a run synced; raise NotFound if there is no such run, or no such source any more."""
    report = await runs.select_run(database, run)
    if report is None:
        raise NotFound(f"There is no run {run}.")
    return sources.named(report.source)


async def undo_run(database: Database, source: Source, run: int) -> Report:
    """Take back what a run changed, all of it or nothing, and pause the source; return the report of the undo.

    Raises NotFound, and UndoRefused where a row was changed since or the run left nothing to take back.
    """
    report = await runs.select_run(database, run)
    mirror = mirrors.mirror_name(source)
    if report is None:
        raise NotFound(f"There is no run {run}.")
    demand_undoable(report, mirror)
    if report.scope != source.scope_id:
        raise UndoRefused(f"Run {run} wrote the rows with {report.scope or 'any scope'}, which {source.name} is not.")
    opened = await runs.insert_run(database, source=source.name, mirror=mirror, scope=source.scope_id, undoes=run)

    async def work(started: float) -> Report:
        return await written(database, source, opened.run, _take_back(database, source, opened, run, started))

    return await run_to_end(database, opened, work)


def demand_undoable(report: Report, mirror: str) -> None:
    """Raise UndoRefused unless a run of its kind can be undone."""
    run, counts = report.run, report.counts
    if report.table != mirror:
        raise UndoRefused(f"Run {run} wrote to {report.table}, but the source's table is {mirror}.")
    if report.first_load:
        raise UndoRefused(
            f"Run {run} was the first load of {mirror}, which is not journaled row by row.",
            remedy=f"Nothing was written. To begin anew, pause the source and delete the rows of {mirror} by hand.",
        )
    if report.status == "running" or not (counts.created or counts.updated or counts.restored or counts.deleted):
        raise UndoRefused(f"Run {run} is {report.status} and has changed nothing.", remedy="There is nothing to undo.")


async def _take_back(database: Database, source: Source, opened: Report, run: int, started: float) -> Report:
    """Do it in one transaction, which starts over when another session wrote to the same rows meanwhile."""
    contentions = 0
    while True:
        try:
            async with database.transaction(isolation="REPEATABLE READ", run=opened.run) as session:
                await runs.lock_run(session, opened.run)
                if source.scope:
                    await lock_shape(session, opened.table)
                undo, changed = await _undo(session, source, run, opened.run)
                report = replace(
                    opened, status="succeeded", counts=Counts(**changed), duration_ms=milliseconds_since(started)
                )
                await runs.update_run(session, report)
                await insert_entries(session, opened.run, opened.table, undo.entries())
                return report
        except DatabaseContended:
            contentions += 1
            if contentions == MAX_ATTEMPTS:
                raise
            await asyncio.sleep(CONTENTION_WAIT_SECONDS * 2**contentions)


async def _undo(session: AsyncSession, source: Source, run: int, by: int) -> tuple[Undo, Mapping[str, int]]:
    mirror = await mirrors.select_mirror(session, source)
    if not mirror.is_adopted or not mirror.keyed:
        raise UndoRefused(f"{mirror.name} is not the table any more that run {run} has left.")
    undone = await select_undone(session, mirror.name)
    if run in undone:
        raise UndoRefused(
            f"Run {undone[run]} has undone run {run} already.", remedy=f"To redo run {run}, undo run {undone[run]}."
        )
    undo = Undo(mirror, run, hard=source.on_delete == "hard")
    if lost := await undo.select_lost_fields(session):
        raise UndoRefused(f"Run {run} changed {', '.join(lost)}, which {mirror.name} has no column for any more.")
    await undo.prepare(session)
    _refuse(run, await undo.select_touched_later(session, undone))
    _refuse(run, await undo.select_edited(session))
    changed = await undo.apply(session)
    _refuse_inexact(run, await undo.select_inexact(session))
    more_rows = changed.get("created", 0) + changed.get("restored", 0) - changed.get("deleted", 0)
    await pauses.update_undone(session, source, run=by, undone=run, more_rows=more_rows)
    return undo, changed


def _refuse(run: int, obstacles: Obstacles) -> None:
    if not obstacles.count:
        return
    rows = f"{obstacles.count} of the rows that run {run} changed ({_named(obstacles)})"
    if obstacles.runs:
        later = ", ".join(map(str, obstacles.runs))
        raise UndoRefused(
            f"{rows} were changed again by run {later}.",
            remedy="Nothing was written. Undo the later runs first, the newest before the others.",
        )
    raise UndoRefused(
        f"{rows} are not as it left them.",
        remedy="Nothing was written. Somebody has edited or removed them since; the journal tells how they were.",
    )


def _refuse_inexact(run: int, obstacles: Obstacles) -> None:
    if obstacles.count:
        raise UndoRefused(
            f"{obstacles.count} of the rows that run {run} changed ({_named(obstacles)}) cannot take their old values"
            " back, because a column has another type now.",
            remedy="Nothing was written. Alter the column, then undo the run.",
        )


def _named(obstacles: Obstacles) -> str:
    named = "; ".join(_spell(key) for key in obstacles.keys)
    return f"{named}; …" if obstacles.count > len(obstacles.keys) else named


def _spell(key: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} = {value!r}" for field, value in key.items())
