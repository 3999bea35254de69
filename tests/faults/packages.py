"""Programs that some tests need beside Python: installed where root may do that, or else the tests are skipped."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

INSTALL_SECONDS = 60


def install(package: str) -> None:
    """Install a package of Debian's; if that is not possible, the caller will find that it is missing."""
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or apt is None:
        return
    # One worker of pytest-xdist at a time; the next one finds it installed.
    with (Path(tempfile.gettempdir()) / "lockstep-test-apt.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            with suppress(subprocess.SubprocessError, OSError):
                subprocess.run([apt, *arguments], check=True, capture_output=True, timeout=INSTALL_SECONDS)
