"""The log: its set-up, its event names, and what keeps secrets and forged lines out of it.

A log line is a constant event name plus fields. Every logger, ours and those of the libraries, ends in the same two
handlers: the console, and a file that several processes may share and that is rotated by size.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast
from urllib.parse import quote, quote_plus

import structlog
from concurrent_log_handler import ConcurrentRotatingFileHandler

from errors import LockstepError, SettingError

LogFormat = Literal["console", "json"]

SERVICE_STARTED = "service_started"
SERVICE_STOPPING = "service_stopping"
SERVICE_STOPPED = "service_stopped"
SERVICE_FAILED = "service_failed"
WORKER_STARTED = "worker_started"
WORKER_ENDED = "worker_ended"
DATABASE_READY = "database_ready"
DATABASE_WAITING = "database_waiting"
EMBEDDED_STARTED = "embedded_server_started"
EMBEDDED_STOPPED = "embedded_server_stopped"
RUN_STARTED = "run_started"
RUN_FINISHED = "run_finished"
RUN_HELD = "run_held"
RUN_FAILED = "run_failed"
RUN_INTERRUPTED = "run_interrupted"
RUNS_REAPED = "runs_reaped"
REQUEST_HANDLED = "request_handled"
REQUEST_REFUSED = "request_refused"
REQUEST_FAILED = "request_failed"
SIGNED_IN = "signed_in"
SIGN_IN_REFUSED = "sign_in_refused"
ACCESS_CHANGED = "access_changed"
SECRET_KEY_SHORT = "secret_key_short"  # noqa: S105 (the name of an event)
UNCAUGHT_ERROR = "uncaught_error"

HIDDEN = "***"
SHORTEST_SECRET = 4
"""Shorter values are not searched for: hiding every "a" would hide the log, and URLs are covered by their form."""

_CUT = "…"
"""Stands where an excerpt ends."""

_secrets: list[str] = []

_SECRET_NAME = r"[\w.\-]*(?:api_?-?key|apikey|secret|token|passw(?:or)?d|passphrase|pwd|credential|signature)[\w.\-]*"  # noqa: S105 (a pattern)
_SECRET_FIELD = re.compile(rf"^(?:{_SECRET_NAME}|authorization|proxy-authorization|cookie|set-cookie)$", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/?#'\"<>]*@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"(?<![\w.\-])({_SECRET_NAME})(=|%3D)[^\s&'\"#,;)\]}}]+", re.IGNORECASE), rf"\1\2{HIDDEN}"),
    (re.compile(r"([?&](?:key|auth|sig|code|access)=)[^\s&'\"#]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(r"((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:\w+ +)?[^\s'\",]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/\-]{6,}=*"), rf"\1 {HIDDEN}"),
    # Service tokens and JSON web tokens, wherever they were put by mistake.
    (re.compile(r"(?<![\w\-])(?:ls_[\w\-]{20,}|eyJ[\w\-]{8,}\.[\w\-]+\.[\w\-]*)"), HIDDEN),
)
_CAREFULLY_ESCAPED = re.compile(r"\\u[0-9a-f]{4}|[&'+<>`]")
"""What some writers of JSON escape by number, in capitals, besides quotes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; call it with one of the event names above and fields."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bound(**fields: object) -> AbstractContextManager[None]:
    """Put `fields` (`run`, `source`) on every line logged inside the block, in tasks started there too."""
    return cast("AbstractContextManager[None]", structlog.contextvars.bound_contextvars(**fields))


def bind(**fields: object) -> None:
    """Put `fields` on every later line of this context."""
    structlog.contextvars.bind_contextvars(**fields)


def register_secrets(secrets: Iterable[str]) -> None:
    """Hide these values, however they are spelt, wherever they turn up."""
    _secrets[:] = sorted(spellings(secrets).union(_secrets), key=len, reverse=True)


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with these values hidden, however they are spelt, and where an excerpt cuts them."""
    return _hide(text, sorted(spellings(secrets), key=len, reverse=True))


def _hide(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        text = text.replace(form, HIDDEN)
        if _CUT in text and form[:SHORTEST_SECRET] in text:
            for length in range(len(form) - 1, SHORTEST_SECRET - 1, -1):
                text = text.replace(f"{form[:length]}{_CUT}", f"{HIDDEN}{_CUT}")
    return text


def spellings(secrets: Iterable[str]) -> set[str]:
    """Return how secrets may turn up; those that are too short to be searched for are left out."""
    return {form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _spellings(secret)}


def _spellings(secret: str) -> set[str]:
    """Return what a secret looks like as it is, in a URL, in Python, in HTML, in JSON, and in JSON inside of JSON."""
    in_json = _in_json(secret)
    nested = {form for once in in_json for form in _in_json(once)}
    in_url = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    return {secret, repr(secret)[1:-1], escape(secret), html.escape(secret), *in_url, *in_json, *nested}


def _in_json(text: str) -> set[str]:
    """Return how JSON spells a text: with or without escapes for letters, slashes, and what means something in HTML."""
    plain = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    slashed = {form.replace("/", r"\/") for form in plain}
    careful = _CAREFULLY_ESCAPED.sub(lambda match: _code(match[0]), json.dumps(text)[1:-1].replace(r"\"", _code('"')))
    return {*plain, *slashed, careful}


def _code(character: str) -> str:
    """Return the JSON escape of a character, or of what is one already, with its letters in capitals."""
    return rf"\u{character[2:].upper() or f'{ord(character):04X}'}"


def redact(text: str) -> str:
    """Return `text` with registered secrets, userinfo in URLs, credentials in queries and headers hidden."""
    text = _hide(text, _secrets)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def escape(text: str) -> str:
    """Return `text` with line breaks, escape sequences and other control characters made visible, on one line."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def clean(value: Any) -> Any:
    """Redact and escape every string inside `value`; other types of value become their `str`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            escape(str(name)): HIDDEN if item and _SECRET_FIELD.match(str(name)) else clean(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item) for item in value]
    return escape(redact(str(value)))


def clean_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make one event one line, free of secrets; a traceback keeps its lines, indented so none poses as an event."""
    traceback = event.pop("exception", None)
    cleaned: dict[str, Any] = clean(event)
    if traceback:
        cleaned["exception"] = "\n".join(f"    {escape(line)}" for line in redact(str(traceback)).splitlines())
    return cleaned


def setup_logging(
    *,
    log_file: Path | None,
    level: str = "INFO",
    log_format: LogFormat = "console",
    max_bytes: int = 10 * 2**20,
    backups: int = 5,
    secrets: Iterable[str] = (),
    console: bool = True,
) -> None:
    """Send every log line to the console (standard error) and to `log_file`; SettingError if that is unwritable."""
    register_secrets(secrets)
    handlers: list[logging.Handler] = []
    if console:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(_formatter(log_format, colors=sys.stderr.isatty()))
        handlers.append(screen)
    if log_file is not None:
        shared_file = _open_log_file(log_file, max_bytes=max_bytes, backups=backups)
        shared_file.setFormatter(_formatter(log_format, colors=False))
        handlers.append(shared_file)
    _replace_root_handlers(handlers, level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_COMMON_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log what goes wrong in a task, callback or transport that nobody awaits."""
    loop.set_exception_handler(_log_loop_error)


def log_unheard(task: asyncio.Task[Any]) -> None:
    """Log, as a task's done callback, the error that nobody is left to hear; those of our own were logged already."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, LockstepError):
        get_logger(__name__).error(UNCAUGHT_ERROR, exc_info=error)


_COMMON_PROCESSORS: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


class SharedLogFile(ConcurrentRotatingFileHandler):
    """A log file for several processes, which rotates by size; a full disk ends neither a run nor the service."""

    def __init__(self, filename: str, *, max_bytes: int, backups: int) -> None:
        super().__init__(filename, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
        self._complained = False

    @staticmethod
    def baseLockFilename(baseFilename: str) -> tuple[str, str]:  # noqa: N802, N803 (the library's names)
        """Name the lock file after the log, hidden beside it: app.log is guarded by .app.log.lock."""
        path = Path(baseFilename)
        return str(path.parent), f".{path.name}.lock"

    def do_write(self, msg: str) -> None:
        """Write one record; after a failure that is over, complain again about the next one."""
        super().do_write(msg)
        self._complained = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """Say once on standard error that the file cannot be written; the console still shows every line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._complained:
            self._complained = True
            reason = error.strerror or type(error).__name__
            sys.stderr.write(
                f"{self.baseFilename} cannot be written ({reason}). Work goes on; lines appear here only.\n"
            )

    def close(self) -> None:
        """Close log and lock; what a full disk did not take is lost, as standard error said."""
        if self.stream is not None:
            with suppress(OSError):
                self.stream.close()
        super().close()


def _open_log_file(path: Path, *, max_bytes: int, backups: int) -> SharedLogFile:
    handler = SharedLogFile(str(path), max_bytes=max_bytes, backups=backups)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for needed in (path, Path(handler.lockFilename)):
            with needed.open("a"):
                pass
    except OSError as exc:
        raise SettingError(
            f"LOG_FILE: {path} cannot be written ({exc.strerror}).",
            remedy="Set LOG_FILE to a file that this user may write, or make that directory writable.",
        ) from exc
    return handler


def _formatter(log_format: LogFormat, *, colors: bool) -> logging.Formatter:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_COMMON_PROCESSORS,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            clean_event,
            renderer,
        ],
    )


def _replace_root_handlers(handlers: list[logging.Handler], level: str) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        get_logger(__name__).critical(UNCAUGHT_ERROR, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None:
        get_logger(__name__).critical(UNCAUGHT_ERROR, exc_info=error)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if not isinstance(error, asyncio.CancelledError):  # what was cancelled at the end of the process is no defect
        get_logger(__name__).error(UNCAUGHT_ERROR, reason=context.get("message"), exc_info=error)
