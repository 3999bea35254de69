"""What the tests of reading share: a query as a request has it, and the rows that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from store.query import Query
from store.reading import Snapshot, open_snapshot
from tests.engine import Engine, parse
from web.filters import read_query

Record = dict[str, Any]


def asked(query: str | Sequence[tuple[str, str]]) -> Query:
    """Read a query as the service does."""
    return read_query(parse_qsl(query, keep_blank_values=True) if isinstance(query, str) else query)


def feed_of(records: Sequence[Record]) -> bytes:
    """Spell records as a feed, with all digits."""
    return msgspec.json.Encoder(decimal_format="number").encode(records)


async def rows(engine: Engine, query: str | Sequence[tuple[str, str]] = "", *, limit: int = 10_000) -> list[Record]:
    """Return the rows that a query finds."""
    return (await page(engine, asked(query), limit=limit))[0]


async def page(engine: Engine, query: Query, *, limit: int) -> tuple[list[Record], str | None]:
    """Return a page of rows, and the cursor of the next one."""
    async with open_snapshot(engine.database, engine.source) as snapshot:
        found = await (await snapshot.read(query)).page(limit, json=True)
        return [parse(row[0] or "") for row in found.rows], found.next


async def ids(engine: Engine, query: str | Sequence[tuple[str, str]]) -> list[Any]:
    """Return the ids of the rows that a query finds."""
    return [row["id"] for row in await rows(engine, query)]


async def by_pages(snapshot: Snapshot, parameters: Sequence[tuple[str, str]], size: int) -> list[Record]:
    """Read all pages."""
    found: list[Record] = []
    cursor: str | None = ""
    while cursor is not None:
        query = asked([*parameters, *([("after", cursor)] if cursor else [])])
        part = await (await snapshot.read(query)).page(size, json=True)
        assert len(part.rows) == size or part.next is None
        found += [parse(row[0] or "") for row in part.rows]
        cursor = part.next
    return found
