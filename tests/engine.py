"""A source, its mirror, and a brute-force account of whatever runs do to them.

Every run that goes through `Engine.sync` is held against the mirror's rows as they stood before it and as they stand
after it: its counts and its journal entries must tell exactly that difference, and if it fails there must be none.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg

from definitions import Source
from models import BOOKKEEPING, Report
from store import Database
from sync import sync_data
from tests.feed_server import Answer, FeedServer, Stall
from tests.postgres import connect

Key = tuple[Any, ...]
Content = bytes | Sequence[Mapping[str, Any]]

INSTANT = "timestamp with time zone"
PADDING = 600_000
"""Bytes before a halted answer, so that its reader has something to work on before the halt."""

OPERATIONS = ("created", "updated", "restored", "deleted")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the mirror: its fields as JSON values."""

    values: dict[str, Any]
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class State:
    """What the mirror holds: rows by key, and the column type of every field that is known to be the source's."""

    rows: dict[Key, Row] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What happened to one row."""

    op: str
    changes: dict[str, list[Any]]


class Engine:
    """Syncs one source and keeps the books."""

    def __init__(self, database: Database, feed: FeedServer, sql: asyncpg.Connection[Any], source: Source) -> None:
        self.database = database
        self.feed = feed
        self.sql = sql
        self.source = source
        self.served: Content = b""

    @property
    def table(self) -> str:
        """The mirror's name as SQL spells it."""
        return f'"{self.source.db_schema}"."{self.source.table}"'

    @property
    def mirror(self) -> str:
        """The mirror's name as the service's tables spell it."""
        return f"{self.source.db_schema}.{self.source.table}"

    def configure(self, **options: Any) -> None:
        """Change options of the source."""
        self.source = replace(self.source, **options)

    def serve(self, content: Content, **answer: Any) -> None:
        """Serve a snapshot from now on."""
        self.served = content
        self.feed.answers = Answer(body=content if isinstance(content, bytes) else dump(content), **answer)

    async def sync(self, content: Content | None = None, **options: Any) -> Report:
        """Serve a snapshot, unless it is served already, and sync it; hold what the run did against what it says."""
        if content is not None:
            self.serve(content)
        before, written = await self.state(), await self.written()
        try:
            report = await sync_data(self.database, self.source, **options)
        except BaseException:
            assert await self.written() == written, "a run that failed has written"
            raise
        hard = self.source.on_delete == "hard"
        account(report, before, await self.state(), await self.journal(report.run), hard=hard)
        return report

    async def sync_unaccounted(self, **options: Any) -> Report:
        """Sync while others write too, so that what the run did cannot be told from what they did."""
        return await sync_data(self.database, self.source, **options)

    @asynccontextmanager
    async def syncing(self, content: Content, **options: Any) -> AsyncIterator[asyncio.Task[Report]]:
        """Start a run, halt it when it has read the fingerprints and half of the answer, and let it end afterwards.

        A run that fetches again gets its answer at once.
        """
        body = content if isinstance(content, bytes) else dump(content)
        padded = b" " * PADDING + body
        self.served = body
        self.feed.answers = [Answer(body=padded, fault=Stall(at=PADDING + len(body) // 2)), Answer(body=padded)]
        reading = asyncio.Event()
        run = asyncio.create_task(self.sync_unaccounted(on_progress=lambda _: reading.set(), **options))
        try:
            await reading.wait()
            yield run
        finally:
            self.feed.released.set()
            await asyncio.wait([run])

    async def check(self, snapshot: Content | None = None, *, kept: Iterable[Mapping[str, Any]] = ()) -> None:
        """Assert that the live rows are the snapshot's records and those `kept`, and that another run writes nothing.

        Of records that share a key, the last one counts.
        """
        records = self.records(self.served if snapshot is None else snapshot)
        assert_holds(await self.state(), {self.key_of(record): record for record in [*kept, *records]})
        await self.check_idle()

    async def check_idle(self) -> Report:
        """Assert that a run over what is mirrored already writes nothing."""
        before = await self.stored()
        report = await self.sync()
        assert await self.stored() == before, "a run over what is mirrored already has written"
        assert report.status in ("unchanged", "held")
        return report

    def records(self, content: Content) -> list[dict[str, Any]]:
        """Read the records of a snapshot with Python's own parser, and give them the source's scope."""
        body = content if isinstance(content, bytes) else dump(content)
        if self.source.format == "ndjson":
            found = [parse(line) for line in body.splitlines() if line.strip()]
        else:
            found = parse(body)
            for step in self.source.records:
                found = found[step]
        return [{**self.source.scope, **record} for record in found]

    def key_of(self, record: Mapping[str, Any]) -> Key:
        """Return the key of a record, or of anything else that has its key fields."""
        return tuple(record[name] for name in self.source.key)

    async def rows(self) -> dict[Any, dict[str, Any]]:
        """Return the live rows by key (bare, if it is a single field) as JSON values by field, without nulls."""
        return {
            key[0] if len(key) == 1 else key: {name: value for name, value in row.values.items() if value is not None}
            for key, row in (await self.state()).rows.items()
            if not row.deleted
        }

    async def types(self) -> dict[str, str]:
        """Return the column type of every field."""
        return (await self.state()).types

    async def state(self) -> State:
        """Read all that the mirror holds now of the source's scope."""
        columns = await self._columns()
        fields = await self._fields()
        names = {name: fields.get(name, name) for name in columns if name not in BOOKKEEPING}
        if not set(self.source.key) <= set(names.values()):
            return State()
        deleted = "_sync_deleted_at IS NOT NULL" if "_sync_deleted_at" in columns else "false"
        rows: dict[Key, Row] = {}
        for text, is_deleted in await self.sql.fetch(f"SELECT to_jsonb(_row), {deleted} FROM {self.table} _row"):
            stored = parse(text)
            values = {name: stored[column] for column, name in names.items()}
            if any(values[name] != value for name, value in self.source.scope.items()):
                continue
            key = self.key_of(values)
            assert key not in rows, f"two rows have the key {key}"
            rows[key] = Row(values=values, deleted=is_deleted)
        return State(types={names[c]: columns[c] for c in fields if c in columns}, rows=rows)

    async def journal(self, run: int) -> dict[Key, Entry]:
        """Return the journal entries of a run by key; a row has one at most."""
        query = "SELECT op, key, changes FROM lockstep.changes WHERE run = $1 ORDER BY seq"
        found: dict[Key, Entry] = {}
        for op, key, changes in await self.sql.fetch(query, run):
            at = self.key_of(parse(key))
            assert at not in found, f"{at} was journaled twice"
            found[at] = Entry(op=op, changes=parse(changes))
        return found

    async def stored(self) -> tuple[Any, ...]:
        """Return the mirror as it lies on disk, and the length of the journal: which an idle run leaves."""
        columns = await self._columns()
        rows = (
            await self.sql.fetch(f"SELECT ctid, xmin, _row::text FROM {self.table} _row ORDER BY ctid")
            if columns
            else []
        )
        return columns, rows, await self.sql.fetchval("SELECT count(*) FROM lockstep.changes")

    async def written(self) -> tuple[Any, ...]:
        """Return whatever a run that fails leaves alone."""
        known = await self.sql.fetch("SELECT m::text FROM lockstep.mirrors m ORDER BY name")
        foreign = await self.sql.fetch("SELECT mirror, xid FROM lockstep.foreign_writes ORDER BY mirror, xid")
        return *await self.stored(), known, foreign

    async def edit(self, *statements: str) -> None:
        """Do what somebody might do to the mirror by hand; `{table}` stands for its name."""
        for statement in statements:
            await self.sql.execute(statement.replace("{table}", self.table))

    async def _fields(self) -> dict[str, str]:
        query = "SELECT fields FROM lockstep.mirrors WHERE name = $1 AND scope = ''"
        fields = parse(await self.sql.fetchval(query, self.mirror) or "{}")
        return {entry["column"]: name for name, entry in fields.items()}

    async def _columns(self) -> dict[str, str]:
        query = """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
                   WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
        return {row[0]: row[1] for row in await self.sql.fetch(query, self.table)}


@asynccontextmanager
async def open_engine(database: Database, url: str, feed: FeedServer, **options: Any) -> AsyncIterator[Engine]:
    """Make an engine for a source that a feed server serves."""
    sql = await connect(url)
    await sql.execute("SET TimeZone = 'UTC'")
    try:
        yield Engine(database, feed, sql, Source(name="test", url=feed.url, **options))
    finally:
        await sql.close()


def account(report: Report, before: State, after: State, journal: dict[Key, Entry], *, hard: bool) -> None:
    """Assert that a run's counts and journal tell exactly what it did."""
    counts = report.counts
    done = difference(before, after, hard=hard)
    if report.first_load:
        assert not before.rows, "a run called itself a first load although there were rows"
        assert not journal
    else:
        names = respelled(before, after)
        told = {key: _without(entry, names) for key, entry in journal.items()}
        done = {key: _without(entry, names) for key, entry in done.items() if key in journal or not names}
        told = {key: entry for key, entry in told.items() if key in done or entry.changes}
        assert told == done
    ops = Counter(entry.op for entry in (done if report.first_load else journal).values())
    assert {op: getattr(counts, op) for op in OPERATIONS} == {op: ops[op] for op in OPERATIONS}
    stored = counts.created + counts.updated + counts.restored + counts.unchanged
    assert counts.records == stored + counts.rejected + counts.duplicates
    assert counts.unchanged >= 0


def difference(before: State, after: State, *, hard: bool = False) -> dict[Key, Entry]:
    """Compare two states of a mirror, value by value; `hard` says that rows may be removed from the table."""
    removed = before.rows.keys() - after.rows.keys()
    assert hard or not removed, "a run has removed a row from the table"
    assert not any(before.rows[key].deleted for key in removed), "a run has removed a tombstone"
    found = {key: _removed(before.rows[key], after) for key in removed}
    for key, new in after.rows.items():
        old = before.rows.get(key, Row(values={}, deleted=False))
        pairs = {name: [old.values.get(name), None if new.deleted else new.values[name]] for name in after.types}
        changes = {name: pair for name, pair in pairs.items() if not same(*pair)}
        if key not in before.rows:
            found[key] = Entry(op="created", changes=changes)
        elif old.deleted and new.deleted:
            kept = old.values.keys() - respelled(before, after)
            assert all(same(old.values[name], new.values[name]) for name in kept), "a tombstone has changed"
        elif old.deleted or new.deleted:
            found[key] = Entry(op="restored" if old.deleted else "deleted", changes=changes)
        elif changes:
            found[key] = Entry(op="updated", changes=changes)
    return found


def _removed(row: Row, after: State) -> Entry:
    values = {name: row.values.get(name) for name in after.types}
    return Entry(op="deleted", changes={name: [value, None] for name, value in values.items() if value is not None})


def assert_holds(state: State, expected: Mapping[Key, Mapping[str, Any]]) -> None:
    """Assert that the live rows are these records, value by value."""
    live = {key: row.values for key, row in state.rows.items() if not row.deleted}
    assert live.keys() == expected.keys()
    for key, record in expected.items():
        for name in record.keys() | state.types.keys():
            stored, value = live[key].get(name), record.get(name)
            if state.types.get(name) == INSTANT and isinstance(stored, str) and isinstance(value, str):
                stored, value = datetime.fromisoformat(stored), datetime.fromisoformat(value.upper())
            assert same(stored, value), f"{key}: {name} is {stored!r}, and should be {value!r}"


def same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal; unlike for Python, true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def parse(text: str | bytes) -> Any:
    """Parse JSON without rounding anything."""
    return json.loads(text, parse_float=Decimal)


def dump(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Spell a snapshot as JSON."""
    return json.dumps(records, ensure_ascii=False).encode()


def respelled(before: State, after: State) -> set[str]:
    """Return fields that held instants: these look otherwise in another type, which alone is no change of a row."""
    return {name for name, sql_type in before.types.items() if sql_type == INSTANT != after.types.get(name)}


def _without(entry: Entry, names: Iterable[str]) -> Entry:
    return Entry(op=entry.op, changes={name: pair for name, pair in entry.changes.items() if name not in names})
