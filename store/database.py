"""The way to the database: one engine, one kind of transaction, and errors that name their remedy.

Every setting of a session is local to its transaction and no statement stays prepared on a connection, so that it makes
no difference whether connections come straight from the server or through a pooler in transaction mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal

import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from errors import (
    DatabaseBlocked,
    DatabaseContended,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
)

Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

CONNECT_TIMEOUT_SECONDS = 10
IDLE_IN_TRANSACTION_SECONDS = 600
"""A transaction of ours waits for this process only; if that hangs for so long, the server may end it."""

BROKEN = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the driver raises on a broken connection; the last one when it breaks between two steps of a statement."""

RUN_SETTING = "lockstep.run"
"""Set to the run's id in transactions of a run; the triggers take writes without it for foreign ones."""


class Database:
    """One engine and its session factory."""

    def __init__(self, engine: AsyncEngine, *, lock_timeout_seconds: float, statement_timeout_seconds: float) -> None:
        self.engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._settings = {
            "lock_timeout": f"{round(lock_timeout_seconds * 1000)}ms",
            "statement_timeout": f"{round(statement_timeout_seconds * 1000)}ms",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
            "TimeZone": "UTC",
            "jit": "off",
            # A run joins few records to many rows; with the default, the planner reads all rows to find them.
            "random_page_cost": "1.1",
            # Where it joins many to many, hash tables that fit into memory keep the order of the rows on disk.
            "work_mem": "64MB",
        }
        names = (*self._settings, RUN_SETTING)
        self._set = "SELECT " + ", ".join(f"set_config('{name}', ${i}, true)" for i, name in enumerate(names, 1))

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        pool_size: int,
        lock_timeout_seconds: float = 10,
        statement_timeout_seconds: float = 0,
    ) -> Database:
        """Make the engine for a `postgresql+asyncpg://` URL; connections are opened when they are needed.

        A timeout of 0 means none.
        """
        engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT_SECONDS,
            hide_parameters=True,
            connect_args={
                "timeout": CONNECT_TIMEOUT_SECONDS,
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                # Nameless, for behind a pooler a name is left on one connection while its release goes to another.
                "prepared_statement_name_func": lambda: "",
                "server_settings": {"application_name": "lockstep"},
            },
        )
        return cls(
            engine, lock_timeout_seconds=lock_timeout_seconds, statement_timeout_seconds=statement_timeout_seconds
        )

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation = "READ COMMITTED", run: int | None = None
    ) -> AsyncIterator[AsyncSession]:
        """Open a session in one transaction; commit at the end, roll back on any error.

        With `run`, the triggers on mirrors take what is written for that run's own writes. Raises DatabaseError.
        """
        try:
            async with await self._begun(isolation, run) as session:
                yield session
                await session.commit()
        except (SQLAlchemyError, asyncpg.PostgresError, *BROKEN) as error:
            raise translate(error) from error

    async def _begun(self, isolation: Isolation, run: int | None) -> AsyncSession:
        """Return a session whose transaction has begun, on a connection that answers.

        One from the pool may have been lost while it lay there. The first statement finds that out; there is no need to
        ask before. The pool then takes all that were opened before for lost, so the next one is new.
        """
        try:
            return await self._begun_once(isolation, run)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return await self._begun_once(isolation, run)

    async def _begun_once(self, isolation: Isolation, run: int | None) -> AsyncSession:
        async with AsyncExitStack() as opened:
            session = await opened.enter_async_context(self._sessions())
            connection = await session.connection(execution_options={"isolation_level": isolation})
            # The driver begins its transaction with the first statement; without one, a COPY would not be in it.
            await connection.exec_driver_sql(self._set, (*self._settings.values(), "" if run is None else str(run)))
            opened.pop_all()
        return session

    @asynccontextmanager
    async def own_connection(self) -> AsyncIterator[Any]:
        """Open the driver's connection outside of the pool, and of a transaction, for one that listens."""
        try:
            async with self.engine.connect() as connection:
                with suppress(DBAPIError):  # if it was lost while it lay in the pool, the next one is new
                    await connection.exec_driver_sql("SELECT 1")
                await connection.rollback()
                own: Any = (await connection.get_raw_connection()).driver_connection
                await connection.run_sync(sa.Connection.detach)
                yield own
        except (SQLAlchemyError, asyncpg.PostgresError, *BROKEN) as error:
            raise translate(error) from error

    async def ping(self) -> None:
        """Raise DatabaseError unless the database answers."""
        async with self.transaction() as session:
            await session.execute(sa.select(1))

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


async def driver_connection(session: AsyncSession) -> Any:
    """Return the asyncpg connection behind a session, for COPY inside its transaction."""
    raw = await (await session.connection()).get_raw_connection()
    return raw.driver_connection


UNAVAILABLE = "08", "57P", "28", "3D"
"""SQLSTATEs, by their beginning: connection lost, server going down, password wrong, no such database."""

BLOCKED = "55P03"
CONTENDED = "40001", "40P01"
REFUSALS = {
    "53100": "Free some space on the database server, then sync again.",
    "53300": "Raise max_connections on the server, or lower DB_MAX_POOL.",
    "25006": "Point the service at the primary server; this one is read-only.",
    "42501": "Grant the service's user the right that is named, then sync again.",
    "57014": "Raise DB_STATEMENT_TIMEOUT_SECONDS, or find out what makes the statement slow.",
    "23": "Correct the source, or drop the constraint that is named, then sync again.",
}
"""What to do about refusals, by the beginning of their SQLSTATE."""


def translate(error: BaseException) -> DatabaseError:
    """Return our error for one of the driver or of SQLAlchemy, with cause and remedy."""
    if isinstance(error, PoolTimeout):
        return DatabaseUnavailable(
            "All connections of the service are in use.", remedy="Raise DB_MAX_POOL, or call less often."
        )
    original = _original(error)
    state = getattr(original, "sqlstate", None) or ""
    message = _first_line(original)
    if state == BLOCKED:
        return DatabaseBlocked(f"The database waited too long for a lock: {message}.")
    if state in CONTENDED:
        return DatabaseContended(f"Another session wrote to the same rows: {message}.")
    for beginning, remedy in REFUSALS.items():
        if state.startswith(beginning):
            return DatabaseRefused(f"The database refused: {message}.", remedy=remedy)
    if state.startswith(UNAVAILABLE) or _is_lost_connection(error, original):
        return DatabaseUnavailable(f"The database is not available: {message}.")
    return DatabaseRefused(f"The database refused: {message}.")


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's error, or of the one that SQLAlchemy wrapped; empty if it has none."""
    return getattr(_original(error), "sqlstate", None) or ""


def detail(error: BaseException) -> str:
    """Return on one line what the database says about an error beyond its message, or else that."""
    original = _original(error)
    return " ".join(str(getattr(original, "detail", None) or _first_line(original)).rstrip(".").splitlines())


def _original(error: BaseException) -> BaseException:
    """Return the driver's own error from beneath what SQLAlchemy wrapped around it."""
    while isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    cause = error.__cause__
    return cause if isinstance(cause, asyncpg.PostgresError | asyncpg.InterfaceError) else error


def _is_lost_connection(error: BaseException, original: BaseException) -> bool:
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(original, BROKEN)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
