"""Which mirrors there are, and how they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from columns import column_name
from definitions import Source
from models import BOOKKEEPING
from store.database import Database
from store.mirrors import mirror_name


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """A column of a mirror."""

    name: str
    type: str
    field: str | None
    """The feed's field that it holds; None for a column of the user's own."""
    is_key: bool


@dataclass(frozen=True, kw_only=True)
class LastRun:
    """The newest run of a mirror."""

    run: int
    source: str
    status: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """A mirror: what fills it, what it looks like, and how many live rows the last runs counted."""

    name: str
    table: str
    db_schema: str
    sources: tuple[str, ...]
    key: tuple[str, ...]
    """Names of the key's columns."""
    columns: tuple[TableColumn, ...]
    """Those of bookkeeping left out; none before the first run."""
    live_rows: int
    last_run: LastRun | None


COLUMNS = sa.text("""
    SELECT asked.name, a.attname::text AS column, format_type(a.atttypid, a.atttypmod) AS type
      FROM unnest(:names, :schemas, :tables) AS asked (name, db_schema, tab)
      JOIN pg_namespace n ON n.nspname = asked.db_schema
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = asked.tab
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY asked.name, a.attnum
""").bindparams(*(sa.bindparam(name, type_=ARRAY(sa.Text)) for name in ("names", "schemas", "tables")))

STATES = sa.text("""
    SELECT m.name, m.fields, m.live_rows FROM lockstep.mirrors m WHERE m.name = ANY (:names)
""").bindparams(sa.bindparam("names", type_=ARRAY(sa.Text)))

# One look at an index for each source, instead of at all runs that there ever were.
RUNS = sa.text("""
    SELECT r.* FROM unnest(:sources) AS asked (source)
     CROSS JOIN LATERAL (SELECT id, source, mirror, status, started_at, finished_at FROM lockstep.runs r
                          WHERE r.source = asked.source ORDER BY r.id DESC LIMIT 1) r
""").bindparams(sa.bindparam("sources", type_=ARRAY(sa.Text)))


async def select_tables(database: Database, sources: Iterable[Source]) -> list[TableSummary]:
    """Return the mirrors of sources, by name; no row of theirs is counted for that."""
    by_mirror: dict[str, list[Source]] = {}
    for source in sources:
        by_mirror.setdefault(mirror_name(source), []).append(source)
    firsts = {name: those[0] for name, those in by_mirror.items()}
    asked = {
        "names": list(firsts),
        "schemas": [source.db_schema for source in firsts.values()],
        "tables": [source.table for source in firsts.values()],
    }
    columns: dict[str, dict[str, str]] = {name: {} for name in firsts}
    fields: dict[str, dict[str, str]] = {name: {} for name in firsts}
    live_rows = dict.fromkeys(firsts, 0)
    last_runs: dict[str, LastRun] = {}
    async with database.transaction() as session:
        for name, column, sql_type in await session.execute(COLUMNS, asked):
            columns[name][column] = sql_type
        for name, known, live in await session.execute(STATES, {"names": list(firsts)}):
            fields[name] |= {entry["column"]: field for field, entry in known.items()}
            live_rows[name] += live
        names = [source.name for those in by_mirror.values() for source in those]
        for row in await session.execute(RUNS, {"sources": names}):
            if row.mirror in firsts and (row.mirror not in last_runs or last_runs[row.mirror].run < row.id):
                last_runs[row.mirror] = _last_run(row)
    return [
        TableSummary(
            name=name,
            table=firsts[name].table,
            db_schema=firsts[name].db_schema,
            sources=tuple(source.name for source in those),
            key=tuple(column_name(field) for field in firsts[name].key),
            columns=_columns(columns[name], fields[name], firsts[name].key),
            live_rows=live_rows[name],
            last_run=last_runs.get(name),
        )
        for name, those in sorted(by_mirror.items())
    ]


def _last_run(row: sa.Row[Any]) -> LastRun:
    return LastRun(
        run=row.id, source=row.source, status=row.status, started_at=row.started_at, finished_at=row.finished_at
    )


def _columns(types: dict[str, str], fields: dict[str, str], key: Sequence[str]) -> tuple[TableColumn, ...]:
    keys = {column_name(field) for field in key}
    return tuple(
        TableColumn(name=name, type=sql_type, field=fields.get(name), is_key=name in keys)
        for name, sql_type in types.items()
        if name not in BOOKKEEPING
    )
