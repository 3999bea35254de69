"""The journal: every change that runs made, in the order in which they were committed."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from models import Change, ChangeRow, Operation, RunRow
from store.database import Database

JOURNAL_LOCK = 0x10C5_7E9_0001
"""Key of the advisory lock that makes the order of `seq` the order of commits, over all mirrors."""


async def lock_journal(session: AsyncSession) -> None:
    """Let no other run number its changes until this transaction has ended.

    A sequence gives numbers in the order of asking. Without the lock, a run that asked first and commits last would
    put its changes behind the back of a reader who has gone past them.
    """
    await session.execute(sa.select(sa.func.pg_advisory_xact_lock(JOURNAL_LOCK)))


async def select_changes(
    database: Database, *, after: int = 0, limit: int = 100, run: int | None = None
) -> list[Change]:
    """Return the changes that follow `after` in the journal, at most `limit` of them."""
    query = (
        sa.select(ChangeRow, sa.func.coalesce(RunRow.finished_at, RunRow.started_at))
        .join(RunRow, RunRow.id == ChangeRow.run)
        .where(ChangeRow.seq > after)
        .order_by(ChangeRow.seq)
        .limit(limit)
    )
    if run is not None:
        query = query.where(ChangeRow.run == run)
    async with database.transaction() as session:
        return [
            Change(
                seq=row.seq,
                run=row.run,
                table=row.mirror,
                key=row.key,
                op=_operation(row.op),
                changes={name: (old, new) for name, (old, new) in row.changes.items()},
                at=at,
            )
            for row, at in await session.execute(query)
        ]


def _operation(op: str) -> Operation:
    match op:
        case "created" | "updated" | "restored" | "deleted":
            return op
    raise ValueError(f"The journal holds an operation that is unknown: {op!r}.")
