"""Decode records both ways, and the odd values with which the ways are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from columns import BIGINT, BOOLEAN, DOUBLE, JSONB, NUMERIC, TEXT, TIMESTAMPTZ, Column
from rows import SMALLEST_SPLIT, RowDecoder
from spool import Frame

_raws = msgspec.json.Decoder(list[msgspec.Raw])


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
KEY_TYPES = (BIGINT, TEXT, NUMERIC, DOUBLE, BOOLEAN, TIMESTAMPTZ, JSONB, "uuid", "integer", "inet")


def some(sql_type: str, count: int = 20) -> list[bytes]:
    """Return records whose values all fit a type."""
    good = GOOD_VALUES[sql_type]
    return [b'{"id":%d,"x":%b,"y":"t"}' % (number, good[number % len(good)]) for number in range(count)]
