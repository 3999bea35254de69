"""Rows: what is decoded, rejected, protected and wanted, and how long odd records take."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest

from columns import BIGINT, BOOLEAN, DOUBLE, INFERRED_TYPES, JSONB, NUMERIC, TEXT, TIMESTAMPTZ, join
from errors import SourceInvalid
from models import KEPT_PROBLEMS
from spool import open_spool
from tests.decoding import GOOD_VALUES, KEY_TYPES, ODD_VALUES, check, decode, decoder, frame, some

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
