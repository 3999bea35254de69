"""The journal: every change that runs made, in the order in which they were committed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from models import Change, ChangeRow, Operation, RunRow
from store.database import Database

JOURNAL_LOCK = 0x10C5_7E9_0001
"""Key of the advisory lock that makes the order of `seq` the order of commits, over all mirrors."""


PREFER_THE_INDEX = sa.select(sa.func.set_config("enable_seqscan", "off", True))
"""Keys lie in the journal in no order, from which the planner concludes that their index leads everywhere at once.

It does not, for what it holds of every block is a Bloom filter.
"""


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
        return [_change(row, at) for row, at in await session.execute(query)]


async def select_history(
    session: AsyncSession, mirror: str, key: Mapping[str, Any], *, before: int | None = None, limit: int
) -> list[Change]:
    """Return the changes of one row, newest first, older than `before` if that is given."""
    query = history_query(mirror, key, limit=limit)
    if before is not None:
        query = query.where(ChangeRow.seq < before)
    await session.execute(PREFER_THE_INDEX)
    return [_change(row, at) for row, at in await session.execute(query)]


def history_query(mirror: str, key: Mapping[str, Any], *, limit: int) -> sa.Select[ChangeRow, datetime]:
    """Return the query for the newest changes of one row; the index has hashes, for whole keys could be too long."""
    bound, seed = sa.literal(dict(key), JSONB), sa.literal_column("0", sa.BigInteger)
    same_hash = sa.func.jsonb_hash_extended(ChangeRow.key, seed) == sa.func.jsonb_hash_extended(bound, seed)
    return (
        sa.select(ChangeRow, sa.func.coalesce(RunRow.finished_at, RunRow.started_at))
        .join(RunRow, RunRow.id == ChangeRow.run)
        .where(same_hash, ChangeRow.mirror == mirror, ChangeRow.key == bound)
        .order_by(ChangeRow.seq.desc())
        .limit(limit)
    )


def _change(row: ChangeRow, at: datetime) -> Change:
    return Change(
        seq=row.seq,
        run=row.run,
        table=row.mirror,
        key=row.key,
        op=_operation(row.op),
        changes={name: (old, new) for name, (old, new) in row.changes.items()},
        at=at,
    )


def _operation(op: str) -> Operation:
    match op:
        case "created" | "updated" | "restored" | "deleted":
            return op
    raise ValueError(f"The journal holds an operation that is unknown: {op!r}.")
