"""What a run over a small source costs, and how connections that were lost meanwhile are found without asking first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from asyncpg import Connection

from store import Database
from sync import sync_data
from tests.engine import Engine

SNAPSHOT = [{"id": number, "name": f"n{number}"} for number in range(10)]
CHANGED = [{"id": 0, "name": "new"}, *SNAPSHOT[1:]]

BACKENDS = "FROM pg_stat_activity WHERE application_name = 'lockstep' AND datname = current_database()"


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Note the statements that are executed in the block, COPY and the temporary tables' DDL aside."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(database.engine.sync_engine, "before_cursor_execute", note)


async def test_a_small_run_asks_the_database_no_more_than_it_has_to(engine: Engine) -> None:
    """A run opens, looks, and applies, in a transaction each; nothing is read twice in any of them."""
    await engine.sync(SNAPSHOT)
    for content, most in ((SNAPSHOT, 12), (CHANGED, 21)):
        engine.serve(content)
        with statements(engine.database) as seen:
            await sync_data(engine.database, engine.source)
        assert sum("set_config('lock_timeout'" in statement for statement in seen) == 3
        assert len(seen) <= most, seen


async def test_types_stay_known_from_run_to_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver does not look types up again and again, which takes longer than all else in a small run."""
    looked_up = []
    introspect: Any = Connection._introspect_types  # type: ignore[attr-defined] # asyncpg's stubs leave it out

    async def counted(self: Any, types: Any, *rest: Any) -> Any:
        looked_up.append(types)
        return await introspect(self, types, *rest)

    monkeypatch.setattr(Connection, "_introspect_types", counted)
    for content in (SNAPSHOT, CHANGED, SNAPSHOT, CHANGED):
        engine.serve(content)
        await sync_data(engine.database, engine.source)
    assert not looked_up


async def test_connections_that_were_lost_in_the_pool_are_replaced(engine: Engine) -> None:
    """However many backends ended while their connections lay in the pool, transactions begin, and so do listeners."""
    database = engine.database
    for _ in range(2):
        await asyncio.gather(*(database.ping() for _ in range(5)))
        assert await engine.sql.fetchval(f"SELECT count(pg_terminate_backend(pid)) {BACKENDS}") > 1
        while await engine.sql.fetchval(f"SELECT count(*) {BACKENDS}"):
            pass
        await asyncio.gather(*(database.ping() for _ in range(20)))
    assert await engine.sql.fetchval(f"SELECT count(pg_terminate_backend(pid)) {BACKENDS}")
    while await engine.sql.fetchval(f"SELECT count(*) {BACKENDS}"):
        pass
    async with database.own_connection() as own:
        assert await own.fetchval("SELECT 1") == 1
