"""Reading a mirror: what it holds now or held once, by pages, as a stream, and row by row.

All that is read of a table for one answer is read from one snapshot of the database, the ETag included.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from definitions import Source
from errors import BadRequest, DatabaseContended, DatabaseError, DatabaseRefused, NotFound
from models import BOOKKEEPING, DELETED_AT, mirror_table
from store.clauses import Clauses, ReadColumn, as_json, as_texts, order_by, same_key, write_cursor
from store.database import Database, detail, driver_connection, sqlstate
from store.mirrors import Mirror, select_mirror
from store.past import rows_as_of, select_boundary, select_mirrored
from store.query import Condition, Field, Ordering, Query, Shown

STATEMENT_SECONDS = 60
"""How long PostgreSQL may take for a page, or for the next rows of a stream."""
BATCH_BYTES = 256 * 2**10
"""About how much is fetched at a time."""
FIRST_BATCH, GROWTH, MOST_AT_ONCE = 10, 8, 2_000
"""How many rows are fetched at a time, while it is not known yet how large they are and then."""
PAGE_BYTES = 32 * 2**20
"""At about this size a page ends, whatever its limit."""
LONGEST_CURSOR = 6_000
"""Characters; it has to fit into the address of the next page."""
MOST_LOOKS = 5
NEAR_KEYS = 2
INCOMPARABLE = "42883", "42P22"
"""SQLSTATEs: a type has no such operator, or texts no common collation."""
TOO_SLOW = "57014"

SETTINGS = {
    "transaction_read_only": "on",
    # How values are spelled must not depend on how the server was set up.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}

COLUMNS = sa.text("""
    SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS sql_type,
           format_type(a.atttypid, -1) AS bare_type, t.typcategory::text AS category, a.attnotnull AS not_null
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
      JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = :db_schema AND c.relname = :table AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attnum
""")
# The catalogue tells which file a table was in when the transaction began, the function in which it is now.
STATE = sa.text("""
    WITH files AS (
        SELECT c.relfilenode AS seen, pg_relation_filenode(c.oid) AS present
          FROM pg_class m JOIN pg_namespace n ON n.oid = m.relnamespace
         CROSS JOIN LATERAL (SELECT m.oid UNION SELECT p.relid FROM pg_partition_tree(m.oid) p) parts (oid)
          JOIN pg_class c ON c.oid = parts.oid
         WHERE n.nspname = :db_schema AND m.relname = :table AND c.relkind = 'r')
    SELECT (SELECT string_agg(m::text, ' ' ORDER BY m::text) FROM lockstep.mirrors m WHERE m.name = :name) AS known,
           (SELECT string_agg(w::text, ' ' ORDER BY w::text) FROM lockstep.foreign_writes w
             WHERE w.mirror = :name) AS edits,
           (SELECT string_agg(seen::text, ' ' ORDER BY seen) FROM files) AS files,
           EXISTS (SELECT FROM files WHERE seen IS DISTINCT FROM present) AS was_rewritten
""")

_dialect = asyncpg.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped

Row = Sequence[str | None]
"""A row as it is shown: one JSON text, or a text for each of its fields."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some rows, and the cursor of what comes after them, if anything does."""

    rows: Sequence[Row]
    next: str | None


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How many rows there are in all, and how many of them stand before a page."""

    total: int
    before: int


class Reading:
    """What is asked of a snapshot, checked; rows are read as JSON texts, or as a text for each field."""

    def __init__(
        self, session: AsyncSession, clauses: Clauses, query: Query, *conditions: sa.ColumnElement[bool]
    ) -> None:
        self._session = session
        self._clauses = clauses
        self._shown = clauses.shown(query)
        self._terms = clauses.terms(query)
        self._conditions = [*conditions, *map(clauses.condition, query.filters)]
        self._after = [] if query.after is None else [clauses.after(self._terms, query.after)]
        self._parts = [clauses.part(item.field) for item in self._shown]

    @property
    def names(self) -> list[str]:
        """The names of the fields that are shown."""
        return [item.name for item in self._shown]

    @property
    def are_texts(self) -> list[bool]:
        """Which of the fields hold text, and not numbers, truths or JSON."""
        return [part.is_text for part in self._parts]

    async def page(self, limit: int, *, json: bool) -> Page:
        """Return the first rows: at most `limit`, and fewer where they come to PAGE_BYTES."""
        ends = [sa.cast(term.part.value, sa.Text) for term in self._terms]
        width = -len(ends)
        rows: list[Row] = []
        size = 0
        # One more than is shown tells whether there is a next page.
        async for batch in self._batches(self.statement(*ends, json=json).limit(limit + 1)):
            for row in batch:
                if len(rows) == limit or size >= PAGE_BYTES:
                    return Page(rows=[shown[:width] for shown in rows], next=self._end(rows[-1][width:]))
                rows.append(tuple(row))
                size += _size(row)
        return Page(rows=[shown[:width] for shown in rows], next=None)

    def _end(self, values: Row) -> str:
        cursor = write_cursor(self._terms, values)
        if len(cursor) > LONGEST_CURSOR:
            raise BadRequest(
                "The values that rows are ordered by are too long to tell where a page ends.",
                remedy="Order by shorter columns, or ask for format=ndjson or format=csv without a limit for all rows.",
            )
        return cursor

    async def extent(self) -> Extent:
        """Count the rows on all pages, and on those before this one."""
        count = sa.func.count()
        remaining = sa.func.count().filter(*self._after)
        counted = sa.select(count, remaining).select_from(self._clauses.rows).where(*self._conditions)
        total, left = (await self._session.execute(counted)).one()
        return Extent(total=total, before=total - left)

    def stream(self, *, json: bool) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows, a batch at a time."""
        return self._batches(self.statement(json=json))

    async def _batches(self, statement: sa.Select[Any]) -> AsyncIterator[Sequence[Row]]:
        """Yield the rows of a statement; no batch is much larger than BATCH_BYTES unless single rows are."""
        cursor = await _open_cursor(self._session, statement)
        count = FIRST_BATCH
        while rows := await cursor.fetch(count):
            yield rows
            mean = max(1, sum(map(_size, rows)) // len(rows))
            count = max(1, min(MOST_AT_ONCE, GROWTH * count, BATCH_BYTES // mean))

    def statement(self, *more: sa.ColumnElement[Any], json: bool) -> sa.Select[Any]:
        """Return the query for the rows that are asked for, in order, and for what `more` is of each."""
        rows = self._clauses.rows
        if json:
            text, joined = as_json(self._clauses, self._shown)
            statement = sa.select(text, *more).select_from(rows.join(joined, sa.true()))
        else:
            statement = sa.select(*as_texts(self._parts), *more).select_from(rows)
        return statement.where(*self._conditions, *self._after).order_by(*order_by(self._terms))


def _size(row: Row) -> int:
    return sum(len(text) for text in row if text is not None)


async def _open_cursor(session: AsyncSession, statement: sa.Select[Any]) -> Any:
    """Run a query of which the rows stay with the server until they are fetched.

    SQLAlchemy's own way fetches 50 rows at least, which are too many where each has megabytes.
    """
    compiled = statement.compile(dialect=_dialect)
    values = [compiled.params[name] for name in getattr(compiled, "positiontup", None) or ()]
    driver = await driver_connection(session)
    # Nameless, as all statements are: see store/database.py.
    prepared = await driver.prepare(str(compiled), name="")
    return await prepared.cursor(*values)


class Snapshot:
    """A table at one moment."""

    def __init__(self, session: AsyncSession, mirror: Mirror, columns: dict[str, ReadColumn], version: str) -> None:
        self._session = session
        self._mirror = mirror
        self._columns = columns
        self._version = version

    @property
    def table(self) -> str:
        """The table's name, schema first."""
        return self._mirror.name

    @property
    def version(self) -> str | None:
        """A digest that is another one whenever rows could have changed; None where nobody would tell."""
        return self._version if self._mirror.watched else None

    async def read(self, query: Query) -> Reading:
        """Check what is asked for; BadRequest says what of it cannot be."""
        clauses = await self._clauses(query)
        reading = Reading(self._session, clauses, query, *self._alive(clauses, query))
        misfit = await self._misfit(clauses)
        if misfit is not None:
            value, spelled, field = misfit
            raise BadRequest(
                f"{value[:100]!r} is no {spelled}, which {field} of {self.table} is.",
                remedy="Compare it with a value of this type.",
            )
        return reading

    async def select_row(self, key: Sequence[str], query: Query, *, json: bool) -> tuple[Reading, Row] | None:
        """Return one row; `key` are the values of its key's fields, as text. None if there is no such row."""
        clauses = await self._clauses(query)
        if len(key) != len(clauses.key) or any("\0" in part for part in key):
            return None
        same = same_key(clauses, key)
        reading = Reading(self._session, clauses, query, *same, *self._alive(clauses, query))
        if await self._misfit(clauses) is not None:
            return None
        found = await reading.page(1, json=json)
        return (reading, found.rows[0]) if found.rows else None

    async def select_near(self, key: Sequence[str]) -> list[str]:
        """Return keys of live rows that come just before and after one that does not exist; none if it never could."""
        clauses = await self._clauses(Query())
        if len(key) != 1 or len(clauses.key) != 1 or "\0" in key[0]:
            return []
        field = Field(column=clauses.key[0])
        sides = [Condition(field=field, operator=operator, values=(key[0],)) for operator in ("lt", "gt")]
        orders = [Ordering(field=field, descending=True), Ordering(field=field)]
        near: list[str] = []
        for side, order in zip(sides, orders, strict=True):
            query = Query(shown=(Shown(field=field, name="key"),), filters=(side,), ordering=(order,))
            reading = Reading(self._session, clauses, query, *self._alive(clauses, query))
            if await self._misfit(clauses) is not None:
                return []
            near += [row[0] for row in (await reading.page(NEAR_KEYS, json=False)).rows if row[0] is not None]
        return near

    async def _clauses(self, query: Query) -> Clauses:
        key = self._mirror.key_columns
        if query.as_of is None:
            types = {name: column.sql_type for name, column in self._columns.items() if name not in BOOKKEEPING}
            table = mirror_table(self._mirror.table, self._mirror.db_schema, types).alias("_lockstep_table")
            return Clauses(table, self._columns, key, self.table)
        if query.deleted != "exclude":
            raise BadRequest(
                "Of the past only those rows are known that were live.", remedy="Leave out deleted, or as_of."
            )
        boundary = await select_boundary(self._session, self._mirror, query.as_of)
        mirrored = await select_mirrored(self._session, self._mirror)
        columns = {name: column for name, column in self._columns.items() if name in mirrored.values()}
        rows = rows_as_of(self._mirror, mirrored, boundary)
        return Clauses(rows, columns, key, f"{self.table} as of run {query.as_of}")

    def _alive(self, clauses: Clauses, query: Query) -> list[sa.ColumnElement[bool]]:
        if query.as_of is not None or query.deleted == "include":
            return []
        deleted_at = clauses.rows.c[DELETED_AT]
        return [deleted_at.is_(None) if query.deleted == "exclude" else deleted_at.is_not(None)]

    async def _misfit(self, clauses: Clauses) -> tuple[str, str, str] | None:
        """Return the first of the values that is none of its type: the value, the type, and the field that has it."""
        if not clauses.casts:
            return None
        values, types, _ = zip(*clauses.casts, strict=True)
        both = sa.func.unnest(sa.literal(list(values), ARRAY(sa.Text)), sa.literal(list(types), ARRAY(sa.Text)))
        asked = both.table_valued("value", "type", with_ordinality="place", name="asked").render_derived()
        fits = sa.func.coalesce(sa.func.lockstep.fits(asked.c.value, asked.c.type), sa.false())
        first = sa.select(asked.c.place).where(sa.not_(fits)).order_by(asked.c.place).limit(1)
        place = await self._session.scalar(first)
        return None if place is None else clauses.casts[place - 1]


def most_exports(database: Database) -> int:
    """Return how many connections long reads may hold, so that there are some left for everything else."""
    pool: Any = database.engine.pool
    return max(1, int(pool.size()) // 2)


@asynccontextmanager
async def open_snapshot(database: Database, source: Source) -> AsyncIterator[Snapshot]:
    """Look at a source's table as it is now, for as long as the block lasts.

    Raises NotFound before the first run; BadRequest if what is asked for cannot be compared; DatabaseError.
    """
    try:
        for _ in range(MOST_LOOKS):
            async with database.transaction(isolation="REPEATABLE READ") as session:
                snapshot = await look(session, source)
                if snapshot is not None:
                    yield snapshot
                    return
        raise DatabaseContended(
            f"Table {source.db_schema}.{source.table} is being rewritten all the time.", remedy="Try again later."
        )
    except DatabaseError as error:
        raise _readers_error(error) from error


async def look(session: AsyncSession, source: Source) -> Snapshot | None:
    """Return a source's table as a transaction sees it; None if it was rewritten after the transaction had begun.

    PostgreSQL shows a rewritten table as empty to whoever looked before (documentation, "Caveats" of concurrency
    control). The mirror has been read from, and so been locked against that, once its state is compared.
    """
    await _prepare(session)
    mirror = await select_mirror(session, source)
    if not mirror.is_adopted:
        raise NotFound(f"Table {mirror.name} does not exist yet.", remedy="Sync once; that makes it.")
    names = {"name": mirror.name, "db_schema": mirror.db_schema, "table": mirror.table}
    state = (await session.execute(STATE, names)).one()
    if state.was_rewritten:
        return None
    found = (await session.execute(COLUMNS, names)).mappings()
    columns = {row["name"]: ReadColumn(**row) for row in found}
    return Snapshot(session, mirror, columns, _version(columns, state))


async def _prepare(session: AsyncSession) -> None:
    """Let the transaction read only, and not for ever."""
    given = sa.cast(sa.func.current_setting("statement_timeout"), sa.Interval)
    most = sa.cast(sa.literal(f"{STATEMENT_SECONDS}s", sa.Text), sa.Interval)
    none = sa.cast(sa.literal("0", sa.Text), sa.Interval)
    limit = sa.func.least(sa.func.nullif(given, none), most)
    milliseconds = sa.cast(sa.func.round(sa.extract("epoch", limit) * 1000), sa.Text)
    settings = [sa.func.set_config(name, value, True) for name, value in SETTINGS.items()]
    await session.execute(sa.select(sa.func.set_config("statement_timeout", milliseconds, True), *settings))


def _version(columns: dict[str, ReadColumn], state: sa.Row[Any]) -> str:
    spelled = [*columns.values(), *state]
    return hashlib.blake2s("\n".join(map(str, spelled)).encode(errors="replace"), digest_size=16).hexdigest()


def _readers_error(error: DatabaseError) -> DatabaseError | BadRequest:
    """Return the error as it concerns somebody who reads."""
    cause = error.__cause__
    state = sqlstate(cause) if cause is not None else ""
    if state in INCOMPARABLE:
        return BadRequest(
            f"The database cannot compare what it was asked to: {detail(cause or error)}.",
            remedy="Filter by another operator, or order by another column.",
        )
    if state == TOO_SLOW:
        return DatabaseRefused(
            f"Reading took longer than {STATEMENT_SECONDS} seconds, or was cancelled.",
            remedy="Ask for less: filter by the key or an indexed column, and leave out an order that has no index.",
        )
    return error
