"""The history of one row: what runs did to it, as the journal tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from definitions import Source
from models import CREATED_AT, DELETED_AT, Change, SqlType, mirror_table
from store.database import Database
from store.journal import select_history
from store.mirrors import Mirror, select_mirror


@dataclass(frozen=True, kw_only=True)
class RowHistory:
    """A row of a mirror and its changes, newest first; a row that was purged has changes only."""

    key: dict[str, Any]
    created_at: datetime | None
    deleted_at: datetime | None
    changes: list[Change]


async def select_row_history(
    database: Database, source: Source, key: Sequence[str], *, before: int | None = None, limit: int = 100
) -> RowHistory | None:
    """Return a row's changes, at most `limit` and older than `before`; None if there neither is nor was such a row.

    `key` are the values of the key's fields, as text.
    """
    async with database.transaction() as session:
        mirror = await select_mirror(session, source)
        values = await _typed(session, mirror, key)
        if values is None:
            return None
        members = [part for field, value in zip(mirror.key, values, strict=True) for part in (sa.literal(field), value)]
        as_json = await session.scalar(sa.select(sa.func.jsonb_build_object(*members, type_=JSONB))) or {}
        table = mirror_table(mirror.table, mirror.db_schema, {name: mirror.types[name] for name in mirror.key_columns})
        same_key = [table.c[name] == value for name, value in zip(mirror.key_columns, values, strict=True)]
        row = (
            await session.execute(sa.select(table.c[CREATED_AT], table.c[DELETED_AT]).where(*same_key))
        ).one_or_none()
        changes = await select_history(session, mirror.name, as_json, before=before, limit=limit)
        if row is None and not changes and before is None:
            return None
        created_at, deleted_at = row or (None, None)
        return RowHistory(key=as_json, created_at=created_at, deleted_at=deleted_at, changes=changes)


async def _typed(session: AsyncSession, mirror: Mirror, key: Sequence[str]) -> list[sa.ColumnElement[Any]] | None:
    """Return a key's values in the types of their columns; None where there can be no such row."""
    types = [mirror.types.get(name) for name in mirror.key_columns]
    if not mirror.is_adopted or len(key) != len(types) or any("\0" in part for part in key):
        return None
    values: list[sa.ColumnElement[Any]] = []
    for part, sql_type in zip(key, types, strict=True):
        text = sa.literal(part, sa.Text)
        if sql_type is None or not await session.scalar(sa.select(sa.func.lockstep.fits(text, sql_type))):
            return None
        values.append(sa.cast(text, SqlType(sql_type)))
    return values
