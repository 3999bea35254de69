"""Prices by symbol: what the mirror of an exchange's feed holds now, how old that is, and how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from columns import column_name
from definitions import Source
from models import DELETED_AT, UPDATED_AT, ChangeRow, Operation, RunRow, mirror_table
from store.database import Database
from store.journal import AT, history_query
from store.mirrors import mirror_name, select_mirror

PRICE = "price"
RECENT = 100_000
"""Entries of the journal among which a symbol is looked for one by one, before its index is asked about older ones.

The index tells of every thousand entries or two which keys are among them. A symbol that changes all the time is among
all of them, so it is found sooner without; one that hardly ever does is found by the index alone.
"""
OFTEN = 20
"""Changes among the recent entries from which on a symbol is one that changes all the time."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a symbol, with all digits that the exchange gave it."""

    symbol: str
    price: str | None
    changed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The newest run that found or made all rows equal to what the source said."""

    run: int
    at: datetime
    """When that run began to ask, so that no price is taken for newer than it is."""
    age_seconds: float


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices as one snapshot of the database has them."""

    prices: tuple[Price, ...]
    confirmed: Confirmation | None
    """None if no run has confirmed them, or one was undone since."""


@dataclass(frozen=True, kw_only=True)
class PriceChange:
    """What a run did to a symbol; the prices are None where there was none, or it stayed."""

    seq: int
    run: int
    at: datetime
    op: Operation
    old: str | None
    new: str | None


async def select_prices(database: Database, source: Source, symbols: Sequence[str] | None = None) -> Prices | None:
    """Return the live prices, of some symbols or of all, in the order of symbols; None before the first sync."""
    async with database.transaction(isolation="REPEATABLE READ") as session:
        table = await _table(session, source)
        if table is None:
            return None
        symbol, price = _columns(source, table)
        query = sa.select(symbol, sa.cast(price, sa.Text), table.c[UPDATED_AT]).where(*_is_live(source, table))
        if symbols is not None:
            query = query.where(symbol.in_(symbols))
        rows = await session.execute(query.order_by(symbol))
        prices = tuple(Price(symbol=name, price=value, changed_at=at) for name, value, at in rows)
        return Prices(prices=prices, confirmed=await _select_confirmation(session, source))


async def select_symbols(database: Database, source: Source) -> list[str]:
    """Return all symbols that have a price now."""
    async with database.transaction() as session:
        table = await _table(session, source)
        if table is None:
            return []
        return list(await session.scalars(sa.select(_columns(source, table)[0]).where(*_is_live(source, table))))


async def select_price_changes(
    database: Database,
    source: Source,
    symbol: str,
    *,
    before: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
) -> list[PriceChange]:
    """Return what became of a symbol, newest first: at most `limit` changes, older than `before`, within a time."""
    async with database.transaction() as session:
        low, high = await _select_span(session, mirror_name(source), since, until)
        high = high if before is None else min(high, before - 1)
        query = _changes_query(source, symbol)
        found = await _select_between(session, query.limit(limit), max(high - RECENT + 1, low), high, by_index=False)
        high -= RECENT
        if len(found) >= OFTEN:
            expected = 2 * RECENT // len(found) * (limit - len(found))
            query_on = query.limit(limit - len(found))
            found += await _select_between(session, query_on, max(high - expected + 1, low), high, by_index=False)
            high -= expected
        found += await _select_between(session, query.limit(limit - len(found)), low, high, by_index=True)
    return found


def _changes_query(source: Source, symbol: str) -> sa.Select[Any]:
    key = {**source.scope, source.key[-1]: symbol}
    pair = ChangeRow.changes[source.fields.get(PRICE, PRICE)]
    return history_query(mirror_name(source), key, limit=0).with_only_columns(
        ChangeRow.seq,
        ChangeRow.run,
        AT,
        ChangeRow.op,
        pair[0].astext.label("old"),
        pair[1].astext.label("new"),
        maintain_column_froms=True,
    )


async def _select_between(
    session: AsyncSession, query: sa.Select[Any], low: int, high: int, *, by_index: bool
) -> list[PriceChange]:
    if low > high:
        return []
    await session.execute(_prefer(index=by_index))
    return [PriceChange(**row._mapping) for row in await session.execute(query.where(ChangeRow.seq.between(low, high)))]


def _prefer(*, index: bool) -> sa.Select[Any]:
    """Return what has the planner use the index of keys, or go through the entries in their order."""
    settings = {"enable_seqscan": "off", "enable_bitmapscan": "on" if index else "off"}
    return sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items()))


async def _select_span(
    session: AsyncSession, mirror: str, since: datetime | None, until: datetime | None
) -> tuple[int, int]:
    """Return the first and the last number that the entries of a mirror may have, of all times or of one."""
    low = sa.func.min(RunRow.first_seq)
    high = sa.func.max(RunRow.last_seq)
    query = sa.select(
        low if since is None else low.filter(since <= AT), high if until is None else high.filter(until >= AT)
    ).where(RunRow.mirror == mirror, RunRow.last_seq.is_not(None))
    first, last = (await session.execute(query)).one()
    return (first, last) if first is not None and last is not None else (1, 0)


async def _table(session: AsyncSession, source: Source) -> sa.Table | None:
    """Return the mirror's table with the columns that matter here, or None before it has them."""
    mirror = await select_mirror(session, source)
    names = [column_name(name) for name in (*source.key, source.fields.get(PRICE, PRICE))]
    if not mirror.is_adopted or not all(name in mirror.types for name in names):
        return None
    return mirror_table(mirror.table, mirror.db_schema, {name: mirror.types[name] for name in names})


def _columns(source: Source, table: sa.Table) -> tuple[sa.ColumnElement[str], sa.ColumnElement[Any]]:
    """Return the columns of symbol and price."""
    return sa.cast(table.c[column_name(source.key[-1])], sa.Text), table.c[column_name(source.fields.get(PRICE, PRICE))]


def _is_live(source: Source, table: sa.Table) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that hold for the rows that the source has now."""
    own = [sa.cast(table.c[column_name(name)], sa.Text) == str(value) for name, value in source.scope.items()]
    return [table.c[DELETED_AT].is_(None), *own]


async def _select_confirmation(session: AsyncSession, source: Source) -> Confirmation | None:
    """Return the newest run after which every row was as the source said: nothing was held back, nothing rejected."""
    age = sa.func.extract("epoch", sa.func.clock_timestamp() - RunRow.started_at)
    newest = await session.execute(
        sa.select(RunRow.id, RunRow.started_at, age, RunRow.undoes)
        .where(
            RunRow.source == source.name,
            RunRow.status.in_(("succeeded", "unchanged")),
            RunRow.held == 0,
            RunRow.rejected == 0,
        )
        .order_by(RunRow.id.desc())
        .limit(1)
    )
    row = newest.one_or_none()
    return None if row is None or row[3] is not None else Confirmation(run=row[0], at=row[1], age_seconds=float(row[2]))
