"""From staged records to a changed mirror: stage, compare, apply, journal; all of it in the run's one transaction.

Three temporary tables take part. The *stage* holds the records that were decoded. The *marked* fingerprints tell which
live rows the snapshot does not contain. The *differences* hold one row for every row of the mirror that has to change,
ready for the journal: they are all that a plan needs, and what the guard decides on, before anything is written.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

from columns import Column
from models import DELETED_AT, FINGERPRINT, UPDATED_AT, Difference, SqlType, mirror_table
from store.database import driver_connection
from store.mirrors import Mirror
from store.shapes import widened
from values import fit_for

POSITION = "_sync_position"
OPERATION = "_sync_op"
KEY = "_sync_key"
CHANGES = "_sync_changes"

STAGE = "_lockstep_stage"
DIFFERENCES = "_lockstep_differences"
MARKED = "_lockstep_marked"
PROTECTED = "_lockstep_protected"

_dialect = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped

MAX_ARGUMENTS = 90
"""PostgreSQL's functions take 100 arguments at most."""


class Staging:
    """The temporary tables of one run, and the statements between them and the mirror."""

    def __init__(self, mirror: Mirror, columns: Sequence[Column], *, marked_are_seen: bool | None) -> None:
        """Describe the tables; `marked_are_seen` says what marked fingerprints mean, None that there are none."""
        self.mirror = mirror
        self.columns = tuple(columns)
        self.marked_are_seen = marked_are_seen
        self._key_names = mirror.key_columns
        self._protects = False
        self.table, self.stage, self.differences, self.marked, self.protected = _tables(
            mirror.table, mirror.db_schema, self._key_names, self.columns
        )

    async def create(self, session: AsyncSession) -> None:
        """Create the temporary tables that are sure to be needed; they vanish with the transaction."""
        marked = [] if self.marked_are_seen is None else [self.marked]
        await _create(session, self.stage, self.differences, *marked)

    async def copy_marked(self, session: AsyncSession, copied: bytes) -> None:
        """Take marked fingerprints in, as a binary COPY."""
        driver = await driver_connection(session)
        await driver.copy_to_table(MARKED, source=_once(copied), format="binary")

    async def copy_protected(self, session: AsyncSession, keys: Sequence[Sequence[Any]]) -> None:
        """Take in the keys of rejected records."""
        await _create(session, self.protected)
        self._protects = True
        driver = await driver_connection(session)
        await driver.copy_records_to_table(PROTECTED, records=keys, columns=self._key_names)

    async def copy_stage(self, session: AsyncSession, rows: AsyncIterable[Sequence[Any]]) -> None:
        """Take in decoded records: their columns' values, position and fingerprint."""
        names = [column.name for column in self.columns]
        driver = await driver_connection(session)
        await driver.copy_records_to_table(STAGE, records=rows, columns=[*names, POSITION, FINGERPRINT])

    async def analyze(self, session: AsyncSession) -> None:
        """Tell the planner what the stage holds; nobody else would."""
        await (await session.connection()).exec_driver_sql(f"ANALYZE {STAGE}")

    async def delete_staged_duplicates(self, session: AsyncSession) -> list[tuple[int, dict[str, Any]]]:
        """Keep the last of the staged records that share a key; return position and key of the others."""
        following = sa.func.lead(self.stage.c[POSITION]).over(
            partition_by=[self.stage.c[name] for name in self._key_names], order_by=self.stage.c[POSITION]
        )
        ranked = sa.select(self.stage.c[POSITION], following.label("following")).subquery()
        surplus = sa.select(ranked.c[POSITION]).where(ranked.c.following.is_not(None))
        deleted = await session.execute(
            sa.delete(self.stage)
            .where(self.stage.c[POSITION].in_(surplus))
            .returning(self.stage.c[POSITION], self._key_json(self.stage))
        )
        return sorted(((position, key) for position, key in deleted), key=lambda entry: entry[0])

    async def select_seen_twins(self, session: AsyncSession) -> list[tuple[int, bytes, dict[str, Any]]]:
        """Return staged records whose row's present fingerprint was seen too: two records with one key.

        Position of the staged one, fingerprint of the other, key. There is nothing to find unless fingerprints were
        known, and then only among the rows whose fingerprints were seen.
        """
        if self.marked_are_seen is None or not self.mirror.is_adopted:
            return []
        seen = self._is_marked() if self.marked_are_seen else sa.not_(self._is_marked())
        query = (
            sa.select(self.stage.c[POSITION], self.table.c[FINGERPRINT], self._key_json(self.stage))
            .select_from(self.stage)
            .join(self.table, self._same_key(self.stage, self.table))
            .where(self.table.c[DELETED_AT].is_(None), self.table.c[FINGERPRINT].is_not(None), seen)
        )
        return [(position, fingerprint.bytes, key) for position, fingerprint, key in await session.execute(query)]

    async def delete_staged(self, session: AsyncSession, positions: Iterable[int]) -> None:
        """Take records back out of the stage."""
        await session.execute(sa.delete(self.stage).where(self.stage.c[POSITION].in_(list(positions))))

    async def select_uncastable(self, session: AsyncSession) -> tuple[Column, dict[str, Any], str] | None:
        """Return the first value that a column of a type unknown to Lockstep does not take: column, key, value."""
        for column in self.columns:
            if not fit_for(column.sql_type).by_cast:
                continue
            value = self.stage.c[column.name]
            query = sa.select(self._key_json(self.stage), value).where(
                value.is_not(None), sa.not_(sa.func.lockstep.fits(value, sa.literal(column.sql_type)))
            )
            found = (await session.execute(query.order_by(self.stage.c[POSITION]).limit(1))).one_or_none()
            if found is not None:
                return column, found[0], found[1]
        return None

    async def insert_upserts(self, session: AsyncSession) -> None:
        """Find the rows to create, update or restore."""
        if not self.mirror.has_rows:
            await self._insert_differences(session, self.stage, sa.literal("created"), self.stage, lambda _: sa.null())
            return
        absent = self.table.c[self._key_names[0]].is_(None)
        buried = self._deleted_at().is_not(None)
        operation = sa.case((absent, "created"), (buried, "restored"), else_="updated")
        joined = self.stage.outerjoin(self.table, self._same_key(self.stage, self.table))
        differs = sa.or_(absent, buried, *(self._differs(column) for column in self.columns))
        await self._insert_differences(session, joined, operation, self.stage, self._stored, differs)

    async def insert_deletions(self, session: AsyncSession, *, some_lack_fingerprints: bool) -> None:
        """Find the live rows that the snapshot does not contain, but for those of rejected records."""
        if not self.mirror.has_rows:
            return
        ours = self.mirror.within(self.table)
        vanished: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.marked_are_seen is True:
            vanished = [sa.not_(self._is_marked())]
        elif self.marked_are_seen is False:
            # Two statements, because PostgreSQL joins either condition fast, but not one or the other.
            vanished = [self._is_marked()]
            if some_lack_fingerprints:
                vanished.append(self.table.c[FINGERPRINT].is_(None))
        kept_by = (self.stage, self.protected) if self._protects else (self.stage,)
        elsewhere = [sa.not_(self._has_key_in(table)) for table in kept_by]
        for condition in vanished:
            await self._insert_differences(
                session,
                self.table,
                sa.literal("deleted"),
                self.table,
                self._stored,
                self._deleted_at().is_(None),
                condition,
                *ours,
                *elsewhere,
                gone=True,
            )

    async def delete_deletions(self, session: AsyncSession) -> None:
        """Withhold the deletions that were found."""
        await session.execute(sa.delete(self.differences).where(self.differences.c[OPERATION] == "deleted"))

    async def count(self, session: AsyncSession) -> dict[str, int]:
        """Count the differences by operation."""
        operation = self.differences.c[OPERATION]
        counted = await session.execute(sa.select(operation, sa.func.count()).group_by(operation))
        return dict(counted.all())

    async def hash(self, session: AsyncSession) -> str:
        """Return a digest of all differences that does not depend on their order."""
        spelled = sa.func.concat(
            self.differences.c[OPERATION],
            self.differences.c[KEY].cast(sa.Text),
            self.differences.c[CHANGES].cast(sa.Text),
        )
        total = sa.func.coalesce(sa.func.sum(sa.cast(sa.func.hashtextextended(spelled, 0), sa.Numeric)), 0)
        count, value = (await session.execute(sa.select(sa.func.count(), total).select_from(self.differences))).one()
        return f"{count:x}-{int(value) % 2**64:016x}"

    async def select(self, session: AsyncSession, limit: int) -> tuple[Difference, ...]:
        """Return the first differences, ordered by operation and key."""
        table = self.differences
        query = (
            sa.select(table.c[KEY], table.c[OPERATION], table.c[CHANGES])
            .order_by(table.c[OPERATION], table.c[KEY])
            .limit(limit)
        )
        return tuple(
            Difference(key=key, op=op, changes={name: (old, new) for name, (old, new) in changes.items()})
            for key, op, changes in await session.execute(query)
        )

    async def apply(self, session: AsyncSession, counts: dict[str, int], *, hard: bool) -> None:
        """Write the differences to the mirror, whose table has all columns by now; `hard` leaves no tombstones."""
        values = {column.name: self._staged(column) for column in self.columns}
        stamps = {FINGERPRINT: self.stage.c[FINGERPRINT], UPDATED_AT: sa.func.now(), DELETED_AT: sa.null()}
        if counts.get("updated") or counts.get("restored"):
            kept = {name: value for name, value in values.items() if name not in self._key_names}
            differs = [self._differs(column, altered=True) for column in self.columns]
            await session.execute(
                sa.update(self.table)
                .values({**kept, **stamps})
                .where(
                    self._same_key(self.stage, self.table),
                    sa.or_(self.table.c[DELETED_AT].is_not(None), *differs),
                )
            )
        if counts.get("created"):
            chosen = sa.select(*values.values(), self.stage.c[FINGERPRINT])
            if self.mirror.has_rows:
                chosen = chosen.where(sa.not_(self._has_key_in_mirror()))
            await session.execute(sa.insert(self.table).from_select([*values, FINGERPRINT], chosen))
        if counts.get("deleted"):
            bury = sa.update(self.table).values({DELETED_AT: sa.func.now(), UPDATED_AT: sa.func.now()})
            remove = sa.delete(self.table) if hard else bury
            gone = self.differences.c[OPERATION] == "deleted"
            await session.execute(remove.where(self._same_key(self.differences, self.table), gone))

    async def update_fingerprints(self, session: AsyncSession, *, all_rows: bool) -> None:
        """Store fingerprints with rows that have none; with `all_rows`, replace those of another kind as well."""
        stored, staged = self.table.c[FINGERPRINT], self.stage.c[FINGERPRINT]
        stale = stored.is_distinct_from(staged) if all_rows else stored.is_(None)
        await session.execute(
            sa.update(self.table)
            .values({FINGERPRINT: staged})
            .where(self._same_key(self.stage, self.table), self.table.c[DELETED_AT].is_(None), stale)
        )

    def entries(self) -> sa.Subquery:
        """Return the differences as the journal takes them."""
        columns = self.differences.c
        return sa.select(
            columns[OPERATION].label("op"), columns[KEY].label("key"), columns[CHANGES].label("changes")
        ).subquery()

    async def _insert_differences(
        self,
        session: AsyncSession,
        rows: sa.FromClause,
        operation: sa.ColumnElement[Any],
        keys: sa.Table,
        stored: Callable[[Column], sa.ColumnElement[Any]],
        *conditions: sa.ColumnElement[bool],
        gone: bool = False,
    ) -> None:
        pairs = []
        for column in self.columns:
            old = stored(column)
            new = sa.null() if gone else self._staged(column)
            differs = old.is_not(None) if gone else _distinct(column, old, new)
            pair = sa.cast(sa.func.json_build_array(old, new), sa.Text)
            pairs.append(sa.case((differs, sa.literal(_json_name(column.field)).concat(pair))))
        changes = sa.cast(sa.func.concat("{", _joined(pairs), "}"), postgresql.JSONB)
        names = [*self._key_names, OPERATION, KEY, CHANGES]
        chosen = sa.select(
            *(_as_staged(keys.c[name], self.stage) for name in self._key_names),
            operation,
            self._key_json(keys),
            changes,
        ).select_from(rows)
        await session.execute(sa.insert(self.differences).from_select(names, chosen.where(*conditions)))

    def _staged(self, column: Column) -> sa.ColumnElement[Any]:
        """The staged value of a column, as the mirror takes it."""
        value = self.stage.c[column.name]
        return sa.cast(value, SqlType(column.sql_type)) if fit_for(column.sql_type).by_cast else value

    def _stored(self, column: Column) -> sa.ColumnElement[Any]:
        """The mirror's value of a column, in the type that it is to have."""
        have = self.mirror.types.get(column.name)
        if have is None:
            return sa.null()
        value = self.table.c[column.name]
        if have == column.sql_type:
            return value
        return widened(value, have, column.sql_type)

    def _deleted_at(self) -> sa.ColumnElement[Any]:
        return self.table.c[DELETED_AT] if self.mirror.has_tombstones else sa.null()

    def _differs(self, column: Column, *, altered: bool = False) -> sa.ColumnElement[bool]:
        stored = self.table.c[column.name] if altered else self._stored(column)
        return _distinct(column, stored, self._staged(column))

    def _same_key(self, one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
        """Whether rows have the same key; of the mirror's, only those of the source can."""
        ours = self.mirror.within(self.table) if self.table in (one, other) else []
        return sa.and_(*(self._key_of(one, name) == self._key_of(other, name) for name in self._key_names), *ours)

    def _key_of(self, table: sa.Table, name: str) -> sa.ColumnElement[Any]:
        """A key column, cast where it travels as text but is none."""
        sql_type = next(column.sql_type for column in self.columns if column.name == name)
        if table is self.table or not fit_for(sql_type).by_cast:
            return table.c[name]
        return sa.cast(table.c[name], SqlType(sql_type))

    def _has_key_in(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.exists(sa.select(1).select_from(table).where(self._same_key(table, self.table)))

    def _has_key_in_mirror(self) -> sa.ColumnElement[bool]:
        return sa.exists(sa.select(1).select_from(self.table).where(self._same_key(self.stage, self.table)))

    def _is_marked(self) -> sa.ColumnElement[bool]:
        same = self.marked.c[FINGERPRINT] == self.table.c[FINGERPRINT]
        return sa.exists(sa.select(1).select_from(self.marked).where(same))

    def _key_json(self, table: sa.Table) -> sa.ColumnElement[Any]:
        fields = {column.name: column.field for column in self.columns}
        pairs = [part for name in self._key_names for part in (sa.literal(fields[name]), table.c[name])]
        return sa.func.jsonb_build_object(*pairs, type_=postgresql.JSONB)


@lru_cache(maxsize=128)
def _tables(
    table: str, db_schema: str, key_names: tuple[str, ...], columns: tuple[Column, ...]
) -> tuple[sa.Table, sa.Table, sa.Table, sa.Table, sa.Table]:
    """Build the mirror's table and the temporary ones; the same objects each time, so that statements stay compiled."""
    staged = {column.name: fit_for(column.sql_type).staged_as for column in columns}
    key = {name: staged[name] for name in key_names}
    return (
        mirror_table(table, db_schema, {column.name: column.sql_type for column in columns}),
        _temporary(STAGE, staged, sa.Column(POSITION, sa.BigInteger), sa.Column(FINGERPRINT, sa.Uuid)),
        _temporary(
            DIFFERENCES,
            key,
            sa.Column(OPERATION, sa.Text),
            sa.Column(KEY, postgresql.JSONB),
            sa.Column(CHANGES, postgresql.JSONB),
        ),
        _temporary(MARKED, {}, sa.Column(FINGERPRINT, sa.Uuid)),
        _temporary(PROTECTED, key),
    )


async def _create(session: AsyncSession, *tables: sa.Table) -> None:
    """Create tables in one go; not by SQLAlchemy, which has all connections forget all types after that."""
    await (await driver_connection(session)).execute(";".join(map(_creation, tables)))


@lru_cache(maxsize=512)
def _creation(table: sa.Table) -> str:
    return str(CreateTable(table).compile(dialect=_dialect))


def _temporary(name: str, sql_types: dict[str, str], *others: sa.Column[Any]) -> sa.Table:
    columns = [sa.Column(column, SqlType(sql_type)) for column, sql_type in sql_types.items()]
    return sa.Table(name, sa.MetaData(), *columns, *others, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")


def _distinct(column: Column, old: sa.ColumnElement[Any], new: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Whether two values differ; types whose equality is missing or too lenient are compared as text."""
    if column.sql_type == "json":
        return sa.cast(old, postgresql.JSONB).is_distinct_from(sa.cast(new, postgresql.JSONB))
    if fit_for(column.sql_type).by_cast:
        return sa.cast(old, sa.Text).is_distinct_from(sa.cast(new, sa.Text))
    return old.is_distinct_from(new)


def _as_staged(key: sa.ColumnElement[Any], stage: sa.Table) -> sa.ColumnElement[Any]:
    return sa.cast(key, stage.c[key.name].type) if key.table is not stage else key


def _joined(pairs: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[Any]:
    """Join those that are not null with commas; in groups, because functions take so many arguments only."""
    while len(pairs) > MAX_ARGUMENTS:
        groups = [pairs[start : start + MAX_ARGUMENTS] for start in range(0, len(pairs), MAX_ARGUMENTS)]
        pairs = [sa.func.nullif(sa.func.concat_ws(",", *group), "") for group in groups]
    return sa.func.concat_ws(",", *pairs)


def _json_name(field: str) -> str:
    return msgspec.json.encode(field).decode() + ":"


async def _once(data: bytes) -> AsyncIterable[bytes]:
    yield data
