"""Make or refresh the virtual environment; called by scripts/install. Uses the standard library alone."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "installed.txt"
KEY, ALL = ROOT / "requirements.txt", ROOT / "requirements-all.txt"


def main() -> None:
    """Install what the lists ask for, unless it is installed already."""
    parser = argparse.ArgumentParser(prog="scripts/install", description=__doc__)
    parser.add_argument("--all", action="store_true", help="also what tests and checks need")
    everything: bool = parser.parse_args().all
    with only_one_at_a_time():
        if not runs():
            print(f"Making {ENVIRONMENT} with Python {sys.version.split()[0]}", flush=True)
            venv.create(ENVIRONMENT, clear=True, with_pip=True, symlinks=True)
        if is_current(everything):
            return
        listed = ALL if everything else KEY
        print(f"Installing what {listed.name} lists (the first time may take a minute)", flush=True)
        install(everything)
        STAMP.write_text(f"{listed.name} {digest()}\n", encoding="ascii")


@contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Wait until nobody else installs; whoever comes second finds the work done."""
    with ENVIRONMENT.with_name(f"{ENVIRONMENT.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def runs() -> bool:
    """Whether the environment's Python is there, works, is new enough and has pip."""
    check = "import sys, importlib.util; sys.exit(sys.version_info < (3, 11) or not importlib.util.find_spec('pip'))"
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode == 0


def digest() -> str:
    """Sum up everything that decides what is installed."""
    contents = b"".join(path.read_bytes() for path in (KEY, ALL, ENVIRONMENT / "pyvenv.cfg"))
    return hashlib.sha256(contents).hexdigest()


def is_current(everything: bool) -> bool:
    """Whether the stamp says that these very lists were installed; all includes the key libraries."""
    if not STAMP.exists():
        return False
    listed, _, stamped = STAMP.read_text(encoding="ascii").strip().partition(" ")
    return stamped == digest() and (listed == ALL.name or not everything)


def install(everything: bool) -> None:
    """Run pip; the versions of transitive packages are those of the lock in either case."""
    if everything:
        pip("--require-hashes", "--requirement", str(ALL))
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
        constraints.write("\n".join(pinned()))
        constraints.flush()
        pip("--requirement", str(KEY), "--constraint", constraints.name)


def pinned() -> list[str]:
    """Return the lock without its hashes: with them pip would ask for hashes in requirements.txt too."""
    lines = ALL.read_text(encoding="utf-8").splitlines()
    return [re.sub(r"\s*\\$", "", line) for line in lines if re.match(r"[A-Za-z0-9]", line)]


def pip(*arguments: str) -> None:
    """Install with pip, or end with its own message and what to do."""
    options = ("--quiet", "--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar=off")
    if subprocess.run([PYTHON, "-m", "pip", "install", *options, *arguments], check=False).returncode:
        sys.exit(
            "scripts/install: pip could not install everything; its message is above.\n"
            "Check the network and the package index (pip config list), then run it again: it goes on where it stopped."
        )


if __name__ == "__main__":
    main()
