"""The shape of mirrors: how their tables, triggers and views are made and altered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateColumn, CreateTable

from columns import JSONB, NUMERIC, TEXT, TIMESTAMPTZ, Column
from errors import SchemaConflict
from models import SqlType, bookkeeping_columns, mirror_table
from store.database import detail, sqlstate
from store.mirrors import Mirror
from store.triggers import TRIGGERS, create_triggers
from store.views import bring_view, create_view, drop_view, shown

DEPENDED_UPON = "2BP01", "0A000"
"""SQLSTATEs of statements that would break what somebody made on top of a mirror."""

_dialect = asyncpg.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
_quote = _dialect.identifier_preparer.quote


async def create_mirror(session: AsyncSession, mirror: Mirror, columns: Sequence[Column], *, keyed: bool) -> None:
    """Create a mirror's table, with its primary key or, to load it faster, without."""
    types = {column.name: column.sql_type for column in columns}
    table = mirror_table(mirror.table, mirror.db_schema, types, mirror.key_columns if keyed else ())
    await _execute_ddl(session, _spell(CreateTable(table)))
    names = shown(column.name for column in table.columns)
    await bring_view(session, mirror.live_view, mirror.qualified, names, is_new=True)


async def create_primary_key(session: AsyncSession, mirror: Mirror) -> None:
    """Make the key columns the primary key of a table that was created without one."""
    names = ", ".join(_quote(name) for name in mirror.key_columns)
    await _execute_ddl(session, f"ALTER TABLE {mirror.qualified} ADD PRIMARY KEY ({names})")


async def alter_mirror(session: AsyncSession, mirror: Mirror, columns: Sequence[Column]) -> None:
    """Bring an existing table into the shape that a run needs: bookkeeping columns, new ones, wider ones, the key."""
    missing = [column for column in bookkeeping_columns() if column.name not in mirror.types]
    missing += [sa.Column(each.name, SqlType(each.sql_type)) for each in columns if each.name not in mirror.types]
    clauses = [f"ADD COLUMN {_column_ddl(column)}" for column in missing]
    wider = [column for column in columns if mirror.types.get(column.name, column.sql_type) != column.sql_type]
    for column in wider:
        using = _spell(widened(sa.column(column.name), mirror.types[column.name], column.sql_type))
        clauses.append(f"ALTER COLUMN {_quote(column.name)} TYPE {column.sql_type} USING {using}")
    view, seen = mirror.live_view, shown([*mirror.types, *(column.name for column in missing)])
    try:
        grants = await drop_view(session, view) if wider and view.columns else None
        if clauses:
            # The row trigger names the columns whose updates it watches, so they cannot change while it is there.
            await _execute_ddl(session, f"DROP TRIGGER IF EXISTS {TRIGGERS[0]} ON {mirror.qualified}")
            await _execute_ddl(session, f"ALTER TABLE {mirror.qualified} {', '.join(clauses)}")
        if grants is None:
            await bring_view(session, view, mirror.qualified, seen, is_new=not mirror.is_adopted)
        else:
            await create_view(session, view, mirror.qualified, seen, grants)
    except sa.exc.DBAPIError as error:
        if sqlstate(error) not in DEPENDED_UPON:
            raise
        raise _in_use(mirror, wider, error) from error
    if not mirror.keyed:
        await _create_key_index(session, mirror)


def _in_use(mirror: Mirror, wider: Sequence[Column], error: sa.exc.DBAPIError) -> SchemaConflict:
    wanted = ", ".join(f"{column.name} as {column.sql_type}" for column in wider)
    return SchemaConflict(
        f"{mirror.name} needs other columns ({wanted or 'in its view of live rows'}), but something else uses them:"
        f" {detail(error)}.",
        remedy="Nothing was written. Drop what is named, sync again, then create it anew.",
    )


def widened(value: sa.ColumnElement[Any], narrow: str, wide: str) -> sa.ColumnElement[Any]:
    """Return the expression that turns a column's value into its wider type without a change of value."""
    if wide == JSONB:
        return sa.func.to_jsonb(value)
    if wide == NUMERIC:
        # Only by way of text does a double give its shortest form; the direct cast keeps 15 digits.
        return sa.cast(sa.cast(value, sa.Text), sa.Numeric)
    if (narrow, wide) == (TIMESTAMPTZ, TEXT):
        return sa.cast(value, sa.Text)
    raise ValueError(f"no way from {narrow} to {wide}")


def _spell(clause: sa.ClauseElement) -> str:
    """Return a clause as SQL, with quoted names."""
    return str(clause.compile(dialect=_dialect))


def _column_ddl(column: sa.Column[Any]) -> str:
    sa.Table("ddl", sa.MetaData(), column)
    return _spell(CreateColumn(column))


async def _create_key_index(session: AsyncSession, mirror: Mirror) -> None:
    names = ", ".join(_quote(name) for name in mirror.key_columns)
    try:
        await _execute_ddl(session, f"CREATE UNIQUE INDEX ON {mirror.qualified} ({names})")
    except sa.exc.IntegrityError as error:
        raise SchemaConflict(
            f"{mirror.name} holds several rows with the same key ({', '.join(mirror.key)}).",
            remedy="Remove the surplus rows, or name another key in SOURCE_KEY, then sync again.",
        ) from error


async def _execute_ddl(session: AsyncSession, statement: str) -> None:
    await (await session.connection()).exec_driver_sql(statement)


async def watch(session: AsyncSession, mirror: Mirror, columns: Sequence[Column]) -> bool:
    """Put the triggers in place that tell of foreign writes; return False where that is refused."""
    try:
        async with session.begin_nested():
            for statement in create_triggers(mirror.qualified, mirror.name, [_quote(c.name) for c in columns]):
                await _execute_ddl(session, statement)
    except sa.exc.DBAPIError as error:
        if sqlstate(error) not in ("42501", "0A000"):
            raise
        return False
    return True
