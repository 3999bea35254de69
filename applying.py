"""The second part of a run: compare what was gathered with the mirror, decide, and write, all in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from columns import Column, adopt
from deciding import Order, Outcome, decide_columns, reason_to_hold, total
from definitions import Source
from errors import DatabaseContended, PlanStale, SchemaConflict, SourceInvalid, SourcePaused
from gathering import Gathered
from leaving import leave_state
from models import KEPT_DIFFERENCES, KEPT_PROBLEMS, Counts, Problem
from rows import RowDecoder
from shaping import demand_scope, is_settled, settle_shape
from store import mirrors, runs, shapes
from store.database import Database
from store.journal import insert_entries, insert_first_load
from store.mirrors import Mirror
from store.scopes import lock_shape
from store.staging import Staging
from values import fit_for

log = structlog.get_logger()

MAX_ATTEMPTS = 5
"""How often the transaction is tried when other sessions write to the same rows."""

CONTENTION_WAIT_SECONDS = 0.1

WORTH_ANALYZING = 10_000
"""Staged records from which on it pays to gather statistics for the planner.

Of an increment it always does: without them the planner expects more, and reads the whole mirror for the sake of few.
"""


class FetchAll(Exception):
    """Fingerprints cannot be relied on: fetch again, and compare every record by value."""


class _StageFirst(Exception):
    """Records share keys, or have to be cast, so they cannot be copied straight into the mirror."""


class _SettleShape(Exception):
    """Several sources share the table, and it is not as this run needs it; `columns` are what it needs."""

    def __init__(self, run: int, columns: Sequence[Column]) -> None:
        super().__init__()
        self.run = run
        self.columns = columns


class _WidenColumns(Exception):
    """Records do not fit the columns; `columns` hold them all."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = tuple(columns)


Close = Callable[[AsyncSession, Outcome], Awaitable[None]]


async def apply(
    database: Database, source: Source, gathered: Gathered, order: Order, close: Close | None = None
) -> Outcome:
    """Compare a snapshot with its mirror and, if a run orders it, write; `close` closes the run just before the commit.

    The transaction sees one state of the database from its first statement to its commit; it starts over when another
    session wrote to the same rows meanwhile. Raises FetchAll where the mirror has moved since it was read.
    """
    columns: tuple[Column, ...] | None = None
    straight = order.run is not None and order.plan is None and not gathered.mirror.has_rows
    contentions = 0
    while True:
        try:
            async with database.transaction(isolation="REPEATABLE READ", run=order.run) as session:
                if order.run is not None:
                    await runs.lock_run(session, order.run)
                if source.scope:
                    await lock_shape(session, gathered.mirror.name)
                mirror = await _read_again(session, source, gathered, order)
                columns = columns or _first_columns(mirror, gathered.inference.columns())
                application = _Application(session, source, gathered, order, mirror, columns)
                outcome = await application.carry_out(straight=straight)
                if close is None:
                    await session.rollback()
                else:
                    await close(session, outcome)
                    await application.journal()
                return outcome
        except _WidenColumns as wider:
            columns = wider.columns
        except _SettleShape as unsettled:
            columns = await settle_shape(database, source, unsettled.run, unsettled.columns)
        except _StageFirst:
            straight = False
        except DatabaseContended:
            contentions += 1
            if contentions == MAX_ATTEMPTS:
                raise
            await asyncio.sleep(CONTENTION_WAIT_SECONDS * 2**contentions)


async def _read_again(session: AsyncSession, source: Source, gathered: Gathered, order: Order) -> Mirror:
    """Read the mirror as this transaction sees it; what was compared by fingerprint must not have moved since."""
    before = gathered.mirror
    mirror = await mirrors.select_mirror(session, source)
    if order.run is not None and mirror.pause:
        raise SourcePaused(source=source.name, since=mirror.pause.since, reason=mirror.pause.reason)
    demand_scope(mirror, source)
    moved = (
        mirror.foreign_writes != before.foreign_writes
        or mirror.watched != before.watched
        or mirror.state != before.state
        or mirror.types != before.types
        or mirror.has_rows != before.has_rows
    )
    emptied = gathered.asked_since is not None and not mirror.has_rows
    if emptied or (moved and gathered.trusted):
        raise FetchAll
    return mirror


def _first_columns(mirror: Mirror, inferred: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns to start with: those of the mirror, and what its first records look like."""
    missing = [name for name in mirror.key_columns if name not in mirror.types]
    if mirror.has_rows and missing:
        raise SchemaConflict(
            f"Table {mirror.name} holds rows, but it has no key column {missing[0]!r}.",
            remedy="Name the table's key in SOURCE_KEY, or another table in table_name.",
        )
    known = {column.field for column in mirror.columns}
    return (*(column for column in adopt(inferred, mirror.types) if column.field not in known), *mirror.columns)


class _Application:
    """One attempt to apply a snapshot, in one session."""

    def __init__(
        self,
        session: AsyncSession,
        source: Source,
        gathered: Gathered,
        order: Order,
        mirror: Mirror,
        columns: tuple[Column, ...],
    ) -> None:
        self._session = session
        self._source = source
        self._gathered = gathered
        self._order = order
        self._mirror = mirror
        self._columns = columns
        self._decoder = RowDecoder(
            columns, source.key, nul_characters=source.nul_characters, declared=source.types.keys()
        )
        self._outcome = Outcome(problems=list(gathered.problems))
        self._staging: Staging | None = None
        """What has entries for the journal."""

    async def carry_out(self, *, straight: bool) -> Outcome:
        """Do all of it; `straight` says that the mirror is empty, so that records need not be staged."""
        nothing_to_keep = not self._gathered.spool.records and not self._mirror.has_rows
        if self._gathered.is_unchanged or nothing_to_keep:
            await self._leave_as_it_is()
        elif self._mirror.scope_id and self._order.run is not None and not is_settled(self._mirror, self._columns):
            raise _SettleShape(self._run, self._columns)
        elif straight and (self._mirror.has_rows or any(fit_for(each.sql_type).by_cast for each in self._columns)):
            raise _StageFirst
        elif straight:
            await self._load_straight()
        else:
            await self._stage_and_compare()
        counts = self._outcome.counts
        if counts.records and counts.rejected == counts.records and not self._mirror.has_rows:
            raise self._nothing_fits()
        return self._outcome

    async def journal(self) -> None:
        """Give the run its place in the journal: after all else, for other runs that have changed anything wait."""
        if self._staging is not None:
            await insert_entries(self._session, self._run, self._mirror.name, self._staging.entries())
        elif self._outcome.first_load and self._outcome.counts.created:
            await insert_first_load(self._session, self._run)

    async def _leave_as_it_is(self) -> None:
        self._demand_plan(NOTHING)
        live = self._gathered.live_rows
        self._outcome.live_rows = self._mirror.state.live_rows if live is None else live
        self._outcome.counts = self._counts({}, duplicates=self._gathered.repeated, held=0)
        if self._order.run is None:
            self._outcome.hash = NOTHING
        elif self._gathered.is_unchanged and not self._gathered.is_increment:
            await self._write_state()

    async def _load_straight(self) -> None:
        """Copy the records into the empty mirror; its key is added afterwards, which is faster and finds duplicates."""
        is_new = not self._mirror.exists
        await self._shape(keyed=False)
        created = await mirrors.copy_into(
            self._session, self._mirror, self._columns, self._decoder.rows(self._gathered.spool, positions=False)
        )
        await self._demand_fit()
        if created is None or await self._decoder.may_share_keys():
            raise _StageFirst
        if is_new:
            await shapes.create_primary_key(self._session, self._mirror)
        self._protect_rejected()
        self._outcome.first_load = True
        self._outcome.counts = self._counts({"created": created}, duplicates=0, held=0)
        self._outcome.live_rows = created
        await self._write_state()

    async def _stage_and_compare(self) -> None:
        staging = await self._stage()
        duplicates = await self._settle_duplicates(staging) + self._gathered.repeated
        await staging.insert_upserts(self._session)
        if self._gathered.absence_deletes:
            await staging.insert_deletions(self._session, some_lack_fingerprints=self._gathered.without_fingerprint > 0)
        changes = await staging.count(self._session)
        live = await self._count_live_rows()
        if self._order.run is None or self._order.plan is not None:
            # What is held belongs to the plan too: whoever approves it wants to see it first.
            self._outcome.hash = await staging.hash(self._session)
            self._demand_plan(self._outcome.hash)
        if self._order.run is None:
            self._outcome.differences = await staging.select(self._session, KEPT_DIFFERENCES)
        held = self._guard(changes, live)
        if held:
            await staging.delete_deletions(self._session)
            del changes["deleted"]
        self._outcome.counts = self._counts(changes, duplicates=duplicates, held=held)
        self._outcome.live_rows = live
        if self._order.run is not None:
            await self._write(staging, changes)

    async def _count_live_rows(self) -> int:
        """Return how many live rows there are; all of them are not read for the sake of a small increment."""
        state, live = self._mirror.state, self._gathered.live_rows
        if live is None and self._gathered.is_increment and state.last_run is not None:
            return state.live_rows
        return await mirrors.count_live_rows(self._session, self._mirror) if live is None else live

    async def _stage(self) -> Staging:
        """Decode the spooled records into the stage, and mark the rows that fingerprints tell of."""
        known = self._gathered.known
        seen = known.seen
        mark_seen = 2 * seen < len(known)
        staging = Staging(self._mirror, self._columns, marked_are_seen=mark_seen if seen else None)
        await staging.create(self._session)
        if seen:
            await staging.copy_marked(self._session, known.copy_of(seen=mark_seen))
        await staging.copy_stage(self._session, self._decoder.rows(self._gathered.spool, positions=True))
        await self._demand_fit()
        self._protect_rejected()
        if self._decoder.protected:
            await staging.copy_protected(self._session, self._decoder.protected)
        if self._gathered.spool.records >= WORTH_ANALYZING or self._gathered.is_increment:
            await staging.analyze(self._session)
        uncastable = await staging.select_uncastable(self._session)
        if uncastable is not None:
            column, key, value = uncastable
            raise SchemaConflict(
                f"The record with key {key} does not fit table {self._mirror.name}: its value {value!r} is no"
                f" {column.sql_type}, which column {column.name!r} is."
            )
        return staging

    async def _demand_fit(self) -> None:
        """Start over with other columns unless all records fitted these."""
        if not self._decoder.wanted:
            return
        decided = decide_columns(
            self._columns, self._decoder.wanted, self._decoder.misfits, self._mirror.types, self._source
        )
        if decided.must_fetch_all and self._gathered.may_fetch_more:
            raise FetchAll
        raise _WidenColumns(decided.columns)

    async def _settle_duplicates(self, staging: Staging) -> int:
        """Let the last of several records with one key win, whether it was staged or known; report the others."""
        losers: list[tuple[int, Any]] = []
        if await self._decoder.may_share_keys():
            losers += await staging.delete_staged_duplicates(self._session)
        twins = await staging.select_seen_twins(self._session)
        overtaken = []
        for position, fingerprint, key in twins:
            known_at = self._gathered.known.seen_at(fingerprint)
            losers.append((min(position, known_at), key))
            if known_at > position:
                overtaken.append(position)
        if overtaken:
            await staging.delete_staged(self._session, overtaken)
        reason = "a later record has the same key"
        self._outcome.problems += [
            Problem(kind="duplicate", position=position, reason=reason, key=key)
            for position, key in sorted(losers, key=lambda loser: loser[0])[:KEPT_PROBLEMS]
        ]
        return len(losers)

    def _nothing_fits(self) -> SourceInvalid:
        reasons = [problem.reason for problem in (*self._gathered.problems, *self._decoder.problems)]
        return SourceInvalid(
            f"None of the {self._gathered.records} records can be stored; the first one because {reasons[0]}.",
            remedy="Nothing was written. Look at what the URL answers, and at SOURCE_KEY, which names the key.",
        )

    def _protect_rejected(self) -> None:
        for key in self._gathered.rejected_keys:
            self._decoder.protect(key)
        self._outcome.problems += self._decoder.problems

    def _guard(self, changes: dict[str, int], live: int) -> int:
        """Return how many deletions are withheld."""
        deletions = changes.get("deleted", 0)
        self._outcome.held_because = reason_to_hold(
            deletions=deletions,
            live=live,
            records=self._gathered.records,
            unidentified=self._gathered.unidentified + self._decoder.unidentified,
            approved=self._order.approved,
            source=self._source,
        )
        return deletions if self._outcome.held_because else 0

    def _counts(self, changes: dict[str, int], *, duplicates: int, held: int) -> Counts:
        return total(
            Counts(
                records=self._gathered.records,
                rejected=self._gathered.rejected + self._decoder.rejected,
                duplicates=duplicates,
                held=held,
                **changes,
            )
        )

    def _demand_plan(self, planned: str) -> None:
        """Refuse to go on unless this is the plan that may be applied, if only one may."""
        if self._order.plan not in (None, planned):
            raise PlanStale("The source or the mirror has changed since the plan was made.")

    async def _shape(self, *, keyed: bool) -> None:
        if self._mirror.scope_id:
            return  # settled already
        if self._mirror.exists:
            await shapes.alter_mirror(self._session, self._mirror, self._columns)
        else:
            await shapes.create_mirror(self._session, self._mirror, self._columns, keyed=keyed)

    async def _write(self, staging: Staging, changes: dict[str, int]) -> None:
        """Bring table and rows into their new shape."""
        await self._shape(keyed=True)
        await staging.apply(self._session, changes, hard=self._source.on_delete == "hard")
        if self._gathered.without_fingerprint or not self._gathered.trusted:
            await staging.update_fingerprints(self._session, all_rows=self._all_fingerprints_are_stale())
        self._outcome.first_load = not self._mirror.has_rows
        if changes and not self._outcome.first_load:
            self._staging = staging
        counts = self._outcome.counts
        self._outcome.live_rows += counts.created + counts.restored - counts.deleted
        await self._write_state()

    def _all_fingerprints_are_stale(self) -> bool:
        """Tell whether rows that have not changed need new fingerprints all the same."""
        state = self._mirror.state
        # A canonical fingerprint is of the record as the mirror has it, so it changes with what the mirror has of it.
        is_of_another_shape = state.fingerprint_kind == "canonical" and state.signature != self._mirror.signature
        return state.stored_kind != state.fingerprint_kind or is_of_another_shape or self._gathered.has_copies

    async def _write_state(self) -> None:
        await leave_state(
            self._session,
            self._source,
            self._gathered,
            self._mirror,
            self._columns,
            self._outcome,
            run=self._run,
            rejected=(*self._gathered.rejected_at, *self._decoder.rejected_at),
        )

    @property
    def _run(self) -> int:
        if self._order.run is None:
            raise AssertionError("only a run writes")
        return self._order.run


NOTHING = "0-0000000000000000"
"""The hash of a plan that does nothing."""
