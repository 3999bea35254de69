"""What one process of the service holds: its database, once that is there, and the runs it has under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from quart import current_app

import sync
import telemetry
from definitions import RunMode, Source, Sources
from errors import DatabaseError, DatabaseUnavailable, LockstepError, RunInterrupted
from models import Plan, Report
from store.database import Database
from store.migrations import upgrade
from store.runs import reap_stale_runs, select_run
from undoing import select_source_of_run, undo_run
from web.streams import Streams

WAIT_SECONDS = 1.0
"""Between two attempts to reach a database that is away."""
WATCH_SECONDS = 5.0
"""Between two looks at a server that this process can bring back."""
PING_SECONDS = 3.0
NOT_REACHED_YET = "The database has not been reached yet."
RUNS_AT_ONCE = 4
"""How many sources are synced at the same time when all of them are asked for."""
STOP_SECONDS = 15.0
"""How long a run may take to roll back and to record that it was interrupted."""

Result = TypeVar("Result")

log = telemetry.get_logger(__name__)


class Server(Protocol):
    """A PostgreSQL server that may have to be started; both methods may be called again and again."""

    async def start(self) -> str:
        """Return the URL at which it is, or will be, reached."""

    async def stop(self) -> None:
        """Stop what `start` started."""


@dataclass(frozen=True)
class GivenServer:
    """A PostgreSQL server that somebody else runs."""

    url: str = field(repr=False)

    async def start(self) -> str:
        """Return its URL."""
        return self.url

    async def stop(self) -> None:
        """Leave it alone."""


class Service:
    """The database of this process, its readiness, and its runs.

    The service answers while the database is away, and goes on by itself when it comes back.
    """

    def __init__(
        self,
        *,
        sources: Sources,
        look_at: Callable[[Source], Source],
        server: Server,
        connect: Callable[[str], Database],
        spool_dir: Path | None = None,
        settle_seconds: float = 0.0,
    ) -> None:
        """Make a service; `look_at` gives what to fetch of a source so that fetching does not move it on."""
        self.sources = sources
        self.streams = Streams()
        self._look_at = look_at
        self._server = server
        self._connect = connect
        self._spool_dir = spool_dir
        self._settle_seconds = settle_seconds
        self._url = ""
        self._database: Database | None = None
        self._why_not_ready: LockstepError = DatabaseUnavailable(NOT_REACHED_YET)
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._runs: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Begin to reach the database; SettingError where that can never work. A second call changes nothing."""
        if self._keeper is None:
            with suppress(DatabaseError):
                await self._server.start()
            self._keeper = asyncio.create_task(self._keep_database())

    async def close(self) -> None:
        """End the runs, let go of the database, and stop the server if it is ours. A second call changes nothing."""
        await self.stop_runs()
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.cancel()
            await asyncio.wait({keeper})
            if self._database is not None:
                await self._database.close()
            await self._server.stop()
            log.info(telemetry.SERVICE_STOPPED)

    async def wait_until_ready(self) -> None:
        """Wait for the database."""
        await self._ready.wait()

    @property
    def url(self) -> str:
        """Where the database was last reached; it may hold a password."""
        return self._url

    @property
    def database(self) -> Database:
        """The database with its tables in place; DatabaseUnavailable says why there is none yet."""
        if self._database is None or not self._ready.is_set():
            raise self._why_not_ready
        return self._database

    async def check(self) -> None:
        """Raise DatabaseError unless the database answers right now."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self.database.ping()
        except TimeoutError as exc:
            raise DatabaseUnavailable(f"The database did not answer within {PING_SECONDS:g} seconds.") from exc

    async def sync(
        self, source: Source, *, mode: RunMode | None = None, plan: str | None = None, approve: int | None = None
    ) -> Report:
        """Run one sync to its end, even when the caller goes away, then wait the time it is to settle."""
        report = await self.run(source, mode=mode, plan=plan, approve=approve)
        await self._settle()
        return report

    async def sync_all(self) -> list[tuple[Source, Report | LockstepError]]:
        """Sync all sources, a few at a time; one that fails does not keep the others from it."""
        turns = asyncio.Semaphore(RUNS_AT_ONCE)

        async def outcome(source: Source) -> Report | LockstepError:
            async with turns:
                try:
                    return await self.run(source)
                except LockstepError as error:
                    return error

        outcomes = await asyncio.gather(*map(outcome, self.sources))
        await self._settle()
        return list(zip(self.sources, outcomes, strict=True))

    async def run(
        self, source: Source, *, mode: RunMode | None = None, plan: str | None = None, approve: int | None = None
    ) -> Report:
        """Run one sync to its end, even when the caller goes away."""
        return await self._finish(
            sync.sync_data(self.database, source, mode=mode, plan=plan, approve=approve, spool_dir=self._spool_dir)
        )

    async def undo(self, run: int) -> Report:
        """Take a run back, even when the caller goes away."""
        source = await select_source_of_run(self.database, self.sources, run)
        return await self._finish(undo_run(self.database, source, run))

    async def source_meant(self, name: str | None, approve: int | None) -> Source:
        """Return the source of a name or, where a hold is approved without one, of the run that holds."""
        held = await select_run(self.database, approve) if name is None and approve is not None else None
        return self.sources.named(held.source if held else name)

    async def plan(self, source: Source, *, mode: RunMode | None = None) -> Plan:
        """Find out what a sync would do now."""
        looked_at = self._look_at(source)
        return await self._finish(sync.plan_data(self.database, looked_at, mode=mode, spool_dir=self._spool_dir))

    async def _settle(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._settle_seconds)

    async def stop_runs(self) -> None:
        """Accept no further run, end the event streams, cancel the runs and wait until they have recorded it."""
        self._stopping.set()
        self.streams.end()
        for task in self._runs:
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs, timeout=STOP_SECONDS)

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work` in a task of its own, which outlives a caller that hangs up."""
        if self._stopping.is_set():
            work.close()
            raise RunInterrupted("The service is stopping.")
        task = asyncio.create_task(work)
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise RunInterrupted("The service was stopped before the run was finished.") from None
            task.add_done_callback(telemetry.log_unheard)
            raise

    async def _keep_database(self) -> None:
        while True:
            try:
                url = await self._server.start()
                if not self._ready.is_set():
                    await self._make_ready(url)
            except LockstepError as exc:
                self._note_failure(exc)
            except Exception as exc:
                self._note_failure(_unknown(exc), exc_info=exc)
            else:
                self._why_not_ready = DatabaseUnavailable(NOT_REACHED_YET)
            await asyncio.sleep(WATCH_SECONDS if self._ready.is_set() else WAIT_SECONDS)

    async def _make_ready(self, url: str) -> None:
        self._database = self._database or self._connect(url)
        self._url = url
        await self._database.ping()
        await upgrade(self._database)
        reaped = await reap_stale_runs(self._database)
        self._ready.set()
        log.info(telemetry.DATABASE_READY, runs_found_interrupted=reaped)

    def _note_failure(self, error: LockstepError, *, exc_info: Exception | None = None) -> None:
        """Keep the reason for whoever asks, and log it once, not at every attempt."""
        if str(error) != str(self._why_not_ready):
            details = {"code": error.code, "cause": error.cause, "remedy": error.remedy}
            log.warning(telemetry.DATABASE_WAITING, **details, exc_info=exc_info)
        self._why_not_ready = error


def _unknown(error: Exception) -> DatabaseError:
    return DatabaseError(
        f"The database could not be made ready ({type(error).__name__}).", remedy=LockstepError.default_remedy
    )


def current_service() -> Service:
    """Return the service that the current request belongs to."""
    return cast("Service", current_app.extensions["lockstep"])
