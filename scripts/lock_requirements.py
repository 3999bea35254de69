"""Pin every package for Python 3.11 to 3.13 on Linux and macOS; called by scripts/lock."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by scripts/lock from requirements.in; do not edit.\n"


def main() -> None:
    """Resolve both lists together, then pin the key libraries to what came out."""
    command = [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--universal", "--generate-hashes"),
        *("--python-version", "3.11", "--no-annotate", "--strip-extras", "--no-header"),
        *("--no-emit-index-url", "--no-emit-find-links"),
        *("requirements.in", "requirements-tools.in", "--output-file", "requirements-all.txt", *sys.argv[1:]),
    ]
    if outcome := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(outcome)
    locked = ROOT / "requirements-all.txt"
    pins = read_pins(locked.read_text(encoding="utf-8"))
    listed = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    (ROOT / "requirements.txt").write_text(HEADER + pin(listed, pins), encoding="utf-8")


def read_pins(lock: str) -> dict[str, str]:
    """Return the version of every package in a lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def pin(listed: list[str], pins: dict[str, str]) -> str:
    """Give every requirement its exact version, and keep the headings."""
    body = listed[listed.index("") :]  # the words above the first empty line are about requirements.in
    return "".join(f"{pin_line(line, pins)}\n" for line in body)


def pin_line(line: str, pins: dict[str, str]) -> str:
    """Pin one line; comments and empty ones stay as they are."""
    if not line or line.startswith("#"):
        return line
    requirement = Requirement(line.split(" #", maxsplit=1)[0])
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}{extras}=={pins[canonicalize_name(requirement.name)]}{marker}"


if __name__ == "__main__":
    main()
