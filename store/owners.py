"""Who runs what: the name of this process, which tells others whether it lives, and the runs it has under way.

When a process was started is told in a measure that no change of the clock moves: a run must not be taken for dead
because somebody set the time.
"""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
STATE, STARTED_AT = 0, 19
"""Where they stand in /proc/PID/stat behind the name of the program; see proc(5)."""

under_way: set[int] = set()
"""The runs of this process; any other run that bears its name was left behind, for instance by a lost connection."""


def _birth(pid: int) -> str:
    """Say when a process was started; raise psutil.NoSuchProcess if there is none."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return f"{psutil.Process(pid).create_time():.2f}"
    if told[STATE] in ("Z", "X"):
        raise psutil.NoSuchProcess(pid)
    return f"{BOOT.read_text(encoding='ascii').strip()}.{told[STARTED_AT]}"


def _this_process() -> str:
    """Name this process so that another one on the same host can tell whether it is alive."""
    process = psutil.Process()
    namespace = Path("/proc/self/ns/pid")
    namespace_id = namespace.stat().st_ino if namespace.exists() else 0
    return f"{socket.gethostname()}/{namespace_id}/{process.pid}/{_birth(process.pid)}"


OWNER = _this_process()


def has_lost(run: int, owner: str) -> bool:
    """Tell whether nobody works on a run any more, for certain; its owner on another host may always be alive."""
    if owner == OWNER:
        return run not in under_way
    place, _, birth = owner.rpartition("/")
    place, _, pid = place.rpartition("/")
    if place != OWNER.rsplit("/", 2)[0]:
        return False
    try:
        return _birth(int(pid)) != birth
    except psutil.NoSuchProcess:
        return True
