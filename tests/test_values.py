"""Values: a column of any type takes a JSON value exactly as it is, or calls it a misfit; PostgreSQL agrees."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from values import Misfit, fit_for

UUID_TEXT = "12345678-1234-5678-1234-56789abcdef0"
INDIA = timezone(timedelta(hours=5, minutes=30))

HELD: list[tuple[str, str, Any]] = [
    ("smallint", "32767", 32767),
    ("smallint", "-32768", -32768),
    ("integer", "-2147483648", -(2**31)),
    ("integer", "1.0", 1),
    ("integer", "2e3", 2000),
    ("bigint", "9223372036854775807", 2**63 - 1),
    ("bigint", "-9223372036854775808", -(2**63)),
    ("bigint", "9007199254740993.0", 2**53 + 1),
    ("numeric", "1.50", Decimal("1.50")),
    ("numeric", "1e308", Decimal("1e308")),
    ("numeric", "0.1234567890123456789012345678901234567890", Decimal("0.1234567890123456789012345678901234567890")),
    ("numeric", "1e-16383", Decimal("1e-16383")),
    ("numeric(10,2)", "12345678.90", Decimal("12345678.90")),
    ("numeric(10,2)", "-99999999.99000", Decimal("-99999999.99")),
    ("numeric(10,2)", "1e7", Decimal(10_000_000)),
    ("numeric(10,2)", "0", Decimal(0)),
    ("numeric(3,-2)", "12300", Decimal(12300)),
    ("numeric(2,5)", "0.00099", Decimal("0.00099")),
    (
        "numeric(40,2)",
        "12345678901234567890123456789012345678.12",
        Decimal("12345678901234567890123456789012345678.12"),
    ),
    ("real", "0.1", float(np.float32("0.1"))),
    ("real", "16777216", 16777216.0),
    ("real", "1e-45", float(np.float32("1e-45"))),
    ("double precision", "0.1", 0.1),
    ("double precision", "5e-324", 5e-324),
    ("double precision", "1.7976931348623157e308", 1.7976931348623157e308),
    ("double precision", "9007199254740992", 2.0**53),
    ("boolean", "true", True),
    ("boolean", "false", False),
    ("text", '"a\\"\\n🎉 "', 'a"\n🎉 '),
    ("character varying(3)", '"äöü"', "äöü"),
    ("character varying(3)", '"a  "', "a  "),
    ("character varying", '"any length"', "any length"),
    ("character(3)", '"ab"', "ab"),
    ("date", '"2024-02-29"', date(2024, 2, 29)),
    ("date", '"0001-01-02"', date(1, 1, 2)),
    ("date", '"9999-12-30"', date(9999, 12, 30)),
    ("timestamp(3) without time zone", '"2024-02-29T23:59:59.999"', datetime(2024, 2, 29, 23, 59, 59, 999_000)),  # noqa: DTZ001
    ("timestamp(3) without time zone", '"2024-02-29 23:59:59.120000"', datetime(2024, 2, 29, 23, 59, 59, 120_000)),  # noqa: DTZ001
    ("timestamp without time zone", '"9999-12-31T23:59:59.999998"', datetime(9999, 12, 31, 23, 59, 59, 999_998)),  # noqa: DTZ001
    ("timestamp with time zone", '"2024-02-29t23:59:59z"', datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
    ("timestamp with time zone", '"2024-02-29T05:30:00.000001+05:30"', datetime(2024, 2, 29, 0, 0, 0, 1, tzinfo=UTC)),
    ("timestamp with time zone", '"0001-01-01T00:00:00.000001Z"', datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
    ("timestamp(0) with time zone", '"2024-02-29T00:00:00.000Z"', datetime(2024, 2, 29, tzinfo=UTC)),
    ("time without time zone", '"23:59:59.999999"', time(23, 59, 59, 999_999)),
    ("time with time zone", '"12:00:00.5+05:30"', time(12, 0, 0, 500_000, tzinfo=INDIA)),
    ("time with time zone", '"12:00:00z"', time(12, tzinfo=UTC)),
    (
        "time(3) with time zone",
        '"12:00:00.500-15:59"',
        time(12, 0, 0, 500_000, tzinfo=timezone(timedelta(minutes=-959))),
    ),
    ("uuid", f'"{UUID_TEXT}"', UUID(UUID_TEXT)),
    ("uuid", f'"{UUID_TEXT.upper()}"', UUID(UUID_TEXT)),
    ("jsonb", '{"a": [1.0, "x"]}', '{"a": [1.0, "x"]}'),
    ("json", '{"a":1,"a":2}', '{"a":1,"a":2}'),
    ("json", '"text"', '"text"'),
    ("text[]", '["a", null, "{}"]', ["a", None, "{}"]),
    ("text[]", "[]", []),
    ("integer[]", "[1, 2.0, null]", [1, 2, None]),
    ("numeric(4,1)[]", "[1.5]", [Decimal("1.5")]),
    ("character varying(3)[]", '["abc"]', ["abc"]),
    ("timestamp(3) without time zone[]", '["2024-02-29T00:00:00.5"]', [datetime(2024, 2, 29, 0, 0, 0, 500_000)]),  # noqa: DTZ001
    ("uuid[]", f'["{UUID_TEXT}"]', [UUID(UUID_TEXT)]),
]

MISFITS = [
    ("smallint", "32768"),
    ("integer", "2147483648"),
    ("integer", "1.5"),
    ("integer", "true"),
    ("integer", '"1"'),
    ("integer", "[]"),
    ("bigint", "9223372036854775808"),
    ("bigint", "1e308"),
    ("bigint", "1e-999999999"),
    ("bigint", "1e999999999"),
    ("numeric", "1e309"),
    ("numeric", "1e999999999"),
    ("numeric", "1e-16384"),
    ("numeric", "9" * 310),
    ("numeric", "false"),
    ("numeric(10,2)", "0.001"),
    ("numeric(10,2)", "100000000"),
    ("numeric(10,2)", "99999999.995"),
    ("numeric(3,-2)", "12350"),
    ("numeric(3,-2)", "100000"),
    ("numeric(2,5)", "0.001"),
    ("numeric(40,2)", "1234567890123456789012345678.125"),
    ("real", "0.123456789"),
    ("real", "16777217"),
    ("real", "1e39"),
    ("real", "1e-46"),
    ("real", "1e999999999"),
    ("real", "9" * 4000),
    ("double precision", "9007199254740993"),
    ("double precision", "0.12345678901234567890"),
    ("double precision", "1e-400"),
    ("double precision", "4e-324"),
    ("double precision", "1e400"),
    ("double precision", "1e999999999"),
    ("double precision", "9" * 4000),
    ("double precision", '"1"'),
    ("boolean", "1"),
    ("boolean", '"true"'),
    ("text", "1"),
    ("text", "true"),
    ("text", "{}"),
    ("character varying(3)", '"abcd"'),
    ("character varying(3)", '"abc "'),
    ("character(3)", '"abcd"'),
    ("character(3)", '"a "'),
    ("date", '"2023-02-29"'),
    ("date", '"2024-2-9"'),
    ("date", '"20240229"'),
    ("date", '"2024-02-29T00:00:00"'),
    ("date", '"today"'),
    ("date", '"٢٠٢٤-02-29"'),
    ("date", '"0001-01-01"'),
    ("date", '"9999-12-31"'),
    ("date", "20240229"),
    ("timestamp(3) without time zone", '"2024-02-29T23:59:59.9999"'),
    ("timestamp without time zone", '"2024-02-29T23:59:59Z"'),
    ("timestamp without time zone", '"2024-02-29"'),
    ("timestamp without time zone", '"0001-01-01T00:00:00"'),
    ("timestamp without time zone", '"9999-12-31T23:59:59.999999"'),
    ("timestamp with time zone", '"2024-02-29T23:59:59"'),
    ("timestamp with time zone", '"2024-02-29T23:59:59.1234567Z"'),
    ("timestamp with time zone", '"2023-02-29T23:59:59Z"'),
    ("timestamp with time zone", '"0001-01-01T00:00:00Z"'),
    ("timestamp with time zone", '"0001-01-01T00:00:00+01:00"'),
    ("timestamp with time zone", '"9999-12-31T23:59:59-01:00"'),
    ("timestamp with time zone", "1709164800"),
    ("timestamp(0) with time zone", '"2024-02-29T00:00:00.5Z"'),
    ("time without time zone", '"12:00"'),
    ("time without time zone", '"24:00:00"'),
    ("time without time zone", '"12:00:00+01:00"'),
    ("time with time zone", '"12:00:00"'),
    ("time with time zone", '"12:00:00+16:00"'),
    ("time(3) with time zone", '"12:00:00.1234Z"'),
    ("uuid", '"0x345678123456781234567812345678"'),
    ("uuid", f'"urn:uuid:{UUID_TEXT}"'),
    ("uuid", '"x"'),
    ("uuid", "1"),
    ("text[]", '"{a}"'),
    ("text[]", '[["a"]]'),
    ("text[]", "[1]"),
    ("text[]", "{}"),
    ("integer[]", "[2147483648]"),
    ("character varying(3)[]", '["abcd"]'),
    ("inet", "{}"),
    ("inet[]", "[]"),
    ("jsonb[]", "[1]"),
]


def parsed(text: str) -> Any:
    """Parse the text of a value as records are parsed."""
    return json.loads(text, parse_float=Decimal)


@pytest.mark.parametrize(("sql_type", "text", "expected"), HELD)
def test_a_value_is_held_exactly(sql_type: str, text: str, expected: object) -> None:
    """What a column can hold goes to the driver as it is, in a type of the same meaning."""
    fit = fit_for(sql_type)
    value = fit.convert(parsed(text), text)
    assert value == expected
    assert type(value) is type(expected)
    assert fit.staged_as == sql_type
    assert not fit.by_cast


@pytest.mark.parametrize(("sql_type", "text"), MISFITS)
def test_a_misfit_is_refused(sql_type: str, text: str) -> None:
    """What a column cannot hold as it is gets neither rounded nor cut nor read as something else."""
    with pytest.raises(Misfit, match=r"^(is|has|does|ends) "):
        fit_for(sql_type).convert(parsed(text), text)


SPELLED_OUT = [
    ("numeric", '"67123.45000000"', "67123.45000000"),
    ("numeric", '"0.00000000"', "0.00000000"),
    ("numeric", '"-12345678901234567890.123456789012345678901"', "-12345678901234567890.123456789012345678901"),
    ("numeric", '"1E-8"', "1E-8"),
    ("numeric", '"\\u0031.50"', "1.50"),
    ("numeric", "1.50", "1.50"),
    ("numeric(18,8)", '"67123.45000000"', "67123.45000000"),
]


@pytest.mark.parametrize(("sql_type", "text", "number"), SPELLED_OUT)
def test_a_number_in_a_text_keeps_every_digit(sql_type: str, text: str, number: str) -> None:
    """Where numbers may come as text, the text is read as JSON would read it, zeros at its end included."""
    found = fit_for(sql_type, numbers_as_text=True).convert(parsed(text), text)
    assert found.as_tuple() == Decimal(number).as_tuple()


@pytest.mark.parametrize(
    "text",
    [
        '""', '" 1"', '"1 "', '"+1"', '"1."', '".5"', '"01"', '"1,5"', '"1_000"', '"0x10"', '"NaN"', '"Infinity"',
        '"-"', '"1e"', '"\u0661"', '"1e309"', '"1e99999999999999999999"', "true", "[]",
    ],
)  # fmt: skip
def test_a_text_that_is_no_number_is_refused(text: str) -> None:
    """Nothing is guessed: a text that JSON would not take for a number, or that numeric cannot hold, is a misfit."""
    with pytest.raises(Misfit, match=r"^(is|has) "):
        fit_for("numeric", numbers_as_text=True).convert(parsed(text), text)


def test_texts_are_numbers_only_where_that_was_declared() -> None:
    """Without the word of whoever set it up, and for every other type, a text stays a text."""
    for fit in (fit_for("numeric"), fit_for("bigint", numbers_as_text=True)):
        with pytest.raises(Misfit):
            fit.convert("1", '"1"')
    assert fit_for("text", numbers_as_text=True).convert("1", '"1"') == "1"


@pytest.mark.parametrize(
    "sql_type", ["inet", "mood", "public.mood", '"Mood"', "bit(3)", "interval day to second(3)", "money"]
)
def test_unknown_types_are_left_to_postgresql(sql_type: str) -> None:
    """Values of types that Lockstep does not know travel as text, and PostgreSQL's own input decides."""
    fit = fit_for(sql_type)
    assert fit.by_cast
    assert fit.staged_as == "text"
    assert fit.convert("a text", '"a text"') == "a text"
    assert fit.convert(Decimal("1.50"), "1.50") == "1.50"
    assert fit.convert(True, "true") == "true"


async def test_postgresql_holds_the_very_values(database_url: str) -> None:
    """Every value that is let through comes back from a column of its type as it was sent by COPY."""
    connection = await asyncpg.connect(make_url(database_url).set(drivername="postgresql").render_as_string(False))
    try:
        await connection.execute("SET TimeZone = 'Asia/Tokyo'")
        columns = ", ".join(f"c{place} {sql_type}" for place, (sql_type, _, _) in enumerate(HELD))
        await connection.execute(f"CREATE TABLE held ({columns})")
        record = tuple(fit_for(sql_type).convert(parsed(text), text) for sql_type, text, _ in HELD)
        await connection.copy_records_to_table("held", records=[record])
        row = await connection.fetchrow("SELECT * FROM held")
        infinite = " OR ".join(f"c{place}::text LIKE '%infinity'" for place in range(len(HELD)))
        assert await connection.fetchval(f"SELECT count(*) FROM held WHERE {infinite}") == 0
    finally:
        await connection.close()
    assert row is not None
    for (sql_type, text, expected), found in zip(HELD, row, strict=True):
        if sql_type == "jsonb":
            assert parsed(found) == parsed(text)
        elif sql_type.startswith("character("):
            assert found.rstrip(" ") == expected
        else:
            assert found == expected, (sql_type, text)


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=None).filter(
    lambda number: abs(number.adjusted()) < 60
)


@given(decimals, st.integers(1, 40), st.integers(-10, 45))
@example(Decimal("1234567890123456789012345678.125"), 40, 2)
def test_bounded_numeric_never_rounds(number: Decimal, precision: int, scale: int) -> None:
    """A numeric with modifiers takes a number if, and only if, it needs no more places before or behind the point."""
    units = number.as_tuple().exponent
    assert isinstance(units, int)
    whole = int(f"{'-' if number.is_signed() else ''}{''.join(map(str, number.as_tuple().digits))}")
    shift = units + scale
    scaled, rest = (whole * 10**shift, 0) if shift >= 0 else (abs(whole) // 10**-shift, abs(whole) % 10**-shift)
    fits = rest == 0 and abs(scaled) < 10**precision
    convert = fit_for(f"numeric({precision},{scale})").convert
    if fits:
        assert convert(number, str(number)) == number
    else:
        with pytest.raises(Misfit):
            convert(number, str(number))


@given(st.one_of(decimals, st.integers()))
def test_floats_print_what_they_were_given(number: Decimal | int) -> None:
    """A float column takes a number only if its shortest spelling is that very number."""
    for sql_type, spell in (("double precision", repr), ("real", lambda found: str(np.float32(found)))):
        try:
            found = fit_for(sql_type).convert(number, str(number))
        except Misfit:
            continue
        assert Decimal(spell(found)) == number


@given(st.text(max_size=6), st.integers(1, 5))
def test_texts_are_never_cut(text: str, length: int) -> None:
    """A text is stored whole or not at all."""
    for sql_type in (f"character varying({length})", f"character({length})"):
        try:
            assert fit_for(sql_type).convert(text, json.dumps(text)) == text
        except Misfit:
            assert len(text) > length or text.endswith(" ")


@given(st.text("0123456789-+:.TZ tz_/٣", max_size=30))
def test_odd_moments_raise_nothing_else(text: str) -> None:
    """Whatever stands in a text, a column of a date or time takes it or calls it a misfit."""
    for sql_type in ("date", "time without time zone", "time with time zone", "timestamp without time zone",
                     "timestamp with time zone", "uuid", "date[]"):  # fmt: skip
        try:
            fit_for(sql_type).convert([text] if sql_type.endswith("]") else text, json.dumps(text))
        except Misfit:
            continue
