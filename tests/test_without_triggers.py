"""Where no trigger may be made, as on a table that Citus distributes, runs do all they do elsewhere but trust a 304."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from models import Counts
from store import Database
from store.triggers import TRIGGERS
from sync import verify_data
from tests.engine import Engine, open_engine
from tests.feed_server import FeedServer

SNAPSHOT = [{"id": number, "name": f"n{number}", "price": number} for number in range(1, 21)]
REFUSAL = (
    """CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
       RAISE EXCEPTION 'triggers are not supported on distributed tables' USING ERRCODE = '0A000'; END $$""",
    "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION refuse()",
)
DROPPING = [f"DROP TRIGGER {name} ON {{table}}" for name in TRIGGERS]
"""What docs/scaling.md has done before a table is distributed."""


@pytest_asyncio.fixture(params=[{}, {"scope": {"region": "eu"}, "key": ("region", "id")}], ids=["own table", "scope"])
async def plain(
    request: pytest.FixtureRequest, database: Database, database_url: str, feed: FeedServer
) -> AsyncIterator[Engine]:
    """A source with a table of its own, or a scope of a shared one, in a database that comes to refuse triggers."""
    async with open_engine(database, database_url, feed, table="products", **request.param) as engine:
        yield engine


def without(records: Sequence[dict[str, Any]], *gone: int) -> list[dict[str, Any]]:
    """Leave some records out."""
    return [record for record in records if record["id"] not in gone]


@pytest.mark.parametrize("before", [REFUSAL, ()], ids=["from the beginning", "after the first load"])
async def test_runs_do_all_they_do_elsewhere(plain: Engine, before: Sequence[str]) -> None:
    """A first load, updates, deletions, restores and new or wider columns need no trigger; the log says it once."""
    with capture_logs() as logs:
        await plain.edit(*before)
        assert (await plain.sync(SNAPSHOT)).first_load
        if not before:
            await plain.edit(*DROPPING, *REFUSAL)
        report = await plain.sync([{**record, "price": record["id"] % 2} for record in without(SNAPSHOT, 3)])
        assert (report.counts.updated, report.counts.deleted) == (18, 1)
        report = await plain.sync([{**record, "price": 1.5, "colour": "red"} for record in SNAPSHOT])
        assert (report.counts.updated, report.counts.restored) == (19, 1)
        await plain.check()
    assert await plain.sql.fetchval("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'products'::regclass") == 0
    assert [entry["event"] for entry in logs].count("triggers_refused") == 1


async def test_what_is_given_up(plain: Engine) -> None:
    """Every run fetches; an edit is mended when its record changes or by a repair, a lost row by the next run."""
    await plain.edit(*REFUSAL)
    plain.serve(SNAPSHOT, etag='"1"')
    assert [(await plain.sync()).not_modified for _ in range(3)] == [False, False, False]
    await plain.edit("DELETE FROM {table} WHERE id = 1", "UPDATE {table} SET name = 'edited' WHERE id IN (2, 3)")
    assert (await plain.sync()).counts == Counts(records=20, created=1, unchanged=19)
    report = await plain.sync([{**record, "name": "new"} if record["id"] == 2 else record for record in SNAPSHOT])
    assert report.counts == Counts(records=20, updated=1, unchanged=19)
    verified = await verify_data(plain.database, plain.source, repair=True)
    assert (verified.differing, verified.repaired and verified.repaired.counts.updated) == (1, 1)
    await plain.check()
