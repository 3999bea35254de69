"""The service: what it answers, how it begins and how it ends."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import telemetry
from columns import declared_type
from config import SAMPLE_PATH, Settings, is_loopback, load_settings
from definitions import Source, Sources
from errors import BadRequest, LockstepError, SettingError
from store.database import Database
from store.embedded import EmbeddedServer
from web import auth, bodies, changes, headers, health, parameters, ping, runs, sources, symbols, tables, undo
from web.answers import (
    all_answer,
    answer,
    error_answer,
    http_error_answer,
    plan_content,
    report_answer,
    unexpected_error_answer,
)
from web.sample import Pinned, pinned, sample_blueprint
from web.service import GivenServer, Server, Service, current_service
from web.serving import WRONG_SETTING, bind, run_loop, serve_process, supervise, work_process
from web.sign_in import SignInRules, sign_in_blueprint

if TYPE_CHECKING:
    from worker import Worker  # imported where it is used, for it brings the job engine

MAX_REQUEST_BYTES = 64 * 2**10
"""No request needs much of a body; one that is larger, or becomes larger when it is decompressed, is refused."""

SHORT_SECRET_KEY = 32
"""Characters; a key that is shorter might be guessed, and then access tokens forged."""

EVERY_SOURCE = "all"

QUIET_ENDPOINTS = frozenset({"health.live", "health.ready"})
"""Asked every few seconds by whoever watches the service: logged at DEBUG only."""

Alongside = Callable[[Service], Coroutine[Any, Any, None]]

log = telemetry.get_logger(__name__)


async def hello_world() -> Response:
    """Say that this is the service."""
    return Response("Hello World", content_type="text/plain; charset=utf-8")


async def sync_data() -> Response:
    """Bring mirrors in step with their sources, or say with `?dry_run=1` what that would change."""
    if request.method == "HEAD":
        raise MethodNotAllowed(valid_methods=["GET", "POST"])
    parameters.only("source", "mode", "dry_run", "plan", "approve")
    dry_run, plan = parameters.flag("dry_run"), parameters.plan_hash("plan")
    approve, mode = parameters.whole_number("approve"), parameters.run_mode("mode")
    name = request.args.get("source")
    if name == EVERY_SOURCE:
        parameters.only("source")
        return all_answer(await current_service().sync_all())
    service = current_service()
    if dry_run and (plan or approve):
        raise BadRequest("A dry run neither applies a plan nor approves a hold.")
    if approve:
        auth.require("admin")  # the guard exists because nobody but a person should decide this
    try:
        source = await service.source_meant(name, approve)
        if dry_run:
            return answer(plan_content(await service.plan(source, mode=mode)))
        return report_answer(await service.sync(source, mode=mode, plan=plan, approve=approve))
    except LockstepError as exc:
        return error_answer(exc, of_run=True)


def create_app(settings: Settings, *, sign_in_rules: SignInRules | None = None) -> Quart:
    """Return the application; it reaches its database when it is served, and serves before that is reached."""
    app = Quart("lockstep", static_folder=None)
    service = create_service(settings)
    app.extensions["lockstep"] = service
    app.before_serving(service.open)
    app.after_serving(service.close)
    app.add_url_rule("/", view_func=hello_world, methods=["GET"])
    app.add_url_rule("/sync_data", view_func=sync_data, methods=["GET", "POST"])
    app.register_blueprint(health.blueprint)
    for blueprint in (
        runs.blueprint,
        changes.blueprint,
        tables.blueprint,
        undo.blueprint,
        symbols.blueprint,
        ping.blueprint,
        sources.blueprint,
    ):
        app.register_blueprint(blueprint)
    if settings.uses_sample:
        app.register_blueprint(sample_blueprint(path=SAMPLE_PATH, data_dir=settings.data_dir))
    keys = access_keys(settings)
    app.register_blueprint(sign_in_blueprint(keys, sign_in_rules or SignInRules()))
    _log_requests(app)
    headers.harden(app)
    auth.guard(app, keys=keys, is_loopback=is_loopback)
    bodies.read_all(app, most_bytes=MAX_REQUEST_BYTES)
    _answer_errors(app)
    return app


def create_service(settings: Settings) -> Service:
    """Return what serves the requests: the sources, the server of their database, and the runs."""
    return Service(
        sources=checked_sources(settings),
        look_at=partial(looked_at, settings),
        server=database_server(settings),
        connect=partial(connect, settings),
        spool_dir=settings.spool_dir,
        settle_seconds=settings.settle_seconds,
    )


def looked_at(settings: Settings, source: Source, version: Pinned = "next") -> Source:
    """Return what to fetch where fetching is not to move a source on, as it would the sample."""
    return pinned(source, version) if settings.uses_sample else source


def checked_sources(settings: Settings) -> Sources:
    """Return the sources; SettingError names SOURCE_TYPES if a declared type is unknown."""
    try:
        for declared in settings.source_types.values():
            declared_type(declared)
    except SettingError as exc:
        raise SettingError(f"SOURCE_TYPES: {exc.cause}", remedy=exc.remedy) from exc
    return settings.sources()


def database_server(settings: Settings) -> Server:
    """Return the server that the settings name, or the embedded one."""
    url = settings.resolved_database_url
    return EmbeddedServer(settings.data_dir, bin_dir=settings.pg_bin_dir) if url is None else GivenServer(url)


def connect(settings: Settings, url: str) -> Database:
    """Return the database at `url` with this worker's share of the connections."""
    return Database.connect(
        url,
        pool_size=settings.pool_size_per_worker,
        lock_timeout_seconds=settings.db_lock_timeout_seconds,
        statement_timeout_seconds=settings.db_statement_timeout_seconds,
    )


def access_keys(settings: Settings) -> auth.Keys | None:
    """Return what callers are known by, or None where nobody but this machine can call."""
    if not settings.needs_secret or settings.secret_key is None:
        return None
    secret_key = settings.secret_key.get_secret_value()
    return auth.Keys.of(secret_key, token_lifetime_seconds=settings.token_lifetime_seconds)


def _log_requests(app: Quart) -> None:
    @app.before_request
    async def begin() -> None:
        g.began = time.monotonic()

    @app.after_request
    async def end(response: Response) -> Response:
        (log.debug if request.endpoint in QUIET_ENDPOINTS else log.info)(
            telemetry.REQUEST_HANDLED,
            method=request.method,
            path=request.path,
            status=response.status_code,
            duration_ms=round((time.monotonic() - g.began) * 1000),
        )
        return response


def _answer_errors(app: Quart) -> None:
    @app.errorhandler(LockstepError)
    async def known(error: LockstepError) -> Response:
        return error_answer(error)

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        return http_error_answer(error)

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        log.error(telemetry.REQUEST_FAILED, method=request.method, path=request.path, exc_info=error)
        return unexpected_error_answer()


def set_up_logging(settings: Settings, *, console: bool = True) -> None:
    """Begin to log as the settings say, to the console too unless told otherwise."""
    telemetry.setup_logging(
        log_file=settings.log_file,
        level=settings.log_level,
        log_format=settings.log_format,
        max_bytes=settings.log_max_bytes,
        backups=settings.log_backups,
        secrets=settings.secrets(),
        console=console,
    )


def serve(settings: Settings, *, alongside: Alongside | None = None) -> int:
    """Serve until SIGTERM or SIGINT, doing `alongside` meanwhile; return the exit code."""
    set_up_logging(settings)
    checked_sources(settings)
    listener = bind(settings.host, settings.port)
    log.info(telemetry.SERVICE_STARTED, url=settings.base_url, workers=settings.workers_count, pid=os.getpid())
    _warn_of_short_key(settings)
    if settings.workers_count == 1:
        return run_loop(_serve_here(settings, listener, alongside=alongside))
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    return run_loop(
        supervise(
            command,
            count=settings.workers_count,
            listener=listener,
            alongside=_alongside_workers(settings, alongside) if alongside else None,
            stop_seconds=settings.worker_stop_seconds,
        )
    )


def _warn_of_short_key(settings: Settings) -> None:
    if settings.secret_key is not None and len(settings.secret_key.get_secret_value()) < SHORT_SECRET_KEY:
        log.warning(
            telemetry.SECRET_KEY_SHORT,
            remedy=f"Make SECRET_KEY at least {SHORT_SECRET_KEY} random characters, as openssl rand -hex 32 does.",
        )


async def _serve_here(
    settings: Settings, listener: socket.socket, *, alongside: Alongside | None = None, worker: bool = False
) -> int:
    app = create_app(settings)
    service: Service = app.extensions["lockstep"]
    return await serve_process(
        app,
        service,
        listener,
        alongside=alongside,
        worker=create_worker(settings, service) if settings.worker else None,
        until_parent_ends=worker,
    )


def create_worker(settings: Settings, service: Service) -> Worker | None:
    """Return what syncs the sources on their schedules, or None if none has one."""
    if not any(source.schedules for source in service.sources):
        return None
    from worker import Worker, WorkerOptions

    options = WorkerOptions(
        concurrency=settings.jobs_at_once,
        heartbeat_seconds=settings.worker_heartbeat_seconds,
        stop_seconds=settings.worker_stop_seconds,
    )
    return Worker(service, options)


def work(settings: Settings) -> int:
    """Sync sources on their schedules until SIGTERM or SIGINT, without serving; return the exit code."""
    set_up_logging(settings)

    async def work_here() -> int:
        service = create_service(settings)
        worker = create_worker(settings, service)
        if worker is None:
            raise SettingError("No source has a schedule.", remedy="Give sources `every` or `cron` in SOURCES_FILE.")
        return await work_process(service, worker)

    return run_loop(work_here())


async def _alongside_workers(settings: Settings, alongside: Alongside) -> None:
    service = create_service(settings)
    try:
        await service.open()
        await alongside(service)
    finally:
        await service.close()


def serve_as_worker(settings: Settings, *, socket_number: int, worker: int) -> int:
    """Serve on the socket that the parent opened, until a signal or the parent's end."""
    set_up_logging(settings)
    telemetry.bind(worker=worker)
    return run_loop(_serve_here(settings, socket.socket(fileno=socket_number), worker=True))


def main() -> None:
    """Start the service as a standalone application."""
    match sys.argv[1:]:
        case []:
            sys.exit(run_reporting_errors(serve))
        case ["--worker", socket_number, worker]:
            as_worker = partial(serve_as_worker, socket_number=int(socket_number), worker=int(worker))
            sys.exit(run_reporting_errors(as_worker))
        case _:
            sys.exit("python app.py takes no arguments; see python cli.py --help.")


def run_reporting_errors(start: Callable[[Settings], int]) -> int:
    """Load the settings and start; say on standard error, without a traceback, what keeps the service from starting."""
    telemetry.setup_logging(log_file=None)  # until the settings are known; structlog's own set-up shows local variables
    try:
        return start(load_settings())
    except LockstepError as exc:
        log.debug(telemetry.SERVICE_FAILED, exc_info=exc)
        sys.stderr.write(f"Lockstep cannot start. {telemetry.redact(str(exc))}\n")
        return WRONG_SETTING


if __name__ == "__main__":
    main()
