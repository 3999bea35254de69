"""The embedded server: a PostgreSQL of the service's own, started on demand and shared by its processes.

Under `DATA_DIR/postgres` lie `lock`, held while the server is started or stopped, and `users`, held by everyone who
uses the server: the kernel lets go of it when a process dies, however it dies. The cluster and, where needed, a copy of
the programs lie beside them, or in the place that the file `location` names (see `binaries.shelter`).

Everything here blocks, so it runs in a thread; `start` and `stop` are the only ways in.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import psutil
import structlog

from errors import DatabaseUnavailable, SettingError
from store import postmaster
from store.binaries import (
    Account,
    Binaries,
    abandoned_shelters,
    account_for,
    can_enter,
    find_binaries,
    own,
    run,
    shelter,
)

START_SECONDS = 300.0
"""How long a start may take: recovery after a crash reads the log again from the last checkpoint."""
STOP_SECONDS = 60.0
"""How long a fast shutdown may take before it is cut short, which costs the next start a recovery."""
POLL_SECONDS = 0.02
MAX_SOCKET_PATH = 100
"""A socket's path has at most 108 bytes on Linux, 104 on macOS."""
MAX_LOG_BYTES = 10 * 2**20
QUOTED_LINES = 4
BUILTIN_LOCALE_MAJOR = 17
"""Since this version a locale with the characters of Unicode comes with PostgreSQL, the same on every system."""

CONNECTION_SETTINGS = """\
# Written by Lockstep at every start. Settings of your own belong into tuning.conf, which wins over this file.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket_directory}'
unix_socket_permissions = 0700
"""
FIRST_TUNING = """\
# Yours to edit: Lockstep wrote this file once and leaves it alone. It takes effect at the next start of the server.
shared_buffers = '256MB'
max_wal_size = '2GB'
"""

log = structlog.stdlib.get_logger()


class EmbeddedServer:
    """A PostgreSQL under `data_dir`, used by any number of processes at once.

    The first to `start` starts it, the last to `stop` stops it. It outlives a service that was killed; the next one
    takes it over.
    """

    def __init__(self, data_dir: Path, *, bin_dir: Path | None = None) -> None:
        """Say where the data is kept and, in `bin_dir`, where PostgreSQL's programs are if not the installed ones."""
        self._base = data_dir.absolute() / "postgres"
        self._home = self._base
        self._bin_dir = bin_dir
        self._users: int | None = None
        self._one_at_a_time = threading.Lock()

    @property
    def data_directory(self) -> Path:
        """PostgreSQL's own directory; may lie outside of `data_dir` once root has started the server."""
        return self._home / "cluster"

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self.data_directory / "server.log"

    async def start(self) -> str:
        """Start the server unless it runs already, join its users, and return its SQLAlchemy URL.

        May be called again at any time, for instance to bring back a server that was killed. Raises SettingError
        where the set-up cannot work, and DatabaseUnavailable where the server does not come up.
        """
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Leave, and stop the server if nobody else uses it."""
        await asyncio.to_thread(self._stop)

    def _start(self) -> str:
        with self._one_at_a_time:
            try:
                self._base.mkdir(parents=True, exist_ok=True)
                with _locked(self._base / "lock"):
                    return self._join()
            except OSError as exc:
                raise DatabaseUnavailable(
                    f"The embedded PostgreSQL under {self._home} cannot be started: {exc}.",
                    remedy="See that the directory is writable and its disk has space, or set DATA_DIR elsewhere, "
                    "or set DATABASE_URL to a server of your own.",
                ) from exc

    def _join(self) -> str:
        """Hold the use count before the server is looked at, and let go of it if the server does not come up."""
        if self._users is not None:
            self._bring_up()
        else:
            self._users = os.open(self._base / "users", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._home = _recorded_home(self._base)
                self._bring_up()
            except BaseException:
                self._leave()
                raise
        return f"postgresql+asyncpg://postgres@/postgres?host={quote(postmaster.socket_directory(self.data_directory))}"

    def _stop(self) -> None:
        with self._one_at_a_time:
            if self._users is None:
                return
            try:
                with _locked(self._base / "lock"):
                    fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._shut_down()
            except BlockingIOError:
                log.info("embedded_postgres_left_to_others", data_directory=str(self.data_directory))
            except FileNotFoundError:  # DATA_DIR was deleted, so nobody else can find this server any more
                self._shut_down()
            finally:
                self._leave()

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _bring_up(self) -> None:
        """Start the server unless it runs; one that a killed service left behind may still be starting or stopping."""
        _wait_until(
            lambda: postmaster.state(self.data_directory) in ("absent", "ready"),
            START_SECONDS,
            "come to rest",
            self.log_file,
        )
        if postmaster.state(self.data_directory) == "ready":
            return
        began = time.monotonic()
        self._launch()
        log.info("embedded_postgres_started", data_directory=str(self.data_directory), seconds=_seconds_since(began))

    def _launch(self) -> None:
        account = account_for(self.data_directory)
        self._move_within_reach(account)
        binaries = find_binaries(
            self._bin_dir,
            major=_recorded_major(self.data_directory),
            account=account,
            refuge=self._home,
            owner=self._home,
        )
        if not self.data_directory.exists():
            self._initialise(binaries, account)
        self._configure(account)
        self._clear_remains()
        _rotate(self.log_file)
        written = self.log_file.stat().st_size if self.log_file.exists() else 0
        arguments = ["-D", str(self.data_directory), "-l", str(self.log_file), "-w", "-t", f"{START_SECONDS:.0f}"]
        outcome = run([str(binaries.directory / "pg_ctl"), *arguments, "start"], account)
        if outcome.returncode:
            _fail("did not come up", outcome.stderr + _tail(self.log_file, written), self.log_file)

    def _move_within_reach(self, account: Account | None) -> None:
        """Keep the cluster elsewhere if `account` cannot enter our directory, and record where."""
        if account is None or can_enter(self._home, account):
            return
        if self.data_directory.exists():
            raise SettingError(
                f"The embedded PostgreSQL runs as {account.name}, who can no longer enter {self._home}.",
                remedy=f"Let {account.name} pass through its parent directories (chmod o+x), or move DATA_DIR.",
            )
        _end_abandoned_servers()
        self._home = shelter(self._base, account)
        (self._base / "location").write_text(f"{self._home}\n", encoding="utf-8")
        log.info("embedded_postgres_sheltered", data_dir=str(self._base), location=str(self._home))

    def _initialise(self, binaries: Binaries, account: Account | None) -> None:
        """Make the cluster aside and move it into place, so that there is a whole one or none."""
        aside = self._home / "cluster.new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        own(aside, account)
        unicode_locale = ["--locale-provider=builtin", "--locale=C.UTF-8"]
        options = [
            *(unicode_locale if binaries.major >= BUILTIN_LOCALE_MAJOR else ["--locale=C"]),
            *("--encoding=UTF8", "--username=postgres", "--data-checksums"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
        ]
        outcome = run([str(binaries.directory / "initdb"), "-D", str(aside), *options], account)
        if outcome.returncode:
            shutil.rmtree(aside, ignore_errors=True)
            _fail("could not make its cluster", outcome.stderr, self.log_file)
        with (aside / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write("\ninclude 'lockstep.conf'\ninclude_if_exists 'tuning.conf'\n")
        _write(aside / "tuning.conf", FIRST_TUNING, account)
        aside.rename(self.data_directory)

    def _configure(self, account: Account | None) -> None:
        """Write the settings that depend on where the cluster lies now."""
        directory = _socket_directory(self.data_directory)
        if directory != self.data_directory:
            _make_private(directory, account)
        settings = CONNECTION_SETTINGS.format(socket_directory=directory)
        _write(self.data_directory / "lockstep.conf", settings, account)

    def _clear_remains(self) -> None:
        """Make way for a new server where one was killed; its workers must be gone before the files are touched."""
        postmaster.refuse_unseen_server(self.data_directory)
        postmaster.end_orphans(self.data_directory)
        _wait_until(
            lambda: not postmaster.orphans(self.data_directory), STOP_SECONDS, "let go of its data", self.log_file
        )
        postmaster.drop_stale_lock_files(self.data_directory)

    def _shut_down(self) -> None:
        """Stop the server: connections are cut, transactions rolled back, everything is flushed to disk."""
        began = time.monotonic()
        if (server := postmaster.find(self.data_directory)) is None:
            postmaster.end_orphans(self.data_directory)
            return
        with suppress(psutil.NoSuchProcess):
            server.send_signal(signal.SIGINT)
            if not _becomes_true(self._is_gone, STOP_SECONDS):
                log.warning("embedded_postgres_stop_cut_short", seconds=STOP_SECONDS)
                server.send_signal(signal.SIGQUIT)
                _wait_until(self._is_gone, STOP_SECONDS, "stop", self.log_file)
        log.info("embedded_postgres_stopped", data_directory=str(self.data_directory), seconds=_seconds_since(began))

    def _is_gone(self) -> bool:
        return postmaster.find(self.data_directory) is None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file lock at `path`; the other processes wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _end_abandoned_servers() -> None:
    """Stop the sheltered servers whose DATA_DIR was deleted; what they hold is for the user to delete."""
    for place, owner in abandoned_shelters():
        if server := postmaster.find(place / "cluster"):
            with suppress(psutil.NoSuchProcess):
                server.send_signal(signal.SIGINT)
        log.warning("embedded_postgres_abandoned", location=str(place), belonged_to=str(owner))


def _recorded_home(base: Path) -> Path:
    """Where the cluster lies: in `base`, or where the file `location` says."""
    try:
        home = Path((base / "location").read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return base
    if not home.is_dir():
        raise SettingError(
            f"The data of the embedded PostgreSQL should lie in {home}, as {base / 'location'} says, but is gone.",
            remedy="Bring that directory back, or delete the file to begin with an empty database.",
        )
    return home


def _recorded_major(cluster: Path) -> int | None:
    """Return the major version that wrote the cluster; PostgreSQL records it there."""
    try:
        return int((cluster / "PG_VERSION").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def _socket_directory(cluster: Path) -> Path:
    """Choose where the socket goes: beside the data, unless a connection URL could not name that place."""
    if len(str(cluster)) + len("/.s.PGSQL.5432") < MAX_SOCKET_PATH and re.fullmatch(
        r"[\w./-]+", str(cluster), re.ASCII
    ):
        return cluster
    name = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lockstep-{name}"


def _make_private(directory: Path, account: Account | None) -> None:
    """Make a directory for the socket that nobody else can enter, and trust none that somebody else made."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        own(directory, account)
    found = directory.lstat()
    if directory.is_symlink() or found.st_uid != (account.uid if account else os.geteuid()) or found.st_mode & 0o077:
        raise SettingError(
            f"The socket of the embedded PostgreSQL would go into {directory}, which somebody else has made.",
            remedy="Remove that directory, or set DATA_DIR to a shorter path of plain letters and digits.",
        )


def _write(path: Path, text: str, account: Account | None) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    own(path, account)


def _rotate(log_file: Path) -> None:
    """Keep one older log, so that the two together stay bounded."""
    if log_file.exists() and log_file.stat().st_size > MAX_LOG_BYTES:
        log_file.replace(log_file.with_suffix(".log.1"))


def _tail(log_file: Path, start: int) -> str:
    """Read what the server has written to its log since it was `start` bytes long."""
    if not log_file.exists():
        return ""
    with log_file.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", errors="replace")


def _fail(what: str, output: str, log_file: Path) -> NoReturn:
    """Raise the error that quotes the lines of `output` which say why, or the last ones where none does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search("FATAL|PANIC|error|invalid|could not", line)]
    raise DatabaseUnavailable(
        f"The embedded PostgreSQL {what}: {' | '.join((telling or lines)[-QUOTED_LINES:]) or 'it gave no reason'}.",
        remedy=f"Put right what it names (its log is {log_file}), or set DATABASE_URL to a server of your own.",
    )


def _becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll: processes that are not our children cannot be awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _wait_until(condition: Callable[[], bool], seconds: float, what: str, log_file: Path) -> None:
    if not _becomes_true(condition, seconds):
        _fail(f"did not {what} within {seconds:.0f} seconds", "", log_file)


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 3)
