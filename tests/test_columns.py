"""Column types: a lattice whose members hold what they say, names that stay apart, changes that are planned purely."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from columns import (
    BIGINT,
    BIGINT_MAX,
    BIGINT_MIN,
    BOOLEAN,
    DOUBLE,
    INFERRED_TYPES,
    JSONB,
    MAX_NAME_BYTES,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    TYPE_ALIASES,
    Column,
    Inference,
    SchemaChange,
    adopt,
    after_change,
    column_name,
    declared_type,
    fits_double,
    fits_numeric,
    infer,
    instant,
    is_integral,
    join,
    key_type,
    loses_literals,
    plan_change,
    shortest,
)
from errors import SettingError
from values import fit_for

types = st.sampled_from((None, *INFERRED_TYPES))
decimals = st.decimals(allow_nan=False, allow_infinity=False).filter(lambda number: abs(number.adjusted()) < 300)
values: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**300), max_value=10**300),
    decimals,
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: Decimal(repr(number))),
    st.text(),
    st.datetimes(timezones=st.timezones()).map(datetime.isoformat),
    st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2023-02-30T00:00:00Z"]),
)


@given(types, types, types)
def test_join_is_that_of_a_lattice(one: str | None, two: str | None, three: str | None) -> None:
    """The join is commutative, associative and idempotent, and null is its neutral element."""
    assert join(one, two) == join(two, one)
    assert join(join(one, two), three) == join(one, join(two, three))
    assert join(one, one) == one
    assert join(one, None) == one


@given(st.lists(values, max_size=6).flatmap(lambda seen: st.tuples(st.just(seen), st.permutations(seen))))
def test_order_of_values_does_not_matter(seen: tuple[list[Any], list[Any]]) -> None:
    """The type found for a field does not depend on the order in which its values were met."""
    first, second = (reduce(join, map(infer, order), None) for order in seen)
    assert first == second


@given(st.lists(values, min_size=1, max_size=5))
@example(["2023-02-30T00:00:00Z"])
@example(["0001-01-01T00:00:00Z", "2020-01-01T00:00:00Z"])
@example(["9999-12-31T23:30:00-01:00"])
@example([Decimal("5e-324"), 2**53 + 1])
def test_the_joined_type_holds_every_value(seen: list[Any]) -> None:
    """Whatever was seen converts to the type that was found, and comes back equal."""
    sql_type = reduce(join, map(infer, seen), None)
    assert sql_type is not None
    fit = fit_for(sql_type)
    for value in seen:
        back = fit.convert(value, "its text")
        if sql_type == JSONB:
            assert back == "its text"
        elif sql_type == DOUBLE:
            assert Decimal(repr(back)) == value
        elif sql_type == TIMESTAMPTZ:
            assert back == datetime.fromisoformat(value.upper())
        else:
            assert back == value


@given(types, types)
def test_joining_never_narrows(one: str | None, two: str | None) -> None:
    """What has been widened once stays so wide: joining again with either type changes nothing."""
    both = join(one, two)
    assert join(both, one) == both
    assert join(both, two) == both


@pytest.mark.parametrize(
    ("value", "sql_type"),
    [
        (None, None),
        (True, BOOLEAN),
        (1, BIGINT),
        (BIGINT_MAX, BIGINT),
        (BIGINT_MIN, BIGINT),
        (BIGINT_MAX + 1, NUMERIC),
        (BIGINT_MIN - 1, NUMERIC),
        (Decimal("0.1"), DOUBLE),
        (Decimal("1e22"), DOUBLE),
        (Decimal("0.1234567890123456789"), NUMERIC),
        (Decimal("1e-400"), NUMERIC),
        (Decimal("4e-324"), NUMERIC),
        (Decimal("1e400"), NUMERIC),
        ("2020-01-31T10:00:00Z", TIMESTAMPTZ),
        ("2020-01-31t10:00:00.123456z", TIMESTAMPTZ),
        ("2020-01-31 10:00:00+0530", TIMESTAMPTZ),
        ("0001-01-01T00:00:00.000001Z", TIMESTAMPTZ),
        ("2020-01-31T10:00:00", TEXT),
        ("2020-01-31T10:00:00.1234567Z", TEXT),
        ("2020-01-31", TEXT),
        ("2020-02-30T10:00:00Z", TEXT),
        ("2016-12-31T23:59:60Z", TEXT),
        ("2020-01-31T10:00:00+24:00", TEXT),
        ("0001-01-01T00:00:00Z", TEXT),
        ("0001-01-01T00:00:00+01:00", TEXT),
        ("0001-01-01T01:00:00+01:00", TEXT),
        ("9999-12-31T23:59:59.999999Z", TEXT),
        ("9999-12-31T23:59:59-00:01", TEXT),
        ("٢٠٢٠-01-31T10:00:00Z", TEXT),
        ("", TEXT),
        ([], JSONB),
        ({}, JSONB),
    ],
)
def test_infer(value: object, sql_type: str | None) -> None:
    """Every value has the narrowest type that holds it, and what the driver would write as infinity stays text."""
    assert infer(value) == sql_type


def test_instants_hold_their_offset() -> None:
    """An instant is read with its offset, and moments at the ends of the calendar are refused."""
    assert instant("2020-01-01T00:00:00+01:00") == datetime(2019, 12, 31, 23, tzinfo=UTC)
    assert instant("9999-12-31T23:59:59.999998Z") == datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1)
    for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00+14:00", "now"):
        with pytest.raises(ValueError, match=r"calendar|offset"):
            instant(text)


@given(decimals)
def test_shortest_changes_no_number(number: Decimal) -> None:
    """Taking zeros off the end of a number leaves its value alone, however many digits it has."""
    assert shortest(number) == number


def test_shortest_keeps_all_digits() -> None:
    """A number of more digits than Python's default context has is not rounded."""
    assert (
        str(shortest(Decimal("12345678901234567890123456789012345.67800"))) == "12345678901234567890123456789012345.678"
    )


@pytest.mark.parametrize("literal", ["1e999999999", "-1e999999999", "1e-999999999", "9" * 4000, "0e999999999"])
def test_huge_numbers_are_judged_at_once(literal: str) -> None:
    """No number is written out to be judged, however large its exponent."""
    number = Decimal(literal)
    assert not fits_numeric(number)
    assert is_integral(Decimal("1e308"))
    assert isinstance(is_integral(number), bool)
    assert isinstance(fits_double(number), bool)


@pytest.mark.parametrize(
    ("value", "sql_type"),
    [
        ("a", TEXT),
        ("", TEXT),
        (1, BIGINT),
        (2**63, NUMERIC),
        (Decimal("1.0"), BIGINT),
        (Decimal("1e30"), NUMERIC),
        (Decimal("1.5"), None),
        (Decimal("1e400"), None),
        (True, None),
        (None, None),
        ([], None),
        ({}, None),
    ],
)
def test_key_type(value: object, sql_type: str | None) -> None:
    """Only texts and whole numbers identify a record."""
    assert key_type(value) == sql_type


names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("ab_", min_size=55, max_size=70),
    st.sampled_from(["", "_sync_x", "_sync_fingerprint", "xmin", "a\0b", "ab", "A", "a", 'q"', "x" * 63, "x" * 64]),
    st.sampled_from(["", "xmin", "_sync_", "x" * 64]).map(column_name),
)


@given(st.lists(names, unique=True, max_size=20))
@example(["", column_name("")])
@example(["xmin", column_name("xmin"), column_name(column_name("xmin"))])
@example(["é" * 40 + "1", "é" * 40 + "2"])
@example(["id", "ID", "Id", "i\0d"])
def test_column_names_are_kept_apart(fields: list[str]) -> None:
    """Different fields have different columns, whose names PostgreSQL takes as they are."""
    columns = [column_name(field) for field in fields]
    assert len(set(columns)) == len(fields)
    assert columns == [column_name(field) for field in fields]
    for name in columns:
        assert 0 < len(name.encode()) <= MAX_NAME_BYTES
        assert "\0" not in name
        assert not name.startswith("_sync_")
        assert name not in {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}


@pytest.mark.parametrize(
    "field", ["id", "ID", 'a"; drop table x', "🎉", "__proto__", " ", "x" * 63, "ä" * 31, "field_x"]
)
def test_columns_are_named_after_their_fields(field: str) -> None:
    """A name that PostgreSQL takes is the column's name, to the letter."""
    assert column_name(field) == field


def test_declared_types() -> None:
    """A declared type is one of those that Lockstep makes, or an alias of one, in any case; others are refused."""
    for name in INFERRED_TYPES:
        assert declared_type(f" {name.upper()} ") == name
    for alias, name in TYPE_ALIASES.items():
        assert declared_type(alias) == name
    for wrong in ("numeric(10,2)", "", "varchar", "text; drop table x"):
        with pytest.raises(SettingError) as caught:
            declared_type(wrong)
        assert repr(wrong) in str(caught.value)


def column(field: str, sql_type: str, *, owned: bool = True) -> Column:
    """Describe a column that is named like its field."""
    return Column(name=column_name(field), field=field, sql_type=sql_type, owned=owned)


def inferred(
    *records: dict[str, Any], key: tuple[str, ...] = ("id",), declared: dict[str, str] | None = None
) -> dict[str, str]:
    """Return the types that columns get from some records."""
    inference = Inference(key, declared or {})
    for record in records:
        inference.observe(record)
    return {found.field: found.sql_type for found in inference.columns()}


def test_inference_puts_the_key_first() -> None:
    """The key's columns come first, in the order of the key, then the others as they were met."""
    found = inferred({"b": 1, "y": 1, "a": "x"}, {"x": True}, key=("a", "b"))
    assert list(found.items()) == [("a", TEXT), ("b", BIGINT), ("y", BIGINT), ("x", BOOLEAN)]


def test_inference_leaves_out_what_has_only_been_null() -> None:
    """A field that has only been null has no column, unless its type is declared."""
    assert inferred({"id": 1, "n": None}) == {"id": BIGINT}
    assert inferred({"id": 1, "n": None}, declared={"n": "float"}) == {"id": BIGINT, "n": DOUBLE}


def test_inference_joins_and_declared_types_win() -> None:
    """Types that disagree are joined; a declared type stands whatever was seen."""
    assert inferred({"id": 1, "x": 1}, {"id": 2, "x": Decimal("0.5")})["x"] == NUMERIC
    assert inferred({"id": 1, "x": 1}, {"id": 2, "x": "a"}, declared={"x": "text"})["x"] == TEXT
    assert inferred({"id": 1}, declared={"id": "text"})["id"] == TEXT


@pytest.mark.parametrize(
    ("keys", "sql_type"),
    [
        ([1, 2, "3"], BIGINT),
        (["a", "b", 3], TEXT),
        ([1, 2**64], NUMERIC),
        ([1, 2**64, "a"], NUMERIC),
        ([1, 2**64, "a", "b", "c"], TEXT),
        ([None, True, {}], TEXT),
        ([None, 1], BIGINT),
        ([Decimal("1.0")], BIGINT),
        ([], TEXT),
    ],
)
def test_the_majority_decides_on_the_key(keys: list[Any], sql_type: str) -> None:
    """One odd key does not turn all others into rejected ones."""
    assert inferred(*({"id": key} for key in keys))["id"] == sql_type


def test_adopt() -> None:
    """A column that the table has already is the user's own, with the table's type."""
    adopted = adopt([column("id", BIGINT), column("x", TEXT)], {"id": "integer", "other": "date"})
    assert adopted == (column("id", "integer", owned=False), column("x", TEXT))


@pytest.mark.parametrize(
    ("wanted", "declared", "table", "change"),
    [
        ({}, {}, {}, SchemaChange()),
        ({"x": None}, {}, {}, SchemaChange()),
        ({"x": None, "mine": None}, {"x": "text"}, {}, SchemaChange()),
        ({"new": TEXT}, {}, {}, SchemaChange(added=(column("new", TEXT),))),
        ({"new": TEXT}, {"new": "jsonb"}, {}, SchemaChange(added=(column("new", JSONB),))),
        ({"new": TEXT}, {}, {"new": "date"}, SchemaChange(added=(column("new", "date", owned=False),))),
        ({"n": DOUBLE}, {}, {}, SchemaChange(widened=(column("n", NUMERIC),))),
        ({"n": BIGINT}, {}, {}, SchemaChange()),
        ({"n": TEXT}, {"n": "bigint"}, {}, SchemaChange()),
        ({"mine": TEXT}, {}, {}, SchemaChange()),
    ],
)
def test_plan_change(
    wanted: dict[str, str | None], declared: dict[str, str], table: dict[str, str], change: SchemaChange
) -> None:
    """New fields get columns, owned columns are widened; the user's own and declared ones are left alone."""
    columns = (column("n", BIGINT), column("mine", "integer", owned=False))
    assert plan_change(columns, wanted, declared, table) == change
    assert bool(change) == (change != SchemaChange())


def test_after_change() -> None:
    """After a change the widened columns stand where they stood, and the new ones at the end."""
    before = (column("a", BIGINT), column("b", BOOLEAN))
    change = SchemaChange(added=(column("c", TEXT),), widened=(column("a", NUMERIC),))
    assert after_change(before, change) == (column("a", NUMERIC), column("b", BOOLEAN), column("c", TEXT))
    assert after_change(before, SchemaChange()) == before


@given(types, st.lists(types, min_size=1))
def test_changes_arrive(first: str | None, wanted: list[str | None]) -> None:
    """Wanting type after type leads to the join of all, and wanting one of them again changes nothing."""
    columns: tuple[Column, ...] = () if first is None else (column("x", first),)
    for sql_type in wanted:
        columns = after_change(columns, plan_change(columns, {"x": sql_type}, {}, {}))
    reached = reduce(join, wanted, first)
    assert columns == (() if reached is None else (column("x", reached),))
    assert not any(plan_change(columns, {"x": sql_type}, {}, {}) for sql_type in wanted)


def test_only_instants_lose_their_spelling() -> None:
    """Only what leaves timestamptz has to be fetched again to be spelled as it was."""
    lossy = {(narrow, wide) for narrow in INFERRED_TYPES for wide in INFERRED_TYPES if loses_literals(narrow, wide)}
    assert {narrow for narrow, _ in lossy} == {TIMESTAMPTZ}
    assert (TIMESTAMPTZ, TIMESTAMPTZ) not in lossy


def test_every_widening_has_a_path() -> None:
    """From any type one gets to jsonb, by way of types that only widen."""
    for start in INFERRED_TYPES:
        steps: list[str | None] = list(accumulate([start, *INFERRED_TYPES], join))
        assert steps[-1] == JSONB
        assert all(join(before, after) == after for before, after in pairwise(steps))


def test_columns_are_values() -> None:
    """A column is a value: replaced, never changed."""
    assert replace(column("a", TEXT), sql_type=JSONB) == column("a", JSONB)
