"""The documentation keeps up with the code: what exists is described, and what is named exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import errors
from app import create_app
from cli import cli
from config import load_settings
from tests.codebase import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    """Return a page as it is written."""
    return (ROOT / name).read_text(encoding="utf-8")


def known_errors(kind: type[errors.LockstepError] = errors.LockstepError) -> Iterator[type[errors.LockstepError]]:
    """Yield a class of errors and all that are derived from it."""
    yield kind
    for derived in kind.__subclasses__():
        yield from known_errors(derived)


def commands(group: click.Group, path: str = "") -> Iterator[str]:
    """Yield the words of every command; groups that do nothing by themselves are none."""
    for name, command in group.commands.items():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{path}{name}"
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_error_has_its_remedy_in_the_guide() -> None:
    """Whoever meets a code finds it in docs/operations.md, and no code stands there that does not exist."""
    section = read("docs/operations.md").partition("## Every error and its remedy")[2]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert documented == {kind.code for kind in known_errors()} | {"held"}


def test_every_route_is_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The guides name every address that the service answers."""
    monkeypatch.chdir(tmp_path)
    addresses = re.findall(r"`(?:[A-Z]+ )?(/[^`?\s]*)", GUIDES)
    named = {re.sub(r"(?<=/)[A-Z]+(?=/|$)", "ID", address) for address in addresses}
    routes = {re.sub(r"<.*?>", "ID", rule.rule) for rule in create_app(load_settings()).url_map.iter_rules()}
    assert routes - named == set()


def test_every_command_is_documented() -> None:
    """The guides have a row for every command of cli.py."""
    rows = re.findall(r"^\| `([a-z][a-z ]*[a-z])[^`]*` \|", GUIDES, re.MULTILINE)
    assert set(commands(cli)) - set(rows) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link in the documentation leads to a file that exists, and to a heading in it."""
    dead = []
    for place, anchor in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(f"{place}#{anchor}" if anchor else place)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """Every script, test and module that a page names is there."""
    named = re.findall(r"(?<![\w/.\-])((?:scripts|tests|store|sources|web|bench)/[\w/.\-]*\w)", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
