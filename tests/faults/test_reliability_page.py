"""What docs/reliability.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HOUSE = Path(__file__).parents[2]
PAGE = (HOUSE / "docs" / "reliability.md").read_text(encoding="utf-8")


def names(path: Path) -> set[str]:
    """Return the tests and classes of tests in a file."""
    tree = ast.parse(path.read_bytes())
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_page_names_tests_that_exist() -> None:
    """Every test that the page refers to is there, in its file or, without one, in some file."""
    everywhere = set[str]().union(*(names(path) for path in (HOUSE / "tests").rglob("*.py")))
    referred = re.findall(r"`(tests/[\w/]+\.py)?(?:::)?((?:\w+::)?(?:Test|test_)\w+)?`", PAGE)
    named = [(path, name) for path, name in referred if path or name]
    assert len(named) > 80
    for path, name in named:
        known = names(HOUSE / path) if path else everywhere
        assert set(name.split("::")) - {""} <= known, f"{path}::{name} is not there"
