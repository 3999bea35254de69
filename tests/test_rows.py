"""Rows: the fast way gives exactly what the exact way gives, and no record is lost whatever stands beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from columns import BIGINT, BOOLEAN, DOUBLE, INFERRED_TYPES, JSONB, NUMERIC, TEXT, TIMESTAMPTZ, Column
from errors import SourceInvalid
from models import KEPT_PROBLEMS
from rows import SMALLEST_SPLIT, RowDecoder
from spool import Frame, open_spool

_raws = msgspec.json.Decoder(list[msgspec.Raw])
FEW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def frame(records: Sequence[bytes]) -> Frame:
    """Return a frame of raw records, each with its place as its digest."""
    digests = b"".join(place.to_bytes(16, "big") for place in range(len(records)))
    return Frame(payload=b"[%b]" % b",".join(records), positions=np.arange(len(records)), digests=digests)


def decoder(types: dict[str, str], key: Sequence[str] = ("id",), **options: Any) -> RowDecoder:
    """Return a decoder for columns that are named like their fields."""
    return RowDecoder([Column(name=f, field=f, sql_type=t, owned=True) for f, t in types.items()], key, **options)


def decode(types: dict[str, str], records: Sequence[bytes], **options: Any) -> tuple[RowDecoder, list[tuple[Any, ...]]]:
    """Decode one frame; return its decoder and the rows, each with its position at the end."""
    made = decoder(types, **options)
    rows = made.decode(frame(records))
    assert [uuid.int for uuid in rows.digests] == rows.positions
    return made, list(zip(*rows.columns, rows.positions, strict=True))


def told(made: RowDecoder, rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Return all that a decoder has to say, with the types of values, since 1 equals true."""
    return {
        "rows": [[(type(value), value) for value in row] for row in rows],
        "rejected": made.rejected,
        "unidentified": made.unidentified,
        "protected": made.protected,
        "wanted": made.wanted,
        "misfits": made.misfits,
        "problems": made.problems,
    }


def exactly(types: dict[str, str], records: Sequence[bytes], **options: Any) -> dict[str, Any]:
    """Decode record by record in the exact way, which is the yardstick."""
    made = decoder(types, **options)
    rows: list[tuple[Any, ...]] = []
    whole = frame(records)
    raws = _raws.decode(whole.payload)
    for start in range(0, len(raws), SMALLEST_SPLIT):
        few = slice(start, start + SMALLEST_SPLIT)
        some = made._split(raws[few], whole.positions[few], whole.digests[16 * start :])
        rows += zip(*some.columns, some.positions, strict=True)
    return told(made, rows)


def check(types: dict[str, str], records: Sequence[bytes], **options: Any) -> RowDecoder:
    """Compare both ways, and see that no record is lost or invented."""
    made, rows = decode(types, records, **options)
    assert told(made, rows) == exactly(types, records, **options)
    positions = [row[-1] for row in rows]
    assert positions == sorted(set(positions))
    assert set(positions) <= set(range(len(records)))
    if not made.wanted:
        assert len(rows) + made.rejected == len(records)
    assert len(made.protected) + made.unidentified == made.rejected
    assert not any("\0" in part for key in made.protected for part in key if isinstance(part, str))
    return made


ODD_VALUES = [
    b"null", b"true", b"false", b"0", b"-0", b"-0.0", b"1", b"1.0", b"1.50", b"1e2", b"-1", b"1.5", b"0e400", b"0e-400",
    b"9007199254740993", b"9007199254740993.0", b"9223372036854775807", b"9223372036854775808",
    b"-9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"123456789012345678901234567890",
    b"0.1234567890123456789", b"123456789.1234567", b"12345678.12345678", b"0.1", b"5e-324", b"4e-324", b"1e-400",
    b"2.2250738585072011e-308", b"1e308", b"1e309", b"1e400", b"-1E+400", b"1e999999999", b"1e-999999999",
    b"1e99999999999999999999", b"9" * 308, b"9" * 400, b"9" * 5_000, b"0." + b"1" * 400,
    b'""', b'"a"', b'"1"', b'"true"', b'"null"', b'" "', b'"\xff"', b'"a\\u0000b"', b'"\\\\u0000"', b'"\\\\\\u0000"',
    b'"\\":"', b'"\\" :"', b'"\\u0022:"', b'"\\"\\u003a"', b'"{\\"a\\":1}"', b'"\xf0\x9f\x8e\x89"', b'"\\ud83c\\udf89"',
    b'"2020-01-01T00:00:00Z"', b'"2020-01-01t00:00:00.123456z"', b'"2020-01-01 00:00:00+05:30"',
    b'"2020-01-01T00:00:00+0530"', b'"2020-01-01T00:00:00-00:00"', b'"2020-01-01T00:00:00"', b'"2020-01-01T00:00Z"',
    b'"2020-01-01T00:00:00.123456789Z"',
    b'"2020-01-01T00:00:00.\\u0031234567Z"', b'"2020-01-01T00:00:00\\u002e1234567Z"',
    b'"2020-01-01T00:00:00.123\\u0034567Z"', b'"2020-01-01T00:00:00.1234560Z"', b'"2020-01-01T00:00:00,5Z"',
    b'"2020-02-30T00:00:00Z"', b'"2016-12-31T23:59:60Z"', b'"2020-01-01T24:00:00Z"', b'"2020-01-01T00:00:00+24:00"',
    b'"0001-01-01T00:00:00Z"', b'"0001-01-01T00:00:00+01:00"',
    b'"0001-01-01T23:00:00+23:00"', b'"0001-01-02T00:00:00Z"',
    b'"9999-12-31T23:59:59.999999Z"', b'"9999-12-31T23:59:59-00:01"', b'"9999-12-30T00:00:00Z"',
    b'"\\u0030001-01-01T00:00:00Z"', b'"2020-01-01"', b'"12345678-1234-5678-1234-56789abcdef0"',
    b"[]", b"{}", b"[1,[2.50]]", b'[":",{"a":[]}]', b'{"a":1,"b":{"a":2}}', b'{"a":1,"a":1}', b'[{"a" :1,"a"\t: 2}]',
    b'{"a":1,"a":"x\\u0022: y"}', b'{"a":1,"a":"x\\"\\u003a y"}', b'{"a":1,"\\u0061":2}', b'{"a":"\\" :"}',
    b'{"a":1e400}', b'[1e-400]', b'{"":null,"__proto__":{"x":1}}', b'{"a\\"b":1,"a\\":":2}',
    b'["a\\u0000"]', b'{"\\u0000":1}',
    b'["\xff"]', b"[" * 500 + b"]" * 500, b'{"a":' * 300 + b"1" + b"}" * 300, b"[%b]" % (b"9" * 400),
]  # fmt: skip
GOOD_VALUES = {
    BOOLEAN: [b"true", b"false", b"null"],
    BIGINT: [b"1", b"-7", b"12345678901", b"null"],
    DOUBLE: [b"0.5", b"0", b"0.0", b"19.99", b"1e-5", b"null"],
    NUMERIC: [b"1.50", b"123456789012345678901", b"null"],
    TIMESTAMPTZ: [b'"2020-01-01T00:00:00Z"', b'"2020-06-01T12:30:00.123+02:00"', b"null"],
    TEXT: [b'"a"', b'"\xc3\xa4"', b'"caf\\u00e9 \\n"', b"null"],
    JSONB: [b"{}", b'{"a":[1,{"b":null}]}', b'"a"', b"1.5", b"null"],
    "integer": [b"1", b"null"],
    "character varying(3)": [b'"abc"', b"null"],
    "numeric(10,2)": [b"1.25", b"null"],
    "text[]": [b'["a",null]', b"null"],
    "uuid": [b'"12345678-1234-5678-1234-56789abcdef0"', b"null"],
    "inet": [b'"::1"', b"null"],
}
KEYS = [b"1", b"2", b"-3", b'"1"', b'"a"', b'"2020-01-01T00:00:00Z"', b'"12345678-1234-5678-1234-56789abcdef0"', b"1.0",
        b"12345678901234567890"]  # fmt: skip
NAMES = ["x", "y", "", "naïve", "🎉", "__proto__", "a b", "X"]
ODD_NAMES = ['a"b', "back\\slash", "line\nbreak", 'end"', 'a":', "\x7f"]
KEY_TYPES = (BIGINT, TEXT, NUMERIC, DOUBLE, BOOLEAN, TIMESTAMPTZ, JSONB, "uuid", "integer", "inet")


@st.composite
def tables(draw: st.DrawFn, odd_names: bool = False) -> tuple[dict[str, str], list[bytes]]:
    """Draw columns, and records most of whose values fit them."""
    types = {"id": draw(st.sampled_from(KEY_TYPES))}
    names = [*NAMES, *ODD_NAMES] if odd_names else NAMES
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        types[name] = draw(st.sampled_from(list(GOOD_VALUES)))
    oddity = draw(st.integers(0, 12))
    key = draw(st.sampled_from(KEYS))
    records = []
    for number in range(draw(st.integers(0, 3 * SMALLEST_SPLIT))):
        is_odd = draw(st.integers(0, 11)) < oddity
        usual = b"%d" % number if key.lstrip(b"-").isdigit() else b'"%d"' % number if key == b'"a"' else key
        members = [(b'"id"', draw(st.sampled_from([*KEYS, *ODD_VALUES])) if is_odd and draw(st.booleans()) else usual)]
        for name, sql_type in types.items():
            if name != "id":
                wrong = is_odd and not draw(st.integers(0, 2))
                members.append(
                    (json.dumps(name).encode(), draw(st.sampled_from(ODD_VALUES if wrong else GOOD_VALUES[sql_type])))
                )
        if is_odd:
            members = draw(st.permutations(members))[draw(st.integers(0, 1)) :]
            unknown = st.tuples(st.sampled_from([b'"new"', b'"n"', b'"a\\"b"', b'"x"', b'"\\u0069d"', b'"\\u0000"']),
                                st.sampled_from([b"null", b"null", *ODD_VALUES]))  # fmt: skip
            members += draw(st.lists(unknown, max_size=2))
        colon = draw(st.sampled_from([b":", b": ", b" :", b"\t:\n"])) if is_odd else b":"
        records.append(b"{%b}" % b",".join(name + colon + value for name, value in members))
    return types, records


@given(tables(), st.sampled_from(["reject", "strip"]))
@FEW
def test_both_ways_agree(table: tuple[dict[str, str], list[bytes]], nul_characters: str) -> None:
    """Whatever the columns and the records, both ways give the same rows, reports, protected keys and wanted types."""
    check(*table, nul_characters=nul_characters)


@given(tables(odd_names=True))
@FEW
def test_both_ways_agree_on_odd_names(table: tuple[dict[str, str], list[bytes]]) -> None:
    """Fields may have names that msgspec cannot rename to."""
    check(*table)


def some(sql_type: str, count: int = 20) -> list[bytes]:
    """Return records whose values all fit a type."""
    good = GOOD_VALUES[sql_type]
    return [b'{"id":%d,"x":%b,"y":"t"}' % (number, good[number % len(good)]) for number in range(count)]


@pytest.mark.parametrize("sql_type", [*INFERRED_TYPES, "integer", "numeric(10,2)", "text[]", "uuid", "inet"])
@pytest.mark.parametrize("odd", ODD_VALUES, ids=lambda odd: odd[:24].decode(errors="replace") + f"…{len(odd)}")
def test_one_odd_value_costs_one_record(sql_type: str, odd: bytes) -> None:
    """One odd value among good ones is stored, rejected or a misfit, and the others are all stored."""
    records = some(sql_type)
    records[13] = b'{"id":13,"x":%b,"y":"t"}' % odd
    made = check({"id": BIGINT, "x": sql_type, "y": TEXT}, records)
    _, rows = decode({"id": BIGINT, "x": sql_type, "y": TEXT}, records)
    assert {row[0] for row in rows} >= {*range(20)} - {13}
    assert made.rejected <= 1
    assert set(made.wanted) <= {"x"}


def test_an_odd_value_changes_no_other() -> None:
    """The rows beside an odd record are those that come without it."""
    types = {"id": BIGINT, "x": DOUBLE, "y": TEXT}
    _, alone = decode(types, some(DOUBLE))
    for odd in ODD_VALUES:
        _, beside = decode(types, [*some(DOUBLE), b'{"id":99,"x":%b}' % odd])
        assert beside[: len(alone)] == alone


NULLS_OF_ALL_KINDS = [b'{"id":1}', b'{"id":2,"x":null}', b'{"id":3,"x":1,"y":null}', b'{"y":"a","id":4}']


def test_missing_and_null_fields_are_null() -> None:
    """A field that is missing is NULL, like one that is null."""
    _, rows = decode({"id": BIGINT, "x": BIGINT, "y": TEXT}, NULLS_OF_ALL_KINDS)
    assert rows == [(1, None, None, 0), (2, None, None, 1), (3, 1, None, 2), (4, None, "a", 3)]
    check({"id": BIGINT, "x": JSONB, "y": NUMERIC}, NULLS_OF_ALL_KINDS)


REPEATS = [
    b'{"id":1,"x":1,"x":2}',
    b'{"id":1,"x":2,"x":2}',
    b'{"id":1,"x" :1,"x"\n:\t2}',
    b'{"id":1,"\\u0078":1,"x":2}',
    b'{"id":1,"id":1,"x":2}',
    b'{"id":1,"x":2,"j":{"a":1,"a":1}}',
    b'{"id":1,"x":2,"j":[{"b":{"a":1,"a" :2}}]}',
    b'{"id":1,"x":2,"j":{"a":1,"a":"\\u0022:"}}',
    b'{"id":1,"x":2,"j":{"a":1,"a":"\\"\\u003A"}}',
    b'{"id":1,"x":2,"j":{"a":"\\u0022\\u003a","b":1,"b":2}}',
    b'{"id":1,"x":2,"j":{"":1,"":1}}',
    b'{"id":1,"x":2,"n":null,"n":null}',
    b'{"id":1,"x":"\\":","x":2}',
    b'{"id":1,"x":2,"t":"\\":\\":","t":"a"}',
]


@pytest.mark.parametrize("odd", REPEATS, ids=bytes.decode)
@pytest.mark.parametrize("others", [0, 3, 40])
def test_repeated_names_are_always_reported(odd: bytes, others: int) -> None:
    """A field name that stands twice in an object is reported once for its record, and the last value counts."""
    types = {"id": BIGINT, "x": BIGINT, "j": JSONB, "t": TEXT}
    records = [b'{"id":%d,"x":1,"j":{"a":1},"t":"s"}' % (100 + number) for number in range(others)]
    made, rows = decode(types, [*records, odd, *records])
    assert [(problem.kind, problem.position, problem.key) for problem in made.problems] == [
        ("repeated_field", others, {"id": 1})
    ]
    assert len(rows) == 2 * others + 1
    assert rows[others][:2] == (1, 2)
    check(types, [*records, odd, *records])


KEYS_THAT_ARE_NONE = [
    (b'{"x":1}', None),
    (b'{"id":null}', None),
    (b'{"id":true}', None),
    (b'{"id":{}}', None),
    (b'{"id":[1]}', None),
    (b'{"id":1.5}', None),
    (b'{"id":"a"}', None),
    (b'{"id":"1.0"}', None),
    (b'{"id":"01"}', None),
    (b'{"id":"%b"}' % (b"9" * 5_000), None),
    (b'{"id":"9223372036854775808"}', None),
    (b'{"id":%b}' % (b"9" * 5_000), None),
    (b'{"id":1e400}', None),
    (b'{"id":"7"}', (7,)),
    (b'{"id":"-7"}', (-7,)),
    (b'{"id":7,"x":1e400}', (7,)),
    (b'{"id":7.0,"x":1e400}', (7,)),
    (b'{"id":7,"x":"\\u0000"}', (7,)),
    (b'{"id":7,"x":"\xff"}', (7,)),
]


@pytest.mark.parametrize(("odd", "protected"), KEYS_THAT_ARE_NONE, ids=lambda odd: str(odd)[:30])
def test_rows_of_rejected_records_are_protected(odd: bytes, protected: tuple[int] | None) -> None:
    """A rejected record protects the row that it may have meant; where it may have meant any, it is counted."""
    made = check({"id": BIGINT, "x": BIGINT}, [b'{"id":1,"x":1}', odd, b'{"id":2}'])
    assert made.rejected == 1
    assert made.protected == ([protected] if protected else [])
    assert made.unidentified == (0 if protected else 1)
    assert (made.problems[0].key is None) == (protected is None)


@pytest.mark.parametrize(
    ("odd", "protected"),
    [
        (b'{"id":1}', "1"),
        (b'{"id":12345678901234567890}', "12345678901234567890"),
        (b'{"id":"a","x":1e400}', "a"),
        (b'{"id":"a\\u0000b"}', None),
        (b'{"id":"a\xff"}', None),
        (b'{"id":"\xed\xa0\x80"}', None),
        (b'{"id":null}', None),
    ],
)
def test_protected_texts_are_keys_that_a_row_can_have(odd: bytes, protected: str | None) -> None:
    """What no row can have for a key protects none, and never reaches the database."""
    made = check({"id": TEXT, "x": DOUBLE}, [b'{"id":"b"}', odd])
    assert made.protected == ([(protected,)] if protected else [])
    assert made.unidentified == (0 if protected else 1)


def test_stripped_keys_are_protected_stripped() -> None:
    """Where NUL characters are stripped, the key of a rejected record is the stripped one, as in its row."""
    made = check({"id": TEXT, "x": DOUBLE}, [b'{"id":"a\\u0000b","x":1e400}'], nul_characters="strip")
    assert made.protected == [("ab",)]
    _, rows = decode({"id": TEXT}, [b'{"id":"a\\u0000b"}'], nul_characters="strip")
    assert rows == [("ab", 0)]


@pytest.mark.parametrize("sql_type", KEY_TYPES)
def test_no_row_has_a_null_key(sql_type: str) -> None:
    """Of whatever type the key is, one that is null, missing, or neither text nor whole number makes no row."""
    for odd in (b'{"id":null}', b"{}", b'{"id":{}}', b'{"id":[]}', b'{"id":true}', b'{"id":1.5}'):
        made = check({"id": sql_type}, [odd] * 20)
        assert (made.rejected, made.unidentified) == (20, 20)


def test_composite_keys() -> None:
    """Every field of a key has to be there; a rejected record protects a row only if all of them can be made out."""
    made, rows = decode(
        {"a": BIGINT, "b": TEXT, "x": JSONB},
        [b'{"a":1,"b":"x"}', b'{"a":1}', b'{"b":"x","a":null}', b'{"a":"2","b":3}', b'{"x":1e400,"a":4,"b":"y"}'],
        key=("a", "b"),
    )
    assert rows == [(1, "x", None, 0)]
    assert (made.protected, made.unidentified) == ([(2, "3"), (4, "y")], 2)


def test_wanted_types_are_joined() -> None:
    """What fields need beyond their columns is joined over all records, also in fields that have no column yet."""
    types = {"id": BIGINT, "x": BIGINT}
    made, rows = decode(
        types, [b'{"id":1,"x":0.5,"n":null}', b'{"id":2,"n":1}', b'{"id":3,"x":"a","n":0.5}', b'{"id":4}']
    )
    assert made.wanted == {"x": JSONB, "n": NUMERIC}
    assert [row[0] for row in rows] == [4]
    assert {field: (found.position, dict(found.key)) for field, found in made.misfits.items()} == {
        "x": (0, {"id": 1}),
        "n": (1, {"id": 2}),
    }


def test_what_is_wanted_suffices() -> None:
    """Once columns have the types that were wanted, every record that is not rejected fits."""
    for odd in ODD_VALUES:
        for sql_type in INFERRED_TYPES:
            records = [*some(sql_type, 2), b'{"id":9,"x":%b,"y":"t"}' % odd]
            made, _ = decode({"id": BIGINT, "x": sql_type, "y": TEXT}, records)
            if made.wanted:
                wide = made.wanted["x"]
                assert wide is not None
                joined = {"id": BIGINT, "x": joined_type(sql_type, wide), "y": TEXT}
                again, rows = decode(joined, records)
                assert not again.wanted, (odd, sql_type, joined)
                assert len(rows) + again.rejected == 3


@pytest.mark.parametrize("sql_type", GOOD_VALUES)
def test_what_is_not_odd_is_decoded_at_once(sql_type: str) -> None:
    """Records that fit their columns take the fast way, whatever the columns' types."""
    made = decoder({"id": BIGINT, "x": sql_type, "y": TEXT})
    rows = made._fast(frame(some(sql_type)))
    assert rows is not None
    assert rows == made.decode(frame(some(sql_type)))
    assert len(rows.positions) == 20


def joined_type(one: str, other: str) -> str:
    """Return the type that a column becomes."""
    from columns import join

    both = join(one, other)
    assert both is not None
    assert both != one
    return both


def test_an_integer_key_outgrows_its_column() -> None:
    """A whole key beyond 64 bits asks for a wider column; a text beside integers is rejected."""
    made, _ = decode({"id": BIGINT}, [b'{"id":1}', b'{"id":18446744073709551616}', b'{"id":"a"}'])
    assert made.wanted == {"id": NUMERIC}
    assert made.rejected == 1
    check({"id": NUMERIC}, [b'{"id":1}', b'{"id":18446744073709551616}', b'{"id":1.00}'])


def test_fields_that_are_only_null_need_no_column() -> None:
    """A field that has only been null is no reason to change the table, nor to leave the fast way for good."""
    made = decoder({"id": BIGINT, "x": TEXT})
    for number in range(3):
        rows = made.decode(
            frame([b'{"id":%d,"x":"a","n%d":null,"m\\"":null}' % (place, place % 5) for place in range(40)])
        )
        assert len(rows.positions) == 40, number
    assert made.wanted == {}
    assert made.problems == []
    assert made._fast(frame([b'{"id":1,"n0":null,"n4":null,"x":"a"}'])) is not None
    assert made._fast(frame([b'{"id":1,"n0":1}'])) is None


def test_very_many_null_fields_take_no_time() -> None:
    """Records that bring new fields without values, each its own, do not slow each other down."""
    started = time.process_time()
    made = decoder({"id": BIGINT})
    for start in range(0, 2_000, 500):
        made.decode(frame([b'{"id":%d,"n%d":null}' % (number, number) for number in range(start, start + 500)]))
    wide = b",".join(b'"w%d":null' % number for number in range(50_000))
    assert len(made.decode(frame([b'{"id":1,%b}' % wide] * 3)).positions) == 3
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    "odd", [b"9" * 1_000_000, b"1e999999999", b"0." + b"1" * 1_000_000, b'"' + b"9" * 1_000_000 + b'"']
)
def test_long_numbers_take_no_time(odd: bytes) -> None:
    """However long a number or its exponent, a record takes no longer to judge than to read."""
    started = time.process_time()
    for sql_type in INFERRED_TYPES:
        decode({"id": BIGINT, "x": sql_type}, [b'{"id":1,"x":%b}' % odd])
        decode({"id": sql_type}, [b'{"id":%b}' % odd])
    assert time.process_time() - started < 20


@pytest.mark.parametrize("depth", [1, 100, 500])
@pytest.mark.parametrize("shape", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting(depth: int, shape: tuple[bytes, bytes]) -> None:
    """A record may be nested deeply, whether it is read fast or exactly."""
    nested = shape[0] * depth + b"1" + shape[1] * depth
    records = [
        b'{"id":1,"x":%b}' % nested,
        b'{"id":2,"x":%b,"t":1}' % nested,
        b'{"id":3,"x":%b,"x":%b}' % (nested, nested),
    ]
    made = check({"id": BIGINT, "x": JSONB, "t": BIGINT}, records)
    assert made.rejected == 0
    assert made.wanted == {}


def test_nesting_without_end() -> None:
    """A frame that nobody can cut into records fails as the source's fault, not as a program's."""
    deep = b'{"id":1,"x":%b%b}' % (b"[" * 100_000, b"]" * 100_000)
    with pytest.raises(SourceInvalid, match="nested too deeply"):
        decoder({"id": BIGINT, "x": JSONB}).decode(frame([deep]))


def test_problems_are_kept_up_to_a_number() -> None:
    """All rejected records are counted, and the first are kept in detail."""
    made = check({"id": BIGINT}, [b'{"id":null}'] * 300)
    assert (made.rejected, len(made.problems)) == (300, KEPT_PROBLEMS)
    assert [problem.position for problem in made.problems] == list(range(KEPT_PROBLEMS))


def test_an_empty_frame() -> None:
    """No records make no rows."""
    check({"id": BIGINT, "x": JSONB}, [])


def test_values_arrive_as_the_driver_takes_them() -> None:
    """Every type that Lockstep makes is decoded to the driver's own type, on the fast way and beside an odd record."""
    good = (
        b'{"id":1,"b":true,"i":7,"d":0.5,"n":1.50,"t":"2020-01-01T01:00:00+01:00","s":"a","j":{"x": 1}}'
    )  # fmt: skip
    types = {
        "id": BIGINT,
        "b": BOOLEAN,
        "i": BIGINT,
        "d": DOUBLE,
        "n": NUMERIC,
        "t": TIMESTAMPTZ,
        "s": TEXT,
        "j": JSONB,
    }
    for records in ([good], [good, b'{"id":null}'], [good, b'{"id":2,"d":0.12345678901234}']):
        _, rows = decode(types, records)
        assert rows[0] == (1, True, 7, 0.5, Decimal("1.50"), datetime(2020, 1, 1, tzinfo=UTC), "a", '{"x": 1}', 0)


@pytest.mark.parametrize("nul_characters", ["reject", "strip"])
def test_nul_characters(nul_characters: str) -> None:
    """A NUL character rejects its record or is stripped from it, by policy; the others are stored either way."""
    types = {"id": BIGINT, "x": TEXT, "j": JSONB}
    records = [b'{"id":1,"x":"a\\u0000","j":["\\u0000b"]}', b'{"id":2,"x":"\\\\u0000","j":["\\\\u0000"]}']
    made = check(types, records, nul_characters=nul_characters)
    _, rows = decode(types, records, nul_characters=nul_characters)
    assert rows[-1] == (2, "\\u0000", '["\\\\u0000"]', 1)
    assert rows[:-1] == ([] if nul_characters == "reject" else [(1, "a", '["b"]', 0)])
    assert made.rejected == (nul_characters == "reject")


async def test_rows_for_copy() -> None:
    """Rows come with fingerprint and, if wanted, position; from the first misfit on, none come."""
    async with open_spool(None) as spool:
        for start in (0, 2):
            await spool.write(
                [b'{"id":%d}' % start, b'{"id":%d}' % (start + 1)], np.arange(start, start + 2), bytes(range(32))
            )
        made = decoder({"id": BIGINT})
        rows = [row async for row in made.rows(spool, positions=True)]
        assert [(row[0], row[1], row[2].bytes[0]) for row in rows] == [(0, 0, 0), (1, 1, 16), (2, 2, 0), (3, 3, 16)]
        assert not await made.may_share_keys()
        assert [len(row) async for row in decoder({"id": BIGINT}).rows(spool, positions=False)] == [2] * 4
        await spool.write([b'{"id":9,"x":1}', b'{"id":10}'], np.arange(4, 6), bytes(32))
        await spool.write([b'{"id":11,"x":"a"}'], np.arange(6, 7), bytes(16))
        made = decoder({"id": BIGINT})
        assert len([row async for row in made.rows(spool, positions=False)]) == 4
        assert made.wanted == {"x": JSONB}


@pytest.mark.parametrize(
    ("sql_type", "one", "other", "may_share"),
    [
        (BIGINT, b"1", b"2", False),
        (BIGINT, b"1", b"1.0", True),
        (NUMERIC, b"1.00", b"1", True),
        (DOUBLE, b"1", b"1.0", True),
        (TEXT, b'"a"', b'"\\u0061"', True),
        (TEXT, b'"a"', b'"A"', False),
        (TIMESTAMPTZ, b'"2020-01-01T00:00:00Z"', b'"2020-01-01T01:00:00+01:00"', True),
        ("uuid", b'"12345678-1234-5678-1234-56789ABCDEF0"', b'"12345678-1234-5678-1234-56789abcdef0"', True),
    ],
)
async def test_equal_keys_are_noticed(sql_type: str, one: bytes, other: bytes, may_share: bool) -> None:
    """Keys that PostgreSQL takes for equal are noticed however they are spelled, in one frame or in two."""
    for frames in ([[one, other]], [[one], [other]]):
        async with open_spool(None) as spool:
            for number, keys in enumerate(frames):
                raws = [b'{"id":%b}' % key for key in keys]
                await spool.write(raws, np.arange(number, number + len(raws)), bytes(16 * len(raws)))
            made = decoder({"id": sql_type})
            assert len([row async for row in made.rows(spool, positions=False)]) == 2
            assert await made.may_share_keys() is may_share


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 20))
@example([5e-324, 2.2250738585072014e-308, 1.7976931348623157e308], 3)
@settings(deadline=None)
def test_numbers_are_never_rounded(numbers: list[float], digits: int) -> None:
    """A number stands in a column of doubles only if it prints as it was written, however many digits it has."""
    literals = [f"{number:.{digits}e}" for number in numbers] + [repr(number) for number in numbers]
    records = [b'{"id":%d,"x":%b}' % (place, literal.encode()) for place, literal in enumerate(literals)]
    _, rows = decode({"id": BIGINT, "x": DOUBLE}, records)
    for _, found, place in rows:
        assert Decimal(repr(found)) == Decimal(literals[place])
    check({"id": BIGINT, "x": DOUBLE}, records)


@given(st.lists(st.text("0123456789-:T.Z+ \\u", max_size=34), min_size=1, max_size=12), st.datetimes())
@settings(deadline=None)
def test_instants_are_never_reinterpreted(odd: list[str], moment: datetime) -> None:
    """Whatever looks like an instant is one on both ways, or on none."""
    spellings = [moment.isoformat() + zone for zone in ("Z", "+00:00", "-23:59", "+0100", "", "+01", "0Z")]
    literals = [json.dumps(text).encode() for text in (*odd, *spellings)]
    check({"id": BIGINT, "x": TIMESTAMPTZ}, [b'{"id":%d,"x":%b}' % pair for pair in enumerate(literals)])
