"""From the parameters of a request to what is asked of rows: pure reading, without a database."""

from __future__ import annotations

import pytest

from errors import BadRequest
from store.query import ALL, Condition, Field, Group, Ordering, Query, Shown
from web.filters import read_query


def condition(column: str, operator: str, *values: str, negated: bool = False) -> Condition:
    """Make a condition on a column."""
    return Condition(field=Field(column=column), operator=operator, values=values, negated=negated)  # type: ignore[arg-type] # spelled by the tests


@pytest.mark.parametrize(
    ("name", "value", "filters"),
    [
        ("a", "eq.1", (condition("a", "eq", "1"),)),
        ("a", "not.eq.x.y,(z)", (condition("a", "eq", "x.y,(z)", negated=True),)),
        ("a", 'eq."x"', (condition("a", "eq", '"x"'),)),
        ("a", "eq.", (condition("a", "eq", ""),)),
        ("a", 'in.(1,"b,c","d\\"e",)', (condition("a", "in", "1", "b,c", 'd"e', ""),)),
        ("a", "in.()", (condition("a", "in"),)),
        ("a", "is.NULL", (condition("a", "is", "NULL"),)),
        ('"limit"', "gt.5", (condition("limit", "gt", "5"),)),
        ('"a->b"', "gt.5", (condition("a->b", "gt", "5"),)),
        ("a.b", "gt.5", (condition("a.b", "gt", "5"),)),
        (
            "or",
            '(a.eq."x,y",not.and(b.not.is.null,c.in.(1,2)),and.eq.5)',
            (
                Group(
                    every=False,
                    members=(
                        condition("a", "eq", "x,y"),
                        Group(
                            every=True,
                            members=(condition("b", "is", "null", negated=True), condition("c", "in", "1", "2")),
                            negated=True,
                        ),
                        condition("and", "eq", "5"),
                    ),
                ),
            ),
        ),
        (
            "not.and",
            '("a.b".lt.1)',
            (Group(every=True, members=(condition("a.b", "lt", "1"),), negated=True),),
        ),
    ],
)
def test_filters_are_read_as_postgrest_reads_them(
    name: str, value: str, filters: tuple[Condition | Group, ...]
) -> None:
    """Operators, negation, lists, groups and quotes mean what they mean there."""
    assert read_query([(name, value)]) == Query(filters=filters)


def test_everything_else_is_read_too() -> None:
    """Fields, names, paths, order, limit, cursor and the rest come out as values."""
    query = read_query(
        [
            ("select", '*,x:"a,b",d->a->>0,y:d->"0"'), ("order", 'a.desc.nullslast,"b.c",d->>e.nullsfirst'),
            ("limit", "5"), ("after", "abc"), ("deleted", "only"), ("as_of", "7"), ("a", "gt.1"), ("a", "lt.3"),
        ]
    )  # fmt: skip
    path = Field(column="d", path=("a", 0), as_text=True)
    assert query.shown == (
        ALL,
        Shown(field=Field(column="a,b"), name="x"),
        Shown(field=path, name="a"),
        Shown(field=Field(column="d", path=("0",)), name="y"),
    )
    assert query.ordering == (
        Ordering(field=Field(column="a"), descending=True, nulls_first=False),
        Ordering(field=Field(column="b.c")),
        Ordering(field=Field(column="d", path=("e",), as_text=True), nulls_first=True),
    )
    assert (query.limit, query.after, query.deleted, query.as_of, len(query.filters)) == (5, "abc", "only", 7, 2)
    assert str(path) == "d->a->>0"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("a", "1", "there is no operator '1' (character 1). Write a=eq.VALUE, or instead of eq another of eq, neq"),
        ("a", "", "an operator is missing"),
        ("a", "eq", "there is no operator 'eq'"),
        ("a", "fts.x", "there is no operator 'fts'"),
        ("a", "in.(1", "')' is missing before the end"),
        ("a", "in.(1)x", "'x' was not expected"),
        ("a", 'in.("1)', "a quotation mark is not closed"),
        ("a", "is.maybe", "after is. comes null"),
        ("a", "like.x\\", "cannot end with a backslash"),
        ("a", "eq.\0", "U+0000"),
        ("select", "a\ud800", "half of a character"),
        ("", "eq.1", "the name of a column is missing"),
        ("a->>b->c", "eq.1", "nothing can come after ->>"),
        ("or", "a.eq.1", "'(' is missing"),
        ("or", "(a.eq.1", "')' is missing"),
        ("or", "(a)", "'.' is missing before ')'"),
        ("or", "(" + "and(" * 5_000, "nested deeper than 10"),
        ("select", "", "the name of a column is missing"),
        ("select", "a::text", "casts, functions and other tables are not offered"),
        ("select", "other(a)", "casts, functions and other tables are not offered"),
        ("select", "a->b:c", "before a colon comes the name"),
        ("select", "x" * 64 + ":a", "1 to 63 bytes"),
        ("order", "a.up", "'up' is no direction"),
        ("limit", "0", "must be a whole number"),
        ("limit", "٣", "must be a whole number"),
        ("as_of", "x", "must be a whole number"),
        ("deleted", "yes", "must be include, only or exclude"),
        ("offset", "5", "Follow the header Link"),
    ],
)
def test_mistakes_are_named(name: str, value: str, told: str) -> None:
    """What cannot be read says where, and what could stand there instead."""
    with pytest.raises(BadRequest) as caught:
        read_query([(name, value)])
    assert told in str(caught.value)


def test_nothing_is_given_twice() -> None:
    """Only filters may be repeated."""
    with pytest.raises(BadRequest, match="given twice"):
        read_query([("select", "a"), ("select", "b")])
