"""The project's own files, as the tests about the code itself see them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_THE_SERVICE = frozenset({"tests", "bench", "scripts", "data", "docs", "build"})


def service_files() -> list[Path]:
    """Every Python file that the service is made of."""
    return sorted([*ROOT.glob("*.py"), *(path for unit in _packages() for path in (ROOT / unit).rglob("*.py"))])


def all_files() -> list[Path]:
    """Every Python file of the project, tests and tools included."""
    others = (path for unit in ("tests", "bench", "scripts") for path in (ROOT / unit).rglob("*.py"))
    return [*service_files(), *(path for path in others if "/." not in f"/{path.relative_to(ROOT)}")]


def units() -> set[str]:
    """The modules and packages at the top level."""
    return {path.stem for path in ROOT.glob("*.py")} | _packages()


def unit_of(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the top-level name of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative imports hide where a name comes from"
            yield node.lineno, (node.module or "").split(".")[0]


def _packages() -> set[str]:
    return {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_THE_SERVICE
