"""What is installed, shipped and started: lists, scripts, container files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config import Settings, load_settings
from tests.codebase import NOT_THE_SERVICE, ROOT, imports, service_files, units

STANDARD = sys.stdlib_module_names | {"compression"}  # which is standard from Python 3.14 on
SCRIPTS = ("install", "run", "test", "format", "lock")


def listed(name: str) -> dict[str, Requirement]:
    """The requirements in a file by their normalised names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(re.split(r" #| \\", line)[0]) for line in lines if re.match("[A-Za-z]", line)]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def is_exact(requirement: Requirement) -> bool:
    """Whether exactly one version satisfies the requirement."""
    return [specifier.operator for specifier in requirement.specifier] == ["=="]


def test_the_two_lists_agree() -> None:
    """Every pin of requirements.txt stands in requirements-all.txt with the same version."""
    key, everything = listed("requirements.txt"), listed("requirements-all.txt")
    assert all(is_exact(requirement) for requirement in [*key.values(), *everything.values()])
    differing = [name for name in key if name not in everything or key[name].specifier != everything[name].specifier]
    assert differing == [], "run scripts/lock"


def test_the_lists_are_those_that_were_asked_for() -> None:
    """Each requirement of the .in files is pinned, within the bounds that they set."""
    key, everything = listed("requirements.txt"), listed("requirements-all.txt")
    asked, tools = listed("requirements.in"), listed("requirements-tools.in")
    assert key.keys() == asked.keys(), "run scripts/lock"
    assert tools.keys() <= everything.keys(), "run scripts/lock"
    outside = [
        name
        for name, requirement in (asked | tools).items()
        if not requirement.specifier.contains(next(iter(everything[name].specifier)).version)
    ]
    assert outside == [], "run scripts/lock"


def test_everything_is_hashed_and_no_index_is_named() -> None:
    """The lock holds a hash for each package, and nothing of the place where it was made."""
    text = (ROOT / "requirements-all.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
    assert [block.split(" ", 1)[0] for block in blocks if "--hash=sha256:" not in block] == []
    for name in ("requirements.txt", "requirements-all.txt"):
        assert not re.search(r"://|--(extra-)?index-url|--find-links", (ROOT / name).read_text(encoding="utf-8"))


def test_every_import_is_a_listed_requirement() -> None:
    """What the service imports directly, requirements.txt names: nothing is borrowed from another package's needs."""
    known, distributions = listed("requirements.txt"), packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in service_files()
        for line, name in imports(path)
        if name not in units() | NOT_THE_SERVICE | STANDARD
        and not any(canonicalize_name(distribution) in known for distribution in distributions.get(name, []))
    }
    assert missing == set()


@pytest.mark.parametrize("path", [*(f"scripts/{name}" for name in SCRIPTS), ".ci/run"])
def test_scripts_can_be_typed(path: str) -> None:
    """Each command is executable, says what it does, and stops at the first failure."""
    script = ROOT / path
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert re.match(r"#!/bin/sh\n# [A-Z]", text)
    assert "\nset -eu\n" in text
    subprocess.run(["sh", "-n", script], check=True)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A directory for PATH with nothing in it but what every system has."""
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    return tmp_path


def install_with(path: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/install where only the programs in `path` are found."""
    return subprocess.run(
        ["/bin/sh", ROOT / "scripts" / "install"], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )


def add_python(path: Path, name: str, body: str) -> None:
    """Put a program into `path` that stands for some Python."""
    (path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (path / name).chmod(0o755)


def test_install_says_when_there_is_no_python(bare_path: Path) -> None:
    """Shims that lead nowhere and old versions do not count, and the message says what is needed."""
    add_python(bare_path, "python3.12", "exit 127")
    add_python(bare_path, "python3", "exit 1")
    outcome = install_with(bare_path)
    assert outcome.returncode == 1
    assert "no Python 3.11 or newer" in outcome.stderr


def test_install_says_when_venv_is_missing(bare_path: Path) -> None:
    """Debian's Python comes without venv; the message names the package to install."""
    add_python(bare_path, "python3", 'case "$2" in *ensurepip*) exit 1;; esac')
    outcome = install_with(bare_path)
    assert outcome.returncode == 1
    assert "apt install python3-venv" in outcome.stderr


def test_install_prefers_a_python_that_has_everything(bare_path: Path) -> None:
    """A Python that lacks venv is passed over for one that has it."""
    add_python(bare_path, "python3.13", 'case "$2" in *ensurepip*) exit 1;; esac')
    add_python(bare_path, "python3.11", 'case "$1" in -c) exit 0;; *) echo "chosen: $1"; esac')
    outcome = install_with(bare_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == f"chosen: {ROOT}/scripts/install_packages.py\n"


def dockerfile() -> list[str]:
    """The instructions of the last stage, that which is shipped."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    last = max(index for index, line in enumerate(instructions) if line.startswith("FROM "))
    return instructions[last:]


def test_the_image_is_slim_and_runs_without_rights() -> None:
    """The image runs as a numbered user, tells whether it lives, and starts the service itself as its first process."""
    instructions = dockerfile()
    assert re.fullmatch(r"FROM python:3\.1[123]-slim", instructions[0])
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", "\n".join(instructions), re.MULTILINE)
    assert any(line.startswith("HEALTHCHECK ") and "/health/live" in line for line in instructions)
    assert json.loads(instructions[-1].removeprefix("CMD ")) == ["python", "app.py"]


def test_the_image_holds_no_secrets_and_all_of_the_service() -> None:
    """Hidden files such as .env and .git stay out; no module of the service does."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ".*" in patterns
    assert not {*patterns} & {*units(), *(f"{unit}.py" for unit in units())}


def compose() -> dict[str, Any]:
    """The services of compose.yaml."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return services


def test_compose_demands_its_secrets_and_waits_for_the_database() -> None:
    """No secret has a default, and the service starts when PostgreSQL 17 is ready."""
    service, postgres = compose()["lockstep"], compose()["postgres"]
    secrets = [
        *(service["environment"][name] for name in ("SECRET_KEY", "password_for_sql")),
        postgres["environment"]["POSTGRES_PASSWORD"],
    ]
    assert all(re.match(r"\$\{\w+:\?", secret) for secret in secrets)
    assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert postgres["image"] == "postgres:17"
    assert "pg_isready" in postgres["healthcheck"]["test"]


def test_compose_sets_only_settings_that_exist() -> None:
    """Each variable that compose.yaml gives the service is one of its settings."""
    assert {name.lower() for name in compose()["lockstep"]["environment"]} <= Settings.model_fields.keys()


def test_the_example_of_settings_is_complete_and_shows_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """.env.example names every setting, and uncommenting all of it changes nothing."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    example = dict(re.findall(r"^# ([A-Za-z_]+)=(.*)$", text, re.MULTILINE))
    assert {name.lower() for name in example} == Settings.model_fields.keys()
    for name in [name for name in os.environ if name.lower() in Settings.model_fields]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # where no .env lies
    defaults = load_settings()
    for name, value in example.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == defaults
