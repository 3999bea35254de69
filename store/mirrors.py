"""Mirrors: what their tables look like, what they hold, and what the last run left behind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from asyncpg import UniqueViolationError
from sqlalchemy.dialects.postgresql import JSONB, Insert, asyncpg, insert
from sqlalchemy.ext.asyncio import AsyncSession

from columns import Column, column_name
from definitions import Source
from errors import NotFound, SchemaConflict
from fingerprints import KnownFingerprints
from models import (
    BOOKKEEPING,
    DELETED_AT,
    FINGERPRINT,
    ForeignWriteRow,
    MirrorRow,
    MyData,
    Pause,
    Validators,
    map_my_data,
    mirror_table,
)
from store.database import Database, driver_connection
from store.scopes import WHOLE_TABLE, Scope, demand_fit, within
from store.triggers import TRIGGERS
from store.views import LIVE_VIEW, LiveView, live_comment, live_name

NO_FINGERPRINT = "00000000-0000-0000-0000-000000000000"
"""Stands for a missing fingerprint in a copy, so that all rows of the copy are of one size."""

_quote = asyncpg.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A mirror as it stands in one snapshot of the database."""

    name: str
    """As people write it, schema first; the key of `lockstep.mirrors`."""
    table: str
    db_schema: str
    key: tuple[str, ...]
    """Key fields."""
    scope: Scope
    """What is the same in all of the source's rows and in no others; empty if the table is the source's alone."""
    scope_id: str
    shape: str
    """What the source makes of its records before they are stored; see definitions.Source."""
    exists: bool
    types: dict[str, str]
    """Every column of the table with its type, the user's own and the bookkeeping ones included."""
    columns: tuple[Column, ...]
    """The source's columns among them, and those of other sources of the table."""
    has_rows: bool
    """Whether there are any of the source's."""
    keyed: bool
    """Whether a unique index over the key columns exists."""
    watched: bool
    """Whether all triggers are in place."""
    may_watch: bool
    """False where triggers were refused before."""
    state: MirrorState
    foreign_writes: frozenset[int]
    live_view: LiveView
    pause: Pause | None
    """Set while the source may not be synced."""

    @property
    def signature(self) -> str:
        """Digest of the source's columns and its shape: under another one, fingerprints say nothing."""
        return signature(self.columns, self.key, self.shape)

    @property
    def trusted(self) -> bool:
        """Whether the fingerprints in the rows still tell what the rows hold."""
        kinds_agree = self.state.fingerprint_kind == self.state.stored_kind
        return self.is_adopted and self.state.signature == self.signature and kinds_agree

    @property
    def is_adopted(self) -> bool:
        """Whether the table has the bookkeeping columns."""
        return all(name in self.types for name in BOOKKEEPING)

    @property
    def has_tombstones(self) -> bool:
        """Whether rows tell that they are deleted."""
        return DELETED_AT in self.types

    @property
    def qualified(self) -> str:
        """The table's name as SQL spells it."""
        return f"{_quote(self.db_schema)}.{_quote(self.table)}"

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Names of the key's columns."""
        return tuple(column_name(field) for field in self.key)

    def within(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        """Return what holds for the source's rows alone; nothing if the table is its own."""
        return within(table, self.scope, self.types)


@dataclass(frozen=True, kw_only=True)
class MirrorState:
    """What the last run left in `lockstep.mirrors`."""

    signature: str = ""
    fingerprint_kind: str = "raw"
    stored_kind: str = "raw"
    feed: str | None = None
    validators: Validators = field(default_factory=Validators)
    live_rows: int = 0
    cursor: str | None = None
    """How far the source has been read, as JSON."""
    last_run: int | None = None


def signature(columns: Iterable[Column], key: Sequence[str], shape: str) -> str:
    """Return a digest of the key, the columns and their types, and of what becomes of records on their way."""
    spelled = sorted(f"{column.field}\0{column.name}\0{column.sql_type}" for column in columns)
    spelled += ["\0".join(key), *([shape] if shape else [])]
    return hashlib.blake2s("\n".join(spelled).encode(), digest_size=16).hexdigest()


def mirror_name(source: Source) -> str:
    """Return the name under which a source's mirror is known."""
    return f"{source.db_schema}.{source.table}"


TABLE = """
    SELECT c.relkind::text AS relkind,
           (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS names,
           (SELECT array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS types,
           (SELECT array_agg(t.tgname::text) FROM pg_trigger t
             WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')) AS triggers,
           (SELECT array_agg(w.xid::text) FROM lockstep.foreign_writes w
             WHERE w.mirror = :name AND w.scope IN ('', :scope)) AS foreign_writes,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                     AND i.indpred IS NULL AND i.indexprs IS NULL
                     AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)) = CAST(:key AS text[])) AS keyed
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = :db_schema AND c.relname = :table
"""
CATALOG = sa.text(f"""
    SELECT t.*, v.*, known.fields, known.watched AS was_watched, s.name IS NOT NULL AS has_state, s.signature,
           s.fingerprint_kind, s.stored_kind, s.feed, s.etag, s.last_modified, s.live_rows, s.cursor, s.last_run,
           s.paused_since, s.pause_reason
      FROM (SELECT) AS _ LEFT JOIN ({TABLE}) t ON true LEFT JOIN ({LIVE_VIEW}) v ON true
      LEFT JOIN lockstep.mirrors known ON known.name = :name AND known.scope = ''
      LEFT JOIN lockstep.mirrors s ON s.name = :name AND s.scope = :scope
""").columns(fields=JSONB)  # noqa: S608 # constants
"""All in one statement, for every run asks twice: what the table is, what is known of it, and of one of its scopes."""


async def select_mirror(session: AsyncSession, source: Source) -> Mirror:
    """Read what a mirror looks like now; one that does not exist yet has no columns."""
    name = mirror_name(source)
    key = sorted(column_name(field) for field in source.key)
    parameters = {
        "name": name,
        "scope": source.scope_id,
        "db_schema": source.db_schema,
        "table": source.table,
        "key": key,
        "live_name": live_name(source.table),
        "live_comment": live_comment(name),
    }
    found = (await session.execute(CATALOG, parameters)).one()
    exists = found.relkind is not None
    if exists and found.relkind not in ("r", "p"):
        raise SchemaConflict(f"{name} is not a table.", remedy="Name another table in table_name.")
    types = dict(zip(found.names or (), found.types or (), strict=True))
    demand_fit(source.scope, types, name)
    return Mirror(
        name=name,
        table=source.table,
        db_schema=source.db_schema,
        key=source.key,
        scope=source.scope,
        scope_id=source.scope_id,
        shape=source.shape,
        exists=exists,
        types=types,
        columns=_source_columns(types, found.fields or {}, source.key),
        has_rows=exists and await _has_rows(session, source, types),
        keyed=bool(found.keyed),
        watched=set(TRIGGERS) <= set(found.triggers or ()),
        may_watch=bool(found.was_watched or not found.fields),
        state=_state(found),
        foreign_writes=frozenset(int(xid) for xid in found.foreign_writes or ()),
        live_view=LiveView(
            name=live_name(source.table),
            db_schema=source.db_schema,
            comment=live_comment(name),
            columns=tuple(found.live_columns or ()) if found.live_is_ours else (),
            options=tuple(found.live_options or ()),
            is_taken=found.live_columns is not None and not found.live_is_ours,
        ),
        pause=Pause(since=found.paused_since, reason=found.pause_reason or "") if found.paused_since else None,
    )


def _source_columns(types: dict[str, str], known: dict[str, dict[str, Any]], key: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns that are known to hold fields, the key's first; a run may find that others do too."""
    columns = [
        Column(name=entry["column"], field=name, sql_type=types[entry["column"]], owned=entry["owned"])
        for name, entry in known.items()
        if entry["column"] in types
    ]
    places = {name: place for place, name in enumerate(key)}
    return tuple(sorted(columns, key=lambda column: places.get(column.field, len(places))))


def _state(row: sa.Row[Any]) -> MirrorState:
    if not row.has_state:
        return MirrorState()
    return MirrorState(
        signature=row.signature,
        fingerprint_kind=row.fingerprint_kind,
        stored_kind=row.stored_kind,
        feed=row.feed,
        validators=Validators(etag=row.etag, last_modified=row.last_modified),
        live_rows=row.live_rows,
        cursor=row.cursor,
        last_run=row.last_run,
    )


async def _has_rows(session: AsyncSession, source: Source, types: dict[str, str]) -> bool:
    if not source.scope:  # as text, which need not be compiled anew for each of many tables
        some_row = f"SELECT EXISTS (SELECT FROM {_quote(source.db_schema)}.{_quote(source.table)})"  # noqa: S608 # quoted
        return bool((await (await session.connection()).exec_driver_sql(some_row)).scalar())
    table = _bare_table(source.table, source.db_schema)
    some = sa.select(sa.literal(1)).select_from(table).where(*within(table, source.scope, types))
    return bool(await session.scalar(sa.select(sa.exists(some))))


@lru_cache(maxsize=128)
def _bare_table(name: str, db_schema: str) -> sa.Table:
    """Return a mirror's table with its bookkeeping columns; the same object each time, so statements stay compiled."""
    return mirror_table(name, db_schema, {})


async def select_fingerprints(session: AsyncSession, mirror: Mirror) -> tuple[KnownFingerprints, int]:
    """Copy out the fingerprints of the live rows; return them and the number of live rows that have none."""
    driver = await driver_connection(session)
    copied = bytearray()

    async def keep(data: bytes) -> None:
        copied.extend(data)

    # A COPY takes no parameters, so its few values are spelled by SQLAlchemy, as this server reads them.
    dialect = (await session.connection()).dialect
    ours = mirror.within(_bare_table(mirror.table, mirror.db_schema)) if mirror.scope else []
    conditions = [str(each.compile(dialect=dialect, compile_kwargs={"literal_binds": True})) for each in ours]
    conditions.append(f"{_quote(DELETED_AT)} IS NULL")
    query = f"""
        SELECT COALESCE({_quote(FINGERPRINT)}, '{NO_FINGERPRINT}') FROM {mirror.qualified}
         WHERE {" AND ".join(conditions)}
    """  # noqa: S608 # constants, and what SQLAlchemy has quoted and spelled
    await driver.copy_from_query(query, output=keep, format="binary")
    # Sorting millions of them takes a while; it does not hold up the other threads.
    return await asyncio.to_thread(KnownFingerprints.from_copy, copied)


async def load_my_data(database: Database, source: Source) -> type[MyData]:
    """Return MyData with an attribute for every column that the mirror's table has now; raise NotFound before that."""
    async with database.transaction() as session:
        if not (await select_mirror(session, source)).exists:
            raise NotFound(f"Table {mirror_name(source)} does not exist yet.", remedy="Sync once; that makes it.")

        def reflect(connection: sa.Connection) -> sa.Table:
            return sa.Table(source.table, sa.MetaData(), schema=source.db_schema, autoload_with=connection)

        map_my_data(await (await session.connection()).run_sync(reflect))
    return MyData


async def count_live_rows(session: AsyncSession, mirror: Mirror) -> int:
    """Count the rows that are not tombstones."""
    if not mirror.exists:
        return 0
    table = _bare_table(mirror.table, mirror.db_schema)
    query = sa.select(sa.func.count()).select_from(table).where(*mirror.within(table))
    if mirror.has_tombstones:
        query = query.where(table.c[DELETED_AT].is_(None))
    return await session.scalar(query) or 0


async def delete_tombstones(session: AsyncSession, source: Source, *, age: timedelta, limit: int) -> int:
    """Delete tombstones that are older than `age`, about `limit` of them at most; return how many there were."""
    table = mirror_table(source.table, source.db_schema, {})
    if not await session.scalar(sa.select(sa.func.to_regclass(f"{_quote(source.db_schema)}.{_quote(source.table)}"))):
        return 0
    place: sa.ColumnElement[Any] = sa.literal_column("ctid")
    scope = (await select_mirror(session, source)).within(table) if source.scope else []
    is_old = sa.and_(table.c[DELETED_AT] < sa.func.now() - age, *scope)
    some = sa.select(place).select_from(table).where(is_old).limit(limit)
    # Places are unique within a partition only, so a row has to be old itself, too.
    deleted = await session.execute(sa.delete(table).where(place.in_(some), is_old).returning(sa.literal(1)))
    return len(deleted.all())


async def copy_into(
    session: AsyncSession, mirror: Mirror, columns: Sequence[Column], rows: AsyncIterable[Sequence[Any]]
) -> int | None:
    """Copy decoded records straight into a mirror: their columns' values and fingerprint.

    Returns how many, or None if the table refused some for being alike; the transaction is lost then.
    """
    driver = await driver_connection(session)
    names = [column.name for column in columns]
    try:
        status = await driver.copy_records_to_table(
            mirror.table, schema_name=mirror.db_schema, records=rows, columns=[*names, FINGERPRINT]
        )
    except UniqueViolationError:
        return None
    return int(status.removeprefix("COPY "))


async def upsert_mirror(
    session: AsyncSession,
    mirror: Mirror,
    columns: Sequence[Column],
    *,
    watched: bool,
    **state: Any,
) -> None:
    """Write down what a run leaves behind, so that the next one knows what it may trust.

    What is known of the table itself stays as `update_shape` left it where the source has but a part of the rows.
    """
    of_table = {} if mirror.scope_id else {"fields": _spell_fields(columns), "watched": watched}
    values = {
        "name": mirror.name,
        "scope": mirror.scope_id,
        "key": list(mirror.key),
        "signature": signature(columns, mirror.key, mirror.shape),
        **of_table,
        **state,
    }
    await session.execute(_upsert(tuple(values)), values)


@lru_cache
def _upsert(names: tuple[str, ...]) -> Insert:
    table = MirrorRow.__table__
    statement = insert(table).values({name: sa.bindparam(name) for name in names})  # type: ignore[arg-type] # declared as FromClause
    new = {name: statement.excluded[name] for name in names}
    return statement.on_conflict_do_update(index_elements=["name", "scope"], set_=new)


async def update_shape(session: AsyncSession, mirror: Mirror, columns: Sequence[Column], *, watched: bool) -> None:
    """Write down the columns of a table that several sources share; its row is there, and locked."""
    await session.execute(
        sa.update(MirrorRow)
        .where(MirrorRow.name == mirror.name, MirrorRow.scope == WHOLE_TABLE)
        .values(key=list(mirror.key), fields=_spell_fields(columns), watched=watched)
    )


def _spell_fields(columns: Sequence[Column]) -> dict[str, dict[str, Any]]:
    return {column.field: {"column": column.name, "owned": column.owned} for column in columns}


async def delete_foreign_writes(session: AsyncSession, mirror: Mirror) -> None:
    """Forget the foreign writes that a run has taken into account; those that came later stay.

    Other scopes of the table have not taken them into account yet, so each is left a note of its own.
    """
    if not mirror.foreign_writes:
        return
    known = ForeignWriteRow.mirror == mirror.name, ForeignWriteRow.xid.in_(mirror.foreign_writes)
    deleted = await session.scalars(
        sa.delete(ForeignWriteRow)
        .where(*known, ForeignWriteRow.scope.in_([WHOLE_TABLE, mirror.scope_id]))
        .returning(ForeignWriteRow.scope)
    )
    if WHOLE_TABLE in deleted.all() and mirror.scope_id:
        others = sa.select(MirrorRow.name, MirrorRow.scope, sa.literal(max(mirror.foreign_writes), sa.BigInteger))
        others = others.where(MirrorRow.name == mirror.name, MirrorRow.scope.not_in([WHOLE_TABLE, mirror.scope_id]))
        note = insert(ForeignWriteRow).from_select(["mirror", "scope", "xid"], others)
        await session.execute(note.on_conflict_do_nothing())
