"""The journal: every change that runs made, in the order in which they were committed.

A run numbers its entries under a lock that all runs share and that is released by the commit, so whoever sees one entry
sees all entries before it. The numbers of a run are its own from the first to the last, and its row says which they
are: by these rows a reader is led to the entries of one source or table, wherever they lie among those of others. A
first load has a number too, and no entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS
from sqlalchemy.ext.asyncio import AsyncSession

from models import Change, ChangeRow, FirstLoad, Operation, RunRow
from store.database import Database

JOURNAL_LOCK = 0x10C5_7E9_0001
"""Key of the advisory lock that makes the order of `seq` the order of commits, over all mirrors."""

CHANNEL = "lockstep_changes"
"""Where commits that add to the journal are told of; nothing but the fact."""

SEQUENCE = sa.literal("lockstep.changes_seq_seq", sa.Text).cast(REGCLASS)

PATIENCE = "10min"
"""How long a run waits for its turn; nobody but runs takes turns, each for no longer than its entries are written."""

_patient = sa.select(sa.func.set_config("lock_timeout", PATIENCE, True)).cte("patient")
_locked = sa.select(sa.func.pg_advisory_xact_lock(JOURNAL_LOCK)).select_from(_patient).cte("locked")
"""Has a row once the lock is held, so whoever joins with it comes after that."""

AT = sa.func.coalesce(RunRow.finished_at, RunRow.started_at).label("at")
CHANGE = (
    ChangeRow.seq,
    ChangeRow.op,
    ChangeRow.key.cast(sa.Text).label("key"),
    ChangeRow.changes.cast(sa.Text).label("changes"),
)
"""An entry's columns; JSON as text, because the driver's reader would round numbers."""

PREFER_THE_INDEX = sa.select(sa.func.set_config("enable_seqscan", "off", True))
"""Keys lie in the journal in no order, from which the planner concludes that their index leads everywhere at once.

It does not, for what it holds of every block is a Bloom filter.
"""

Entry = Change | FirstLoad


@dataclass(frozen=True, kw_only=True)
class Page:
    """Entries of the journal, in order."""

    entries: tuple[Entry, ...]
    upto: int
    """Nothing that was asked for is left before or at this number: where the next page begins."""


async def insert_entries(session: AsyncSession, run: int, mirror: str, entries: sa.Subquery) -> None:
    """Journal what a run has done: `entries` has the columns op, key and changes, and at least one row.

    A sequence gives numbers in the order of asking. Without the lock, a run that asked first and commits last would
    put its changes behind the back of a reader who has gone past them. It is the last statement of a transaction, and
    a single one, for meanwhile nobody else can commit anything that has changed, however busy this process is.
    """
    rows = sa.select(
        sa.literal(run, sa.BigInteger), sa.literal(mirror), entries.c.op, entries.c.key, entries.c.changes
    ).select_from(entries.join(_locked, sa.true()))
    added = (
        sa.insert(ChangeRow.__table__)  # type: ignore[arg-type] # declared as FromClause
        .from_select(["run", "mirror", "op", "key", "changes"], rows)
        .returning(ChangeRow.seq)
        .cte("added")
    )
    await _note(
        session, run, sa.select(sa.func.min(added.c.seq).label("first"), sa.func.max(added.c.seq).label("last"))
    )


async def insert_first_load(session: AsyncSession, run: int) -> None:
    """Give a run that filled an empty mirror its place in the journal: one number, and no entries."""
    number = sa.select(sa.func.nextval(SEQUENCE).label("seq")).select_from(_locked).cte("number")
    await _note(session, run, sa.select(number.c.seq.label("first"), number.c.seq.label("last")))


async def _note(session: AsyncSession, run: int, first_and_last: sa.Select[Any]) -> None:
    """Note in a run's row which numbers are its own, and wake those who follow the journal.

    Its end is a moment of its turn, so that later entries never have earlier moments.
    """
    numbers = first_and_last.add_columns(sa.literal(run, sa.BigInteger).label("run")).cte("numbers")
    await session.execute(
        sa.update(RunRow.__table__)  # type: ignore[arg-type] # declared as FromClause
        .where(RunRow.id == numbers.c.run)
        .values(first_seq=numbers.c.first, last_seq=numbers.c.last, finished_at=sa.func.clock_timestamp())
        .returning(sa.func.pg_notify(CHANNEL, ""))
    )


async def select_page(
    database: Database, *, after: int, limit: int, source: str | None = None, table: str | None = None
) -> Page:
    """Return what follows `after` in the journal, at most `limit` entries: of all, or of one source or table."""
    async with database.transaction() as session:
        newest = await _newest(session)
        if newest <= after:
            return Page(entries=(), upto=after)
        found = await session.execute(page_query(after=after, limit=limit, source=source, table=table))
        entries = tuple(_entry(row) for row in found)
    # The page was read after `newest`, so it has all that there is up to there, or is full.
    last = entries[-1].seq if entries else after
    return Page(entries=entries, upto=last if len(entries) == limit else max(last, newest))


def page_query(*, after: int, limit: int, source: str | None = None, table: str | None = None) -> sa.Select[Any]:
    """Return the query for a page: along the runs in the order of their numbers, and for each along its entries."""
    entry = (
        sa.select(*CHANGE)
        .where(ChangeRow.seq > after, ChangeRow.seq >= RunRow.first_seq, ChangeRow.seq <= RunRow.last_seq)
        .order_by(ChangeRow.seq)
        .limit(limit)
        .lateral("entry")
    )
    query = (
        sa.select(RunRow.id, RunRow.source, RunRow.mirror, RunRow.created, RunRow.last_seq, AT, *entry.c)
        .outerjoin_from(RunRow, entry, sa.true())
        .where(RunRow.last_seq > after, sa.or_(entry.c.seq.is_not(None), RunRow.first_load))
        .order_by(RunRow.last_seq, entry.c.seq)
        .limit(limit)
    )
    if source is not None:
        query = query.where(RunRow.source == source)
    return query if table is None else query.where(RunRow.mirror == table)


async def select_newest(database: Database) -> int:
    """Return the last number of the journal, 0 if it is empty."""
    async with database.transaction() as session:
        return await _newest(session)


async def _newest(session: AsyncSession) -> int:
    return await session.scalar(sa.select(sa.func.max(RunRow.last_seq))) or 0


async def select_history(
    session: AsyncSession, mirror: str, key: Mapping[str, Any], *, before: int | None = None, limit: int
) -> list[Change]:
    """Return the changes of one row, newest first, older than `before` if that is given."""
    query = history_query(mirror, key, limit=limit)
    if before is not None:
        query = query.where(ChangeRow.seq < before)
    await session.execute(PREFER_THE_INDEX)
    return [_change(row) for row in await session.execute(query)]


def history_query(mirror: str, key: Mapping[str, Any], *, limit: int) -> sa.Select[Any]:
    """Return the query for the newest changes of one row; the index has hashes, for whole keys could be too long."""
    bound, seed = sa.literal(dict(key), JSONB), sa.literal_column("0", sa.BigInteger)
    same_hash = sa.func.jsonb_hash_extended(ChangeRow.key, seed) == sa.func.jsonb_hash_extended(bound, seed)
    return (
        sa.select(*CHANGE, RunRow.id, RunRow.mirror, AT)
        .join(RunRow, RunRow.id == ChangeRow.run)
        .where(same_hash, ChangeRow.mirror == mirror, ChangeRow.key == bound)
        .order_by(ChangeRow.seq.desc())
        .limit(limit)
    )


def _entry(row: sa.Row[Any]) -> Entry:
    if row.seq is not None:
        return _change(row)
    return FirstLoad(seq=row.last_seq, run=row.id, source=row.source, table=row.mirror, rows=row.created, at=row.at)


def _change(row: sa.Row[Any]) -> Change:
    changes = _exact(row.changes)
    return Change(
        seq=row.seq,
        run=row.id,
        table=row.mirror,
        key=_exact(row.key),
        op=_operation(row.op),
        changes={name: (old, new) for name, (old, new) in changes.items()},
        at=row.at,
    )


def _exact(text: str) -> dict[str, Any]:
    """Read JSON without rounding what is more exact than a double."""
    found: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return found


def _operation(op: str) -> Operation:
    match op:
        case "created" | "updated" | "restored" | "deleted":
            return op
    raise ValueError(f"The journal holds an operation that is unknown: {op!r}.")
