"""What is left to the soak of the tests of faults."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one case of each test run behind the pooler; the others differ in values, which are all the same to it."""
    seen: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if "test_pgbouncer.py" in test and test in seen:
            item.add_marker(pytest.mark.soak)
        seen.add(test)
