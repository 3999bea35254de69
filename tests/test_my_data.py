"""MyData, the model of the default mirror."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from definitions import Source
from errors import NotFound
from store import Database
from store.mirrors import load_my_data
from sync import sync_data
from tests.feed_server import FeedServer


async def test_my_data_has_an_attribute_for_every_column(database: Database, feed: FeedServer) -> None:
    """Whatever the feed brings can be queried through the model, and again once it brings more."""
    source = Source(name="items", url=feed.url, table="items")
    feed.respond([{"id": 1, "name": "one"}, {"id": 2, "name": "two"}])
    await sync_data(database, source)
    my_data = await load_my_data(database, source)
    async with database.transaction() as session:
        row = (await session.scalars(sa.select(my_data).where(my_data.name == "two"))).one()  # type: ignore[attr-defined]
    assert (row.id, row.name, row._sync_deleted_at) == (2, "two", None)  # type: ignore[attr-defined]

    feed.respond([{"id": 2, "name": "two", "price": 2.5}])
    await sync_data(database, source)
    my_data = await load_my_data(database, source)
    async with database.transaction() as session:
        rows = await session.scalars(sa.select(my_data).order_by(my_data.id))  # type: ignore[attr-defined]
        assert [(row.price, row._sync_deleted_at is None) for row in rows] == [(None, False), (2.5, True)]  # type: ignore[attr-defined]


async def test_my_data_needs_its_table(database: Database, feed: FeedServer) -> None:
    """Before the first sync there is nothing to map, and the error says what to do."""
    with pytest.raises(NotFound, match="Sync once"):
        await load_my_data(database, Source(name="items", url=feed.url, table="items"))
