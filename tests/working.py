"""What the tests of schedules and workers share: sources on schedules, and a worker inside the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import pytest

from definitions import Schedule, Source, Sources
from store.database import Database
from web.service import GivenServer, Service
from web.serving import stop_work
from worker import Worker, WorkerOptions

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]  # it takes no parameter at run time
else:
    Connection = asyncpg.Connection

PATIENCE = 2_000
"""Looks, at short intervals."""

HOURLY = Schedule(every_seconds=3600)


def source(name: str, url: str = "http://127.0.0.1:9/", *, schedules: Sequence[Schedule] = (HOURLY,)) -> Source:
    """Return a source with a table of its name."""
    return Source(name=name, url=url, table=name, allow_private=True, schedules=tuple(schedules))


async def until(sql: Connection, query: str, expected: Any) -> None:
    """Wait until a query returns what is expected."""
    for _ in range(PATIENCE):
        if (found := await sql.fetchval(query)) == expected:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{query} never returned {expected}, but {found}")


async def all_due(sql: Connection) -> None:
    """Have every schedule due now."""
    await sql.execute("UPDATE lockstep.schedules SET due = clock_timestamp()")


@asynccontextmanager
async def working(
    database: Database, *sources: Source, concurrency: int = 4, stop_seconds: float = 5.0
) -> AsyncIterator[Service]:
    """Have a worker work on the schedules of sources while the block lasts, in a service that serves nothing."""
    service = Service(
        sources=Sources(sources),
        look_at=lambda looked_at: looked_at,
        server=GivenServer(database.engine.url.render_as_string(hide_password=False)),
        connect=lambda _url: database,
    )
    options = WorkerOptions(concurrency=concurrency, heartbeat_seconds=2, stop_seconds=stop_seconds)
    worker = Worker(service, options)
    await service.open()
    work = asyncio.create_task(worker.work())
    try:
        yield service
    finally:
        await stop_work(service, worker)
        await work
        await service.close()
