"""Filters, order and pages of rows, held against a brute-force account in Python."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cmp_to_key
from typing import Any
from urllib.parse import urlencode

from store.reading import open_snapshot
from tests.engine import Engine, same
from tests.reading import Record, by_pages, feed_of, rows

VALUES: dict[str, list[Any]] = {
    "name": [None, "", "a", "b", "ab", "oak", "50%", 'say "x", (y)', "x.y", "-1", "null"],
    "n": [None, -5, 0, 3, 2**53 + 1, 2**63 - 1],
    "d": [None, 0.5, -1.25, 1e30, 0.1],
    "exact": [None, Decimal("0.1234567890123456789"), Decimal("12345678901234567890.5"), Decimal("-1.50")],
    "ok": [None, True, False],
    "at": [None, "2024-02-29T23:00:00Z", "2024-03-01T00:00:00.123456+01:00", "1999-12-31T00:00:00Z"],
}


def make_records(count: int, seed: int) -> list[Record]:
    """Make records of all kinds of values; every column has one of each at least."""
    chosen = random.Random(seed)
    records = [
        {"id": number} | {name: chosen.choice(those) for name, those in VALUES.items()} for number in range(count)
    ]
    for name, those in VALUES.items():
        for number, value in enumerate(those):
            records[number][name] = value
    return records


def spelled(value: Any) -> str:
    """Spell a value as a filter does."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def known(value: Any) -> Any:
    """Return what a value compares as."""
    if isinstance(value, str) and value[4:5] == "-" and "T" in value:
        return datetime.fromisoformat(value)
    return Decimal(repr(value)) if isinstance(value, float) else value


Truth = bool | None
Test = Callable[[Record], Truth]
COMPARISONS = {
    "eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip


def compared(field: str, word: str, value: Any) -> Test:
    """Compare as SQL does: what is null is neither equal nor different."""

    def test(record: Record) -> Truth:
        have = record[field]
        return None if have is None else bool(COMPARISONS[word](known(have), known(value)))

    return test


def random_test(chosen: random.Random) -> tuple[str, str, Test]:
    """Return a random condition: the field, how it is spelled after its operator's dot, and what it means."""
    field = chosen.choice(["id", *VALUES])
    values = [value for value in VALUES.get(field, list(range(12))) if value is not None]
    kind = chosen.choice(["compare", "in", "is", "like"])
    if kind == "in":
        several = chosen.sample(values, min(len(values), 2))
        quoted = ",".join('"' + spelled(value).replace('"', '\\"') + '"' for value in several)
        tests = [compared(field, "eq", value) for value in several]
        return field, f"in.({quoted})", lambda record: any_of([test(record) for test in tests])
    if kind == "is":
        return field, "is.null", lambda record: record[field] is None
    if kind == "like" and field == "name":
        return field, "like.*a*", lambda record: None if record[field] is None else "a" in record[field]
    # The order of texts is the collation's; these are alike in all of them.
    word = chosen.choice(["eq", "neq"] if field == "name" else ["eq", "neq", "gt", "gte", "lt", "lte"])
    value = chosen.choice(values)
    return field, f"{word}.{spelled(value)}", compared(field, word, value)


def any_of(truths: Sequence[Truth]) -> Truth:
    """Join by or, as SQL does."""
    return True if True in truths else None if None in truths else False


def all_of(truths: Sequence[Truth]) -> Truth:
    """Join by and, as SQL does."""
    return False if False in truths else None if None in truths else True


def negated(test: Test) -> Test:
    """Turn a condition round; of what is not known the opposite is not known either."""

    def opposite(record: Record) -> Truth:
        found = test(record)
        return None if found is None else not found

    return opposite


def random_filter(chosen: random.Random) -> tuple[str, str, Test]:
    """Return a random parameter: its name, its value, and what it means."""
    if chosen.random() < 0.6:
        field, text, test = random_test(chosen)
        return (field, f"not.{text}", negated(test)) if chosen.random() < 0.3 else (field, text, test)
    word = chosen.choice(["and", "or"])
    members = [random_member(chosen, 2) for _ in range(chosen.randint(1, 3))]
    joined = joined_by(word, [test for _, test in members])
    text = "(" + ",".join(text for text, _ in members) + ")"
    return (f"not.{word}", text, negated(joined)) if chosen.random() < 0.3 else (word, text, joined)


def joined_by(word: str, tests: list[Test]) -> Test:
    """Join conditions."""
    join = all_of if word == "and" else any_of
    return lambda record: join([test(record) for test in tests])


def random_member(chosen: random.Random, depth: int) -> tuple[str, Test]:
    """Return a random member of a group."""
    if depth and chosen.random() < 0.3:
        word = chosen.choice(["and", "or"])
        members = [random_member(chosen, depth - 1) for _ in range(2)]
        text, test = f"{word}({','.join(text for text, _ in members)})", joined_by(word, [test for _, test in members])
    else:
        field, after, test = random_test(chosen)
        word, _, value = after.partition(".")
        if word not in ("in", "is"):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        text = f"{field}.{word}.{value}"
        if chosen.random() < 0.3:
            return f"{field}.not.{word}.{value}", negated(test)
        return text, test
    return (f"not.{text}", negated(test)) if chosen.random() < 0.3 else (text, test)


def random_order(chosen: random.Random) -> tuple[str, Callable[[Record, Record], int]]:
    """Return a random order, and how it compares two records."""
    fields = chosen.sample(["n", "d", "exact", "ok", "at", "id"], chosen.randint(0, 3))
    terms = [(field, chosen.choice([None, False, True]), chosen.choice([None, False, True])) for field in fields]
    words = []
    for field, descending, first in terms:
        suffix = "" if descending is None else ".desc" if descending else ".asc"
        words.append(field + suffix + ("" if first is None else ".nullsfirst" if first else ".nullslast"))

    def compare(one: Record, other: Record) -> int:
        for field, descending, first in [*terms, ("id", None, None)]:
            a, b = known(one[field]), known(other[field])
            nulls_first = bool(descending) if first is None else first
            if a is None or b is None:
                if a is not b:
                    return (-1 if a is None else 1) * (1 if nulls_first else -1)
            elif a != b:
                return (-1 if a < b else 1) * (-1 if descending else 1)
        return 0

    return ",".join(words), compare


async def test_filters_order_and_pages_are_what_they_say(engine: Engine) -> None:
    """Whatever is asked for in whatever order, by pages of any size, is what Python finds in the records."""
    records = make_records(60, 1)
    await engine.sync(feed_of(records))
    chosen = random.Random(7)
    async with open_snapshot(engine.database, engine.source) as snapshot:
        for _ in range(80):
            filters = [random_filter(chosen) for _ in range(chosen.randint(0, 3))]
            order, compare = random_order(chosen)
            wanted = [r for r in records if all(test(r) is True for _, _, test in filters)]
            wanted.sort(key=cmp_to_key(compare))
            parameters = [(name, value) for name, value, _ in filters]
            parameters += [("order", order)] if order else []
            found = await by_pages(snapshot, parameters, chosen.choice([1, 2, 7, 100]) if len(wanted) < 9 else 9)
            assert [row["id"] for row in found] == [record["id"] for record in wanted], urlencode(parameters)


async def test_values_are_exact(engine: Engine) -> None:
    """Every value is given as the feed had it, to the last digit."""
    records = make_records(20, 2)
    await engine.sync(feed_of(records))
    found = {row["id"]: row for row in await rows(engine)}
    for record in records:
        for name, value in record.items():
            have = found[record["id"]][name]
            assert same(known(have), known(value)) if name != "at" or have else have == value
    text = (await rows(engine, "select=at&at=not.is.null&order=at.desc&limit=1"))[0]["at"]
    assert text == "2024-02-29T23:00:00.123456+00:00"
