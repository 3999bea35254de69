"""The fast way of decoding gives exactly what the exact way gives, and no record is lost whatever stands beside it."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from columns import BIGINT, DOUBLE, INFERRED_TYPES, NUMERIC, TEXT, TIMESTAMPTZ
from rows import SMALLEST_SPLIT
from tests.decoding import GOOD_VALUES, KEY_TYPES, ODD_VALUES, check, decode, some

FEW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

KEYS = [b"1", b"2", b"-3", b'"1"', b'"a"', b'"2020-01-01T00:00:00Z"', b'"12345678-1234-5678-1234-56789abcdef0"', b"1.0",
        b"12345678901234567890"]  # fmt: skip
NAMES = ["x", "y", "", "naïve", "🎉", "__proto__", "a b", "X"]
ODD_NAMES = ['a"b', "back\\slash", "line\nbreak", 'end"', 'a":', "\x7f"]


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


@pytest.mark.parametrize("odd", ODD_VALUES, ids=lambda odd: odd[:24].decode(errors="replace") + f"…{len(odd)}")
def test_both_ways_agree_on_numbers_in_texts(odd: bytes) -> None:
    """A declared numeric column takes numbers spelled as text on both ways, whatever stands beside them."""
    good = [b'{"id":%d,"x":"%d.50000000","y":"t"}' % (number, number) for number in range(20)]
    good[13] = b'{"id":13,"x":%b,"y":"t"}' % odd
    _, rows = decode({"id": BIGINT, "x": NUMERIC, "y": TEXT}, good, declared=["x"])
    assert [str(row[1]) for row in rows if row[0] != 13] == [f"{n}.50000000" for n in range(20) if n != 13]
    check({"id": BIGINT, "x": NUMERIC, "y": TEXT}, good, declared=["x"])


@given(tables(odd_names=True))
@FEW
def test_both_ways_agree_on_odd_names(table: tuple[dict[str, str], list[bytes]]) -> None:
    """Fields may have names that msgspec cannot rename to."""
    check(*table)


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
