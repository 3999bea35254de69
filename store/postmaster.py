"""The processes of an embedded server, found by what the operating system says of them.

The number in `postmaster.pid` alone proves nothing: its process may be dead, a zombie, or another program that was
given the same number since, as is usual in containers.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from errors import DatabaseUnavailable

PID_LINE, SOCKET_LINE, STATUS_LINE = 0, 4, 7
"""Where `postmaster.pid` holds what; see PostgreSQL's src/include/utils/pidfile.h."""


def find(cluster: Path) -> psutil.Process | None:
    """Find the live server of this very cluster."""
    number = _line(cluster, PID_LINE)
    if not number.isdecimal():
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(number))
        if _is_postgres(process) and _serves(process, cluster):
            return process
    return None


def state(cluster: Path) -> str:
    """Say how the server is: `absent`, or as it puts it itself: `starting`, `ready` or `stopping`."""
    if find(cluster) is None:
        return "absent"
    return _line(cluster, STATUS_LINE) or "starting"


def socket_directory(cluster: Path) -> str:
    """Return the directory of the running server's socket."""
    return _line(cluster, SOCKET_LINE)


def orphans(cluster: Path) -> list[psutil.Process]:
    """Find the workers of servers that were killed, as far as they belong to the owner of `cluster`.

    They end by themselves, but one that computes may take a while to notice.
    """
    if not (cluster / "postmaster.pid").exists():
        return []
    owner = cluster.stat().st_uid
    return [process for process in psutil.process_iter() if _is_orphan(process, owner)]


def end_orphans(cluster: Path) -> None:
    """Tell the workers of servers that were killed to leave at once; their work is lost already."""
    for process in orphans(cluster):
        with suppress(psutil.Error):
            process.send_signal(signal.SIGQUIT)


def refuse_unseen_server(cluster: Path) -> None:
    """Raise DatabaseUnavailable if somebody serves this cluster whose process cannot be seen from here."""
    if _answers(Path(socket_directory(cluster) or cluster) / ".s.PGSQL.5432"):
        raise DatabaseUnavailable(
            f"The data in {cluster} is in use by a server that cannot be seen from here, such as another container's.",
            remedy="Stop that server, or give each container its own DATA_DIR.",
        )


def drop_stale_lock_files(cluster: Path) -> None:
    """Remove the lock files of a dead server whose number lives on in another process.

    Otherwise they stay: PostgreSQL itself copes with them then, and checks by them that nobody uses its memory.
    """
    number = _line(cluster, PID_LINE)
    if number.isdecimal() and psutil.pid_exists(int(number)):
        (Path(socket_directory(cluster) or cluster) / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        (cluster / "postmaster.pid").unlink()


def _line(cluster: Path, index: int) -> str:
    """Read one line of the file that a running server keeps; empty where there is none."""
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return lines[index].strip() if index < len(lines) else ""


def _is_postgres(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("postgres")


def _serves(process: psutil.Process, cluster: Path) -> bool:
    """Whether the process works in this cluster; a container's root may not look there, but at the command."""
    try:
        return process.cwd() == os.path.realpath(cluster)
    except psutil.AccessDenied:
        return os.path.realpath(cluster) in map(os.path.realpath, process.cmdline())


def _is_orphan(process: psutil.Process, owner: int) -> bool:
    """Whether the process is a worker of PostgreSQL (it calls itself `postgres: …`) whose server is no more."""
    with suppress(psutil.Error):
        is_worker = "".join(process.cmdline()[:1]).startswith("postgres: ")  # empty as soon as it is ending
        if is_worker and _is_postgres(process) and process.uids().real == owner:
            parent = process.parent()
            return parent is None or not _is_postgres(parent)
    return False


def _answers(path: Path) -> bool:
    """Whether a server listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
