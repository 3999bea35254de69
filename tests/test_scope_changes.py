"""What becomes of the rows of others when a source of a shared table is given another scope, or none."""

from __future__ import annotations

import pytest

from errors import SchemaConflict
from store import Database
from tests.engine import Engine, open_engine
from tests.feed_server import FeedServer
from tests.test_scopes import numbered

SHARED = {"table": "shared", "allow_empty": True}


@pytest.fixture
def scoped(engine: Engine) -> Engine:
    """Sync into a table that others share."""
    engine.configure(**SHARED, scope={"region": "eu"}, key=("region", "id"))
    return engine


@pytest.mark.parametrize("numbers", [range(0), range(1, 4)])
async def test_a_source_without_a_scope_leaves_the_table_alone(
    scoped: Engine, database: Database, database_url: str, feed: FeedServer, numbers: range
) -> None:
    """It would take the rows of all scopes for its own, and delete those that its feed does not have."""
    await scoped.sync(numbered(range(1, 6)))
    before = await scoped.stored()
    async with open_engine(database, database_url, feed, **SHARED) as whole:
        with pytest.raises(SchemaConflict, match="is shared by sources that have a `scope`"):
            await whole.sync(numbered(numbers))
    assert await scoped.stored() == before


async def test_a_scope_that_is_added_later_is_refused(engine: Engine) -> None:
    """Rows that lack the scope's fields belong to no scope."""
    engine.configure(table="shared")
    await engine.sync(numbered(range(1, 6)))
    engine.configure(scope={"region": "eu"}, key=("region", "id"))
    with pytest.raises(SchemaConflict, match="it has no key column 'region'"):
        await engine.sync()
    engine.configure(scope={}, key=("id",))
    await engine.check()


async def test_another_value_begins_anew(scoped: Engine) -> None:
    """The rows of the value before stay live, and are there when it comes back."""
    await scoped.sync(numbered(range(1, 4)))
    scoped.configure(scope={"region": "us"})
    assert (await scoped.sync(numbered(range(2, 5)))).first_load
    scoped.configure(scope={"region": "eu"})
    assert (await scoped.sync(numbered(range(1, 4)))).counts.unchanged == 3
