"""Scopes: several sources share one table, and the runs of each see only the rows that bear its fixed values.

Runs of different scopes go on at the same time. What they share is the table's shape. The row of `lockstep.mirrors`
that stands for the whole table guards it: whoever writes rows holds it shared, whoever alters the table holds it alone
and changes it. A transaction whose view of the database is older than the last change is refused that row, and starts
over. This is needed because PostgreSQL shows a rewritten table as empty to whoever looked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from columns import column_name
from errors import SchemaConflict
from models import MirrorRow, SqlType
from values import Misfit, fit_for

Scope = Mapping[str, str | int]

WHOLE_TABLE = ""
PATIENCE = "10min"
"""How long runs wait for one another at the guard; nobody but runs holds it, and never for longer than they write."""


def within(table: sa.Table, scope: Scope, types: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    """Return what holds for the rows of a scope alone; nothing if there is no scope. `types` are the table's columns.

    A table that lacks the scope's columns has no rows that could be told apart.
    """
    names = {column_name(field): value for field, value in scope.items()}
    if not names.keys() <= types.keys():
        return []
    return [
        sa.column(name, _selectable=table) == sa.cast(sa.literal(str(value), sa.Text), SqlType(types[name]))
        for name, value in names.items()
    ]


def demand_fit(scope: Scope, types: Mapping[str, str], mirror: str) -> None:
    """Raise SchemaConflict unless the columns of an existing table take the values of a scope."""
    for field, value in scope.items():
        sql_type = types.get(column_name(field))
        if sql_type is None:
            continue
        try:
            fit_for(sql_type).convert(value, msgspec.json.encode(value).decode())
        except Misfit as misfit:
            raise SchemaConflict(
                f"The scope {field} = {value!r} {misfit}, but column {column_name(field)!r} of {mirror} is {sql_type}.",
                remedy="Correct the scope, or name another table.",
            ) from misfit


async def insert_scope(session: AsyncSession, mirror: str, scope: str, key: Sequence[str]) -> None:
    """Make the rows that stand for the table and for one of its scopes, if they are not there yet."""
    rows = [{"name": mirror, "scope": each, "key": list(key)} for each in (WHOLE_TABLE, scope)]
    await session.execute(insert(MirrorRow).values(rows).on_conflict_do_nothing())


async def lock_shape(session: AsyncSession, mirror: str, *, alone: bool = False) -> None:
    """Keep a table's shape as it is until the transaction ends or, `alone`, keep all others away, so as to alter it.

    It comes before anything that touches the table, or else one would wait for the other. At REPEATABLE READ it raises
    what becomes DatabaseContended if the shape was changed after the transaction's first look.
    """
    guard = sa.select(MirrorRow.name).where(MirrorRow.name == mirror, MirrorRow.scope == WHOLE_TABLE)
    if await session.scalar(guard.with_for_update(read=not alone, skip_locked=True)) is not None:
        return
    usual = await session.scalar(sa.select(sa.func.current_setting("lock_timeout")))
    await _set_lock_timeout(session, PATIENCE)
    await session.execute(guard.with_for_update(read=not alone))
    await _set_lock_timeout(session, usual)


async def _set_lock_timeout(session: AsyncSession, value: Any) -> None:
    await session.execute(sa.select(sa.func.set_config("lock_timeout", value, True)))
