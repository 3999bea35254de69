# ruff: noqa: S608 (statements are made of constants and of names that SQLAlchemy has quoted)
"""Taking a run's changes back: what the journal says of it, what stands in the way, and the way back.

One temporary table takes part. It holds a row for every change of the run: the values that the mirror's row has now
(`found`) and those that it is to have (`wanted`, null if it is to be deleted), as JSON by field and without nulls. What
must not be undone is found in it before anything is written, and the journal's entries are read off it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from models import DELETED_AT, FINGERPRINT, UPDATED_AT, RunRow
from store.mirrors import Mirror

NAMED_ROWS = 10
"""How many of the rows that stand in the way are named."""

INVERSE = """
    CASE op WHEN 'updated' THEN 'updated' WHEN 'deleted' THEN CASE WHEN live IS NULL THEN 'created' ELSE 'restored' END
            ELSE 'deleted' END
"""
"""The opposite of a change; what was deleted without a tombstone has to be created."""

_quote = asyncpg.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


@dataclass(frozen=True, kw_only=True)
class Obstacles:
    """Rows that keep a run from being undone: how many there are, the first of them, and the later runs' numbers."""

    count: int
    keys: tuple[dict[str, Any], ...]
    runs: tuple[int, ...] = ()


async def select_undone(session: AsyncSession, mirror: str) -> dict[int, int]:
    """Return the runs of a mirror that are undone now, each with the run that undid it."""
    undoing = await session.execute(
        sa.select(RunRow.id, RunRow.undoes)
        .where(RunRow.mirror == mirror, RunRow.status == "succeeded", RunRow.undoes.is_not(None))
        .order_by(RunRow.id.desc())
    )
    return undone_by((run, undoes) for run, undoes in undoing if undoes is not None)


def undone_by(undoing: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Tell which runs are undone by which, given the runs that undid others, newest first, each with the other."""
    undone: dict[int, int] = {}
    for run, undoes in undoing:
        if run not in undone:
            undone[undoes] = run
    return undone


class Undo:
    """The statements that take one run back, in the transaction of the run that does it."""

    def __init__(self, mirror: Mirror, run: int, *, hard: bool = False) -> None:
        """Prepare to undo a run; `hard` says that deletions leave no tombstones."""
        self.mirror = mirror
        self.run = run
        self.hard = hard
        columns = {column.field: column.name for column in mirror.columns}
        self._values = {"run": run, "mirror": mirror.name, "names": msgspec.json.encode(columns).decode()}
        self._fields = columns.keys()
        self._table = _escape(mirror.qualified)
        self._keys = [_name(column) for column in mirror.key_columns]
        self._others = [_name(column) for field, column in columns.items() if field not in mirror.key]
        self._types = {column.name: column.sql_type for column in mirror.columns}

    async def select_lost_fields(self, session: AsyncSession) -> list[str]:
        """Return the fields that the run's changes speak of and that have no column any more."""
        query = sa.text("""
            SELECT DISTINCT f FROM lockstep.changes c, jsonb_object_keys(c.key || c.changes) f WHERE c.run = :run
        """)
        return sorted(set(await session.scalars(query, self._values)) - self._fields)

    async def prepare(self, session: AsyncSession) -> int:
        """Put the run's changes beside the rows they were made to; return how many there are."""
        # The key's columns have names of their own here, for in the mirror they may have those of the others.
        own = [f"key_{place}" for place in range(len(self._keys))]
        typed = ", ".join(f"{name} {self._types[key]}" for name, key in zip(own, self.mirror.key_columns, strict=True))
        await self._execute(
            session,
            f"CREATE TEMPORARY TABLE _lockstep_undo (seq bigint, op text, key jsonb, changes jsonb, {typed},"
            " live boolean, found jsonb, was jsonb, wanted jsonb) ON COMMIT DROP",
        )
        parts = ", ".join(f"(k).{key} AS {name}" for name, key in zip(own, self._keys, strict=True))
        is_there = f"m.{self._keys[0]} IS NOT NULL"
        await self._execute(
            session,
            f"""
            WITH c AS MATERIALIZED (
                SELECT seq, op, key, changes, {parts}, COALESCE({_side("changes", 0)}, '{{}}') AS was
                  FROM (SELECT c.*, jsonb_populate_record(NULL\\:\\:{self._table}, {_by_column("c.key")}) AS k
                          FROM lockstep.changes c WHERE c.run = :run) c)
            INSERT INTO _lockstep_undo (seq, op, key, changes, {", ".join(own)}, live, found, was)
            SELECT {", ".join(f"c.{name}" for name in ("seq", "op", "key", "changes", *own))},
                   CASE WHEN {is_there} THEN m.{_name(DELETED_AT)} IS NULL END, {_by_field("m")}, c.was
              FROM c LEFT JOIN {self._table} m ON {self._same_key("c")}
            """,
        )
        await self._execute(
            session,
            f"""
            UPDATE _lockstep_undo SET wanted = CASE op WHEN 'updated' THEN {_without_nulls("found || was")}
                                                       WHEN 'deleted' THEN {_without_nulls("was")} END
            """,
        )
        await self._execute(session, "ANALYZE _lockstep_undo")
        return await session.scalar(sa.text("SELECT count(*) FROM _lockstep_undo")) or 0

    async def select_touched_later(self, session: AsyncSession, undone: dict[int, int]) -> Obstacles:
        """Return the rows that later runs touched, other than those runs that were undone, and that undid them."""
        gone = {each for pair in undone.items() if min(pair) > self.run for each in pair}
        touched = """
              FROM _lockstep_undo mine JOIN lockstep.changes later ON later.key = mine.key
             WHERE later.mirror = :mirror AND later.seq > (SELECT max(seq) FROM _lockstep_undo)
               AND later.run <> ALL (:gone)
        """
        return await self._obstacles(session, touched, "array_agg(DISTINCT later.run)", gone=sorted(gone))

    async def select_edited(self, session: AsyncSession) -> Obstacles:
        """Return the rows that are not as the run left them, though no other run touched them."""
        edited = f"""
              FROM _lockstep_undo mine
             WHERE COALESCE(live = (op = 'deleted'), {"op <> 'deleted'" if self.hard else "true"})
                OR (op = 'created' AND found <> {_without_nulls(_side("changes", 1))})
                OR (op IN ('updated', 'restored') AND EXISTS (
                       SELECT FROM jsonb_each(changes) e WHERE COALESCE(found -> e.key, 'null') <> e.value -> 1))
        """
        return await self._obstacles(session, edited)

    async def apply(self, session: AsyncSession) -> dict[str, int]:
        """Take the changes back in the mirror; return how many rows were updated, restored and deleted by that."""
        stamps = f"{_name(FINGERPRINT)} = NULL, {_name(UPDATED_AT)} = now(), {_name(DELETED_AT)}"
        # What a deleted row had not is taken from it; what an update did not change is not touched.
        missing = "(SELECT jsonb_object_agg(f, NULL) FROM jsonb_object_keys(u.found) f)"
        target = f"CASE u.op WHEN 'deleted' THEN COALESCE({missing}, '{{}}') || u.was ELSE u.was END"
        names = ", ".join(self._others)
        record = f"jsonb_populate_record(m.*, {_by_column(target)})"
        values = f"({names}) = (SELECT {names} FROM {record} r), " if names else ""
        matching = f"FROM _lockstep_undo u WHERE {self._same_key('u')} AND u.wanted"
        await self._execute(session, f"UPDATE {self._table} m SET {values}{stamps} = NULL {matching} IS NOT NULL")
        if self.hard:
            await self._replace(session)
        else:
            await self._execute(session, f"UPDATE {self._table} m SET {stamps} = now() {matching} IS NULL")
        counted = await session.execute(sa.text(f"SELECT {INVERSE}, count(*) FROM _lockstep_undo GROUP BY 1"))
        return dict(counted.all())

    async def _replace(self, session: AsyncSession) -> None:
        """Insert rows of which nothing was left, remove those of which nothing is to be left."""
        names = ", ".join((*self._keys, *self._others))
        record = f"jsonb_populate_record(NULL\\:\\:{self._table}, {_by_column('u.was')})"
        await self._execute(
            session,
            f"""
            INSERT INTO {self._table} ({names})
            SELECT {names} FROM (SELECT (r).* FROM (SELECT {record} AS r FROM _lockstep_undo u
                                                     WHERE u.live IS NULL AND u.wanted IS NOT NULL) _) _
            """,
        )
        await self._execute(
            session,
            f"DELETE FROM {self._table} m USING _lockstep_undo u WHERE {self._same_key('u')} AND u.wanted IS NULL",
        )

    async def select_inexact(self, session: AsyncSession) -> Obstacles:
        """Return the rows that do not hold the values that they were given, because a column's type is another now."""
        inexact = f"""
              FROM _lockstep_undo mine JOIN {self._table} m ON {self._same_key("mine")}
             WHERE {_by_field("m")} <> COALESCE(mine.wanted, mine.found)
        """
        return await self._obstacles(session, inexact)

    def entries(self) -> sa.Subquery:
        """Return what was done as the journal takes it, like changes of any run."""
        pair = "jsonb_build_array(COALESCE(found -> f, 'null'), COALESCE(wanted -> f, 'null'))"
        query = f"""
            SELECT {INVERSE} AS op, key,
                   (SELECT COALESCE(jsonb_object_agg(f, {pair}), '{{}}')
                      FROM jsonb_object_keys(found || COALESCE(wanted, '{{}}')) f
                     WHERE found -> f IS DISTINCT FROM wanted -> f) AS changes
              FROM _lockstep_undo ORDER BY seq
        """
        return sa.text(query).columns(op=sa.Text, key=JSONB, changes=JSONB).subquery()

    async def _obstacles(
        self, session: AsyncSession, rows: str, runs: str = "CAST(NULL AS bigint[])", **values: object
    ) -> Obstacles:
        query = sa.text(f"""
            WITH o AS (SELECT mine.seq, mine.key, {runs} AS runs {rows} GROUP BY mine.seq, mine.key)
            SELECT count(*) AS rows,
                   (SELECT jsonb_agg(first.key) FROM (SELECT key FROM o ORDER BY seq LIMIT {NAMED_ROWS}) first) AS keys,
                   (SELECT array_agg(DISTINCT r ORDER BY r) FROM o, unnest(o.runs) r) AS runs
              FROM o
        """)
        if values:
            query = query.bindparams(sa.bindparam("gone", type_=ARRAY(sa.BigInteger)))
        typed = query.columns(rows=sa.BigInteger, keys=JSONB, runs=ARRAY(sa.BigInteger))
        found = (await session.execute(typed, {**self._values, **values})).one()
        return Obstacles(count=found.rows, keys=tuple(found.keys or ()), runs=tuple(found.runs or ()))

    def _same_key(self, undone: str) -> str:
        return " AND ".join(f"m.{key} = {undone}.key_{place}" for place, key in enumerate(self._keys))

    async def _execute(self, session: AsyncSession, statement: str, **values: object) -> None:
        await session.execute(sa.text(statement), {**self._values, **values})


def _escape(spelled: str) -> str:
    """Keep SQLAlchemy from taking a colon in a name for the beginning of a parameter."""
    return spelled.replace(":", r"\:")


def _name(column: str) -> str:
    return _escape(_quote(column))


def _by_column(fields: str) -> str:
    """Spell an object of fields as one of columns."""
    return (
        "(SELECT COALESCE(jsonb_object_agg(n.value, e.value), '{}') FROM jsonb_each("
        f"{fields}) e JOIN jsonb_each_text(CAST(:names AS jsonb)) n ON n.key = e.key)"
    )


def _by_field(row: str) -> str:
    """Spell a row of the mirror as an object of its source's fields, without nulls."""
    return (
        "(SELECT COALESCE(jsonb_object_agg(n.key, e.value), '{}') FROM jsonb_each(to_jsonb("
        f"{row}.*)) e JOIN jsonb_each_text(CAST(:names AS jsonb)) n ON n.value = e.key WHERE e.value <> 'null')"
    )


def _side(changes: str, side: int) -> str:
    """Spell the old values of a journal's entry (0), or the new ones (1), as an object of fields."""
    return f"(SELECT jsonb_object_agg(e.key, e.value -> {side:d}) FROM jsonb_each({changes}) e)"


def _without_nulls(fields: str) -> str:
    """Spell an object without the members that are null; jsonb_strip_nulls() would look into the others too."""
    return (
        "(SELECT COALESCE(jsonb_object_agg(e.key, e.value), '{}')"
        f" FROM jsonb_each({fields}) e WHERE e.value <> 'null')"
    )
