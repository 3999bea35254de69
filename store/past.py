# ruff: noqa: S608 (statements are made of constants and of names that SQLAlchemy has quoted)
"""A table as a run left it: the rows of the present, with the changes of later runs taken back.

What a field held then is the old value of the first later change that speaks of it, or else what it holds now. Whether
the row was there then is what the first later change says: one that created or restored it found none that was live.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from errors import BadRequest, NotFound
from models import DELETED_AT, ChangeRow, MirrorRow, RunRow, SqlType
from store.mirrors import Mirror

_quote = asyncpg.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


async def select_mirrored(session: AsyncSession, mirror: Mirror) -> dict[str, str]:
    """Return the columns that are the sources' by field: those that the journal speaks of."""
    known = await session.scalars(sa.select(MirrorRow.fields).where(MirrorRow.name == mirror.name))
    columns = {field: entry["column"] for fields in known for field, entry in fields.items()}
    return {field: column for field, column in columns.items() if column in mirror.types}


async def select_boundary(session: AsyncSession, mirror: Mirror, run: int) -> int:
    """Return the journal's last number that belongs to the table as a run left it.

    Raises NotFound if there is no such run, BadRequest if what it left cannot be told any more.
    """
    row = await session.get(RunRow, run)
    if row is None:
        raise NotFound(f"There is no run {run}.", remedy="GET /runs lists them.")
    if row.mirror != mirror.name:
        raise BadRequest(f"Run {run} was one of {row.mirror}, not of {mirror.name}.", remedy="GET /runs lists them.")
    if row.status == "running":
        raise BadRequest(f"Run {run} has not ended yet.", remedy="Ask again when it has.")
    await _demand_journal(session, mirror, run)
    own = sa.select(sa.func.max(ChangeRow.seq)).where(ChangeRow.run == run).scalar_subquery()
    earlier = sa.select(sa.func.max(ChangeRow.seq)).where(ChangeRow.mirror == mirror.name, ChangeRow.run < run)
    return await session.scalar(sa.select(sa.func.coalesce(own, earlier.scalar_subquery(), 0))) or 0


async def _demand_journal(session: AsyncSession, mirror: Mirror, run: int) -> None:
    """Raise BadRequest unless every change that later runs made is in the journal."""
    counts = (RunRow.created, RunRow.updated, RunRow.restored, RunRow.deleted)
    later = (RunRow.mirror == mirror.name, RunRow.id > run)
    loaded = await session.scalar(sa.select(sa.func.max(RunRow.id)).where(*later, RunRow.first_load))
    if loaded is not None:
        raise BadRequest(
            f"Run {loaded} was a first load of {mirror.name}, which the journal does not tell row by row, so nothing is"
            " known of the table before it.",
            remedy=f"Ask for the table as run {loaded} or a later one left it.",
        )
    made = sa.select(sa.func.coalesce(sa.func.sum(sum(counts[1:], counts[0])), 0)).where(*later).scalar_subquery()
    kept = sa.select(sa.func.count()).where(ChangeRow.mirror == mirror.name, ChangeRow.run > run).scalar_subquery()
    if not await session.scalar(sa.select(made == kept)):
        raise BadRequest(
            f"The journal does not have all changes any more that were made to {mirror.name} since run {run}.",
            remedy="Ask for a later run; what was removed from the journal cannot be taken back.",
        )


def rows_as_of(mirror: Mirror, mirrored: Mapping[str, str], boundary: int) -> sa.FromClause:
    """Return the live rows of a table as they were when the journal had come to `boundary`."""
    columns = list(mirrored.values())
    names = {"names": msgspec.json.encode(dict(mirrored)).decode()}
    query = sa.text(_past(mirror, columns)).bindparams(
        sa.bindparam("mirror", mirror.name, sa.Text),
        sa.bindparam("boundary", boundary, sa.BigInteger),
        sa.bindparam("names", names["names"], sa.Text),
    )
    return query.columns(*(sa.column(name, SqlType(mirror.types[name])) for name in columns)).subquery("_lockstep_past")


def _past(mirror: Mirror, columns: list[str]) -> str:
    table = _escape(mirror.qualified)
    same_key = " AND ".join(f"m.{_name(key)} = (b.k).{_name(key)}" for key in mirror.key_columns)
    return f"""
        WITH later AS MATERIALIZED (
            SELECT c.key, min(c.seq) AS first,
                   COALESCE(jsonb_object_agg(n.value, e.value -> 0 ORDER BY c.seq DESC)
                            FILTER (WHERE n.value IS NOT NULL), '{{}}') AS was
              FROM lockstep.changes c
              LEFT JOIN LATERAL jsonb_each(c.changes) e ON true
              LEFT JOIN jsonb_each_text(CAST(:names AS jsonb)) n ON n.key = e.key
             WHERE c.mirror = :mirror AND c.seq > :boundary
             GROUP BY c.key),
        before AS MATERIALIZED (
            SELECT c.op IN ('updated', 'deleted') AS was_live, l.was || k.by_column AS was,
                   jsonb_populate_record(CAST(NULL AS {table}), k.by_column) AS k
              FROM later l JOIN lockstep.changes c ON c.seq = l.first
             CROSS JOIN LATERAL (
                SELECT jsonb_object_agg(n.value, e.value) AS by_column FROM jsonb_each(l.key) e
                  JOIN jsonb_each_text(CAST(:names AS jsonb)) n ON n.key = e.key) k)
        SELECT {", ".join(f"m.{_name(name)}" for name in columns)}
          FROM {table} m
         WHERE m.{_name(DELETED_AT)} IS NULL AND NOT EXISTS (SELECT FROM before b WHERE {same_key})
         UNION ALL
        SELECT {", ".join(f"r.{_name(name)}" for name in columns)}
          FROM before b LEFT JOIN {table} m ON {same_key}
         CROSS JOIN LATERAL jsonb_populate_record(m.*, b.was) r
         WHERE b.was_live
    """


def _name(column: str) -> str:
    return _escape(_quote(column))


def _escape(spelled: str) -> str:
    """Keep SQLAlchemy from taking a colon in a name for the beginning of a parameter."""
    return spelled.replace(":", r"\:")
