"""The job engine: pgqueuer in the service's own schema, and over the service's own connections.

Every statement of it runs in a transaction of ours. No statement stays prepared and nothing listens, so a pooler in
transaction mode may stand in the way; workers ask for jobs at short intervals instead of being woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar, cast

import structlog
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.models import TableChangedEvent
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import Channel
from pgqueuer.ports.driver import Driver, NotifyCallback
from pgqueuer.queries import Queries
from sqlalchemy.ext.asyncio import AsyncSession

from errors import DatabaseError
from models import SERVICE_SCHEMA
from store.database import Database, driver_connection
from store.migrations import wait_for_turn

log = structlog.get_logger()

CHANNEL = Channel("lockstep_jobs")
NAMES = DBSettings(
    prefix="",
    db_schema=SERVICE_SCHEMA,
    channel=CHANNEL,
    function="fn_pgqueuer_changed",
    statistics_table="pgqueuer_statistics",
    queue_status_type="pgqueuer_status",
    queue_table="pgqueuer",
    queue_table_log="pgqueuer_log",
    trigger="tg_pgqueuer_changed",
    schedules_table="pgqueuer_schedules",
    durability=Durability.balanced,
    widen_id=True,
)
"""All of them given, so that none is taken from the environment. Its log is of no value to us after a crash."""

RETRY_SECONDS = 1.0

Result = TypeVar("Result")

BUILDERS = QueryBuilderEnvironment(NAMES), QueryQueueBuilder(NAMES), QuerySchedulerBuilder(NAMES)


class TransactionDriver:
    """As much of a driver as pgqueuer's statements need, in a transaction that is open."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query."""
        connection = await driver_connection(self._session)
        return [dict(row) for row in await connection.fetch(query, *args)]

    async def execute(self, query: str, *args: object) -> str:
        """Execute a statement."""
        connection = await driver_connection(self._session)
        return str(await connection.execute(query, *args))


class Patience:
    """Goes on trying while the database is away, says so once, and gives up when the worker stops."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._told = ""

    async def __call__(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do `work`, again and again while it meets a DatabaseError."""
        while True:
            try:
                result = await work()
            except DatabaseError as error:
                if self._stopping.is_set():
                    raise
                if error.cause != self._told:
                    log.warning("worker_waiting", code=error.code, cause=error.cause, remedy=error.remedy)
                self._told = error.cause
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._told = ""
                return result


class ServiceDriver(Driver):
    """Gives each statement of pgqueuer a transaction of its own, and wakes those who wait in this process."""

    def __init__(self, database: Database, patiently: Patience) -> None:
        self._database = database
        self._patiently = patiently
        self._callbacks: list[NotifyCallback] = []
        self._shutdown = asyncio.Event()
        self._tasks = TaskManager()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Return the rows of a query."""

        async def work() -> list[dict[str, object]]:
            async with self._database.transaction() as session:
                return await TransactionDriver(session).fetch(query, *args)

        return await self._patiently(work)

    async def execute(self, query: str, *args: object) -> str:
        """Execute a statement."""

        async def work() -> str:
            async with self._database.transaction() as session:
                return await TransactionDriver(session).execute(query, *args)

        return await self._patiently(work)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:  # noqa: ARG002 (there is only one)
        """Have somebody told what this process says."""
        self._callbacks.append(callback)

    async def notify(self, channel: str, payload: str) -> None:  # noqa: ARG002 (there is only one)
        """Tell those who listen in this process; the others ask at short intervals."""
        for callback in self._callbacks:
            callback(payload)

    async def wake(self) -> None:
        """Have this process look for jobs now."""
        event = TableChangedEvent(
            channel=CHANNEL,
            sent_at=datetime.now(UTC),
            type="table_changed_event",
            operation="insert",
            table=NAMES.queue_table,
        )
        await self.notify(CHANNEL, event.model_dump_json())

    @property
    def shutdown(self) -> asyncio.Event:
        """Set when no more work is to be taken."""
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        """Those tasks of the driver that are to be awaited."""
        return self._tasks

    async def __aenter__(self) -> ServiceDriver:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._callbacks.clear()


async def install(database: Database) -> None:
    """Make pgqueuer's tables, or bring them to the version that is installed here; others wait meanwhile."""
    while True:
        async with database.transaction() as session:
            await wait_for_turn(session)
            queries = within(session)
            if not await queries.schema_is_installed():
                await queries.install(create_schema=False)
                return
            statements = (await queries.plan_upgrade()).statements
            # A value that is added to an enumeration cannot be used in the same transaction.
            added = [statement for statement in statements if "ADD VALUE" in statement]
            for statement in added or statements:
                await queries.driver.execute(statement)
        if not added:
            return


def within(session: AsyncSession) -> Queries:
    """Return pgqueuer's own statements, to be executed in a transaction that is open."""
    return Queries(cast("Driver", TransactionDriver(session)), *BUILDERS)
