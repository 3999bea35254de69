"""Hypercorn: the socket, the signals, one process or several, and an end within bounds."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

import hypercorn
from hypercorn.asyncio import serve
from quart import Quart

import telemetry
from errors import SettingError
from web.service import Service

BACKLOG = 256
CONNECTIONS_END_SECONDS = 10.0
"""How long answers under way may take once the service stops; hypercorn alone might wait for ever."""
CANCELLED_END_SECONDS = 1.0
WORKERS_END_SECONDS = 40.0
RESTART_SECONDS = 1.0

SUCCESS, WRONG_SETTING = 0, 2
"""Exit codes; a defect ends a process with 1."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = telemetry.get_logger(__name__)


class Background(Protocol):
    """Something that runs beside the serving, and is told when that is to end."""

    async def work(self) -> None:
        """Run until `finish_jobs` is called."""

    async def finish_jobs(self) -> None:
        """Begin nothing new, and wait a while for what is under way."""

    async def hand_back(self) -> None:
        """Wait until what was stopped is in good hands."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; SettingError says what is wrong with HOST or PORT."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise SettingError(f"HOST: {host} is not an address of this machine ({exc.strerror}).") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _why_not_bound(host, port, exc) from exc
    return listener


def _why_not_bound(host: str, port: int, error: OSError) -> SettingError:
    if error.errno == errno.EADDRINUSE:
        return SettingError(
            f"PORT: {port} on {host} is already in use.",
            remedy="Stop the program that uses it, perhaps this service started before, or set PORT to another one.",
        )
    if error.errno == errno.EACCES:
        return SettingError(f"PORT: this user may not listen on {port}.", remedy="Set PORT to one above 1023.")
    return SettingError(f"HOST: the service cannot listen on {host} ({error.strerror}).")


def run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` in an event loop of its own: uvloop's where that is installed."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        telemetry.watch_loop(runner.get_loop())
        return runner.run(work)


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def serve_process(
    app: Quart,
    service: Service,
    listener: socket.socket,
    *,
    alongside: Callable[[Service], Coroutine[Any, Any, None]] | None = None,
    worker: Background | None = None,
    until_parent_ends: bool = False,
) -> int:
    """Serve `app` until a signal, doing `alongside` and having `worker` work meanwhile; return the exit code."""
    stop = stop_on_signals()
    if until_parent_ends:
        # The parent holds the other end of standard input open for as long as it lives.
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    try:
        await service.open()
        async with _meanwhile(alongside(service) if alongside else None), _meanwhile(worker.work() if worker else None):
            await _serve_until(stop, app, listener, partial(stop_work, service, worker))
    finally:
        await service.close()
    return SUCCESS


async def work_process(service: Service, worker: Background) -> int:
    """Have `worker` work until a signal, without serving anything; return the exit code."""
    stop = stop_on_signals()
    try:
        await service.open()
        async with _meanwhile(worker.work()):
            await stop.wait()
            log.info(telemetry.SERVICE_STOPPING)
            await stop_work(service, worker)
    finally:
        await service.close()
    return SUCCESS


async def stop_work(service: Service, worker: Background | None) -> None:
    """End the runs: first those of jobs, which get some time to finish, then all others, and the jobs go back."""
    if worker is not None:
        await worker.finish_jobs()
    await service.stop_runs()
    if worker is not None:
        await worker.hand_back()


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    """Do `work` while the block lasts; cancel it at its end."""
    if work is None:
        yield
        return
    task = asyncio.create_task(work)
    task.add_done_callback(telemetry.log_unheard)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _serve_until(
    stop: asyncio.Event, app: Quart, listener: socket.socket, stop_runs: Callable[[], Awaitable[None]]
) -> None:
    async def stop_gracefully() -> None:
        await stop.wait()
        log.info(telemetry.SERVICE_STOPPING)
        # Before hypercorn waits for the connections, so that those waiting for a run get their answer.
        await stop_runs()
        stopped.set()

    stopped = asyncio.Event()
    serving = asyncio.create_task(serve(app, _configure(listener), shutdown_trigger=stop_gracefully))
    deadline = asyncio.create_task(stopped.wait())
    await asyncio.wait({serving, deadline}, return_when=asyncio.FIRST_COMPLETED)
    deadline.cancel()
    await asyncio.wait({serving}, timeout=CONNECTIONS_END_SECONDS)
    if serving.done():
        serving.result()
        return
    serving.cancel()
    await asyncio.wait({serving}, timeout=CANCELLED_END_SECONDS)
    # Connections whose callers take nothing are left to the end of the event loop; over these hypercorn trips.
    if serving.done():
        with suppress(asyncio.CancelledError, asyncio.InvalidStateError):
            serving.result()


@asynccontextmanager
async def serve_for_now(app: Quart, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` for as long as the block lasts."""
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, _configure(listener), shutdown_trigger=stop.wait))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait({serving}, timeout=CONNECTIONS_END_SECONDS)
        serving.cancel()


def _configure(listener: socket.socket) -> hypercorn.Config:
    config = hypercorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    return config


async def supervise(
    command: list[str],
    *,
    count: int,
    listener: socket.socket,
    alongside: Coroutine[Any, Any, None] | None = None,
    stop_seconds: float = 0.0,
) -> int:
    """Keep `count` workers running on one socket until a signal; return the exit code.

    `stop_seconds` is how long the jobs of a worker may take to finish.

    A worker that ends unbidden is replaced. Hypercorn's own multi-process mode is not used: once one worker has ended
    it kills the others in the middle of their runs.
    """
    stop = stop_on_signals()
    end_seconds = WORKERS_END_SECONDS + stop_seconds
    workers = [
        asyncio.create_task(_keep_worker(command, number, listener, stop, end_seconds))
        for number in range(1, count + 1)
    ]
    async with _meanwhile(alongside):
        await asyncio.wait(workers)
    listener.close()
    return max(worker.result() for worker in workers)


async def _keep_worker(
    command: list[str], number: int, listener: socket.socket, stop: asyncio.Event, end_seconds: float
) -> int:
    """Run one worker, and another whenever it ends unbidden; one that cannot be set up ends them all."""
    while True:
        process = await asyncio.create_subprocess_exec(
            *command, str(listener.fileno()), str(number), stdin=asyncio.subprocess.PIPE, pass_fds=[listener.fileno()]
        )
        log.info(telemetry.WORKER_STARTED, number=number, pid=process.pid)
        code = await _wait_for_worker(process, stop, end_seconds)
        log.log(logging.INFO if stop.is_set() else logging.ERROR, telemetry.WORKER_ENDED, number=number, exit_code=code)
        if stop.is_set():
            return code
        if code == WRONG_SETTING:
            stop.set()
            return code
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RESTART_SECONDS)


async def _wait_for_worker(process: asyncio.subprocess.Process, stop: asyncio.Event, end_seconds: float) -> int:
    ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not ended.done():
        process.terminate()
        await asyncio.wait({ended}, timeout=end_seconds)
    if not ended.done():
        process.kill()
    return await ended
