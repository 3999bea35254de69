"""Audit the lock with pip-audit, and tell "nothing is known" from "nothing could be asked"; called by scripts/audit.

pip-audit alone ends with 0 when the registry knows none of the packages, as one without a list of vulnerabilities does:
it calls them skipped. Here, a package that was skipped is a package that was not audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-all.txt"
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
SHOWN_REASONS = 3


def main() -> None:
    """Audit, print the verdict, and exit with it."""
    dependencies, complaint = audit()
    vulnerable = [each for each in dependencies if each.get("vulns")]
    skipped = [each for each in dependencies if "skip_reason" in each]
    for each in vulnerable:
        for found in each["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "none yet"
            print(f"{each['name']} {each['version']}: {found['id']}, fixed in: {fixed}")
    if vulnerable:
        print(f"VULNERABLE: {len(vulnerable)} of {len(dependencies)} packages. Run scripts/lock --upgrade.")
        sys.exit(VULNERABLE)
    if skipped or not dependencies:
        for reason in sorted({each["skip_reason"] for each in skipped})[:SHOWN_REASONS] or [complaint]:
            print(reason)
        print(f"NOT AUDITED: {len(skipped) or 'all'} packages. Nothing is known about them, good or bad;")
        print("run scripts/audit where https://pypi.org/pypi/NAME/VERSION/json can be reached.")
        sys.exit(UNKNOWN)
    print(f"CLEAN: no vulnerability is known of any of the {len(dependencies)} packages.")
    sys.exit(CLEAN)


def audit() -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of every package, or nothing and its complaint."""
    options = ("--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json", "--timeout=15")
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), *options, *sys.argv[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    complaint = (ended.stderr.strip().splitlines() or ["pip-audit said nothing."])[-1]
    try:
        return json.loads(ended.stdout)["dependencies"], complaint
    except ValueError:
        return [], complaint


if __name__ == "__main__":
    main()
