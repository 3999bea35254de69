"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions

from tests.codebase import ROOT, all_files, imports, service_files, unit_of, units

# Who may import whom; imports flow one way. A new module gets a line here, as low as it can stand.
WORDS = "errors definitions models telemetry columns"
"""What the whole house speaks: its errors, its values, its log, the types of columns."""
RECORDS = "values fingerprints spool records rows"
MAY_IMPORT = {
    "errors": "",
    "definitions": "errors",
    "models": "errors",
    "access": "errors models",
    "presets": "",
    "telemetry": "errors models",
    "columns": "errors models telemetry",
    "sources_file": "errors definitions columns presets",
    "config": "errors definitions models sources_file",
    "values": "errors models columns",
    "fingerprints": "errors models columns",
    "spool": "errors models columns",
    "store": f"{WORDS} access values fingerprints",
    "projection": "errors definitions",
    "sources": f"{WORDS} projection",
    "records": "errors models columns values spool",
    "fast_rows": "errors models columns values spool records",
    "rows": "errors models columns values spool records fast_rows",
    "cursors": "spool",
    "deciding": f"{WORDS} values fingerprints rows",
    "cooling": f"{WORDS} store",
    "gathering": f"{WORDS} {RECORDS} cursors cooling projection store sources deciding",
    "shaping": f"{WORDS} store",
    "leaving": f"{WORDS} {RECORDS} cursors store deciding gathering",
    "applying": f"{WORDS} {RECORDS} cursors store deciding gathering shaping leaving",
    "running": f"{WORDS} store",
    "sync": f"{WORDS} {RECORDS} cursors store sources deciding gathering applying running",
    "undoing": f"{WORDS} store applying running",
    "schedules": "errors definitions",
    "ticking": f"{WORDS} schedules store",
    "worker": f"{WORDS} schedules store ticking",
    "web": f"{WORDS} access cooling presets schedules store sources sync undoing",
    "app": f"{WORDS} access config store sources sync undoing web worker",
    "commands": f"{WORDS} config access projection sources sources_file store undoing web app",
    "cli": f"{WORDS} config store sources sync undoing web app commands",
}

# Libraries that only some units may know.
CONFINED = {
    "aiohttp": "sources",
    "quart": "web app commands",
    "hypercorn": "web app",
    "asyncpg": "store fast_rows",
    "click": "cli commands",
    "pgqueuer": "store worker",
    "joserfc": "web",
    "argon2": "web",
}

LONGEST_FUNCTION, LONGEST_MODULE = 60, 400


def test_imports_flow_one_way() -> None:
    """A module imports only what the table allows it."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in service_files()
        for line, name in imports(path)
        if name in MAY_IMPORT and name != unit_of(path) and name not in MAY_IMPORT[unit_of(path)].split()
    ]
    assert wrong == []


def test_libraries_stay_where_they_belong() -> None:
    """What a unit must not know about, it does not import."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in service_files()
        for line, name in imports(path)
        if name in CONFINED and unit_of(path) not in CONFINED[name].split()
    ]
    assert wrong == []


def test_the_table_is_complete_and_has_no_circle() -> None:
    """Every module stands in the table, and nothing else does."""
    assert set(MAY_IMPORT) == units()
    tuple(TopologicalSorter({unit: allowed.split() for unit, allowed in MAY_IMPORT.items()}).static_order())


def test_no_name_is_taken() -> None:
    """No module hides one of the standard library or of an installed package."""
    assert units() & (sys.stdlib_module_names | packages_distributions().keys()) == set()


def test_nothing_is_too_long() -> None:
    """A module fits into one head, a function onto one screen; there are no exceptions."""
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in all_files()}
    modules = [
        f"{path} has {lines} lines" for path, text in texts.items() if (lines := text.count("\n")) > LONGEST_MODULE
    ]
    functions = [
        f"{path}:{node.lineno} {node.name} has {lines} lines"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := length(node)) > LONGEST_FUNCTION
    ]
    assert modules + functions == []


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1
