"""Convert one parsed JSON value into what a column's type takes, exactly or not at all.

The parsed form is the one of `records.parse`: numbers are int or Decimal, so no digit is lost on the way here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import numpy as np

from columns import (
    BIGINT,
    BIGINT_MAX,
    BIGINT_MIN,
    BOOLEAN,
    DOUBLE,
    JSONB,
    NUMERIC,
    TEXT,
    fits_double,
    fits_numeric,
    instant,
    is_integral,
    shortest,
)

Read = TypeVar("Read")

Converter = Callable[[Any, str], Any]
"""Takes the parsed value and its JSON text; returns the value for the driver or raises Misfit. Never sees null."""

INTEGER_RANGES = {"smallint": (-(2**15), 2**15 - 1), "integer": (-(2**31), 2**31 - 1), BIGINT: (BIGINT_MIN, BIGINT_MAX)}

SPELLING = re.compile(
    r"(?P<base>[a-z ]+?)(?:\((?P<first>\d+)(?:,(?P<second>-?\d+))?\))?"
    r"(?P<zone> with(?:out)? time zone)?(?P<array>\[\])?"
)
"""How format_type() spells a type: its name, modifiers, time zone and array brackets."""

LOCAL_TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.(\d{1,6}))?")
LOCAL_TIME = re.compile(r"\d{2}:\d{2}:\d{2}(?:\.(\d{1,6}))?")
OFFSET_TIME = re.compile(LOCAL_TIME.pattern + r"(?:[Zz]|[+-](?:0\d|1[0-5]):[0-5]\d)")
"""PostgreSQL takes offsets under 16 hours."""
CALENDAR_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
HEXADECIMAL_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}")
ENDS_OF_THE_CALENDAR = (date.min, date.max, datetime.min, datetime.max)  # noqa: DTZ901 (of timestamps without zone)
"""Moments that asyncpg writes as -infinity and infinity."""
FRACTION = re.compile(r"\.(\d+)")
JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
"""How JSON spells a number (RFC 8259, section 6)."""
SHORT_NUMBERS_AS_TEXT = re.compile(r'(?:"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?"(?:,|\Z))+')
"""JSON texts, with commas between them, each of which spells a number that numeric is sure to hold."""


class Misfit(ValueError):
    """A value that a column cannot hold as it is."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a column takes values: the converter, and the type in which they travel to the database."""

    convert: Converter
    staged_as: str
    convert_all: Callable[[Sequence[str | None]], list[Decimal] | None] | None = None
    """Converts the JSON texts of many values at once, or returns None where each has to be looked at."""
    by_cast: bool = False
    """The type is not one of those known here: values travel as text, and PostgreSQL's own input decides."""


def fit_for(sql_type: str, *, numbers_as_text: bool = False) -> Fit:
    """Return how a column of a type, spelled as by format_type(), takes values.

    With `numbers_as_text`, a numeric column also takes a text that spells a number as JSON does, as prices often come.
    """
    match = SPELLING.fullmatch(sql_type)
    convert = _converter(match) if match else None
    if convert is None:
        return Fit(convert=_literal, staged_as=TEXT, by_cast=True)
    if numbers_as_text and match and match["base"] == NUMERIC and not match["array"]:
        convert_all = None if match["first"] else _all_spelled_out
        return Fit(convert=_spelled_out(convert), staged_as=sql_type, convert_all=convert_all)
    return Fit(convert=_each(convert) if match and match["array"] else convert, staged_as=sql_type)


def _converter(match: re.Match[str]) -> Converter | None:
    base, first, second = match["base"], match["first"], match["second"]
    if match["array"] and base in ("json", JSONB):
        return None
    if base in INTEGER_RANGES:
        return _integer(*INTEGER_RANGES[base])
    if base == NUMERIC:
        return _bounded_numeric(int(first), int(second or 0)) if first else _numeric
    if base in ("character varying", "character"):
        # "character" compares without trailing spaces, so a value that ends in one would be cut.
        return _bounded_text(int(first) if first else None, padded=base == "character")
    if base in ("timestamp", "time"):
        return _moment(base, match["zone"], int(first) if first else 6)
    return {
        BOOLEAN: _boolean, DOUBLE: _double, "real": _real, TEXT: _text,
        JSONB: _json, "json": _json, "date": _date, "uuid": _uuid,
    }.get(base)  # fmt: skip


def _boolean(value: Any, _text: str) -> bool:
    if not isinstance(value, bool):
        raise Misfit("is not true or false")
    return value


def _number(value: Any) -> int | Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise Misfit("is not a number")
    return value


def _integer(low: int, high: int) -> Converter:
    def convert(value: Any, _text: str) -> int:
        number = _number(value)
        if not is_integral(number):
            raise Misfit("is not a whole number")
        if not low <= number <= high:
            raise Misfit(f"is not between {low} and {high}")
        return int(number)

    return convert


def _double(value: Any, _text: str) -> float:
    number = _number(value)
    if not fits_double(number):
        raise Misfit("has more digits than a double precision keeps")
    return float(number)


def _real(value: Any, _text: str) -> float:
    with np.errstate(over="ignore"):
        single = np.float32(str(_number(value)))
    if not np.isfinite(single) or Decimal(str(single)) != value:
        raise Misfit("has more digits than a real keeps")
    return float(single)


def _numeric(value: Any, _text: str) -> Decimal:
    number = Decimal(_number(value))
    if not fits_numeric(number):
        raise Misfit("has more digits than numeric keeps")
    return number


def _bounded_numeric(precision: int, scale: int) -> Converter:
    def convert(value: Any, text: str) -> Decimal:
        number = _numeric(value, text)
        exponent = shortest(number).as_tuple().exponent
        if number and (not isinstance(exponent, int) or exponent < -scale or number.adjusted() >= precision - scale):
            raise Misfit(f"does not fit numeric({precision},{scale})")
        return number

    return convert


def _spelled_out(convert: Converter) -> Converter:
    def convert_either(value: Any, text: str) -> Any:
        if not isinstance(value, str):
            return convert(value, text)
        if not JSON_NUMBER.fullmatch(value):
            raise Misfit("is a text that is not spelled as a number")
        try:
            number = Decimal(value)
        except ArithmeticError as error:
            raise Misfit("is a text whose number has a huge exponent") from error
        return convert(number, text)

    return convert_either


def _all_spelled_out(texts: Sequence[str | None]) -> list[Decimal] | None:
    present = [text for text in texts if text is not None]
    joined = ",".join(present)
    if len(present) < len(texts) or not SHORT_NUMBERS_AS_TEXT.fullmatch(joined):
        return None
    return [Decimal(number) for number in joined.replace('"', "").split(",")]


def _text(value: Any, _text: str) -> str:
    if not isinstance(value, str):
        raise Misfit("is not a text")
    return value


def _bounded_text(length: int | None, *, padded: bool) -> Converter:
    def convert(value: Any, text: str) -> str:
        _text(value, text)
        if length is not None and len(value) > length:
            raise Misfit(f"is longer than {length} characters")
        if padded and value.endswith(" "):
            raise Misfit("ends in a space, which this type does not keep")
        return str(value)

    return convert


def _moment(base: str, zone: str | None, precision: int) -> Converter:
    with_offset = zone == " with time zone"
    if base == "time" and with_offset:
        return _clock(_matching(OFFSET_TIME, time.fromisoformat), "a time with an offset", precision)
    if base == "time":
        return _clock(_matching(LOCAL_TIME, time.fromisoformat), "a time without offset", precision)
    if with_offset:
        return _clock(instant, "an RFC 3339 time with an offset", precision)
    return _clock(_matching(LOCAL_TIMESTAMP, datetime.fromisoformat), "an RFC 3339 time without offset", precision)


def _matching(pattern: re.Pattern[str], read: Callable[[str], Read]) -> Callable[[str], Read]:
    def read_matching(text: str) -> Read:
        if not pattern.fullmatch(text):
            raise ValueError("spelled in another way")
        return read(text)

    return read_matching


def _clock(read: Callable[[str], Any], wanted: str, precision: int) -> Converter:
    def convert(value: Any, text: str) -> Any:
        moment = _read(read, _text(value, text).upper(), f"{wanted} of at most {precision} fractional digits")
        fraction = FRACTION.search(value)
        if fraction and len(fraction[1].rstrip("0")) > precision:
            raise Misfit(f"is finer than {precision} fractional digits")
        return moment

    return convert


def _date(value: Any, text: str) -> date:
    return _read(_matching(CALENDAR_DATE, date.fromisoformat), _text(value, text), "a date")


def _uuid(value: Any, text: str) -> UUID:
    return _read(_matching(HEXADECIMAL_UUID, UUID), _text(value, text), "a UUID")


def _read(read: Callable[[str], Read], value: str, wanted: str) -> Read:
    try:
        found = read(value)
    except ValueError as error:
        raise Misfit(f"is not {wanted}") from error
    if found in ENDS_OF_THE_CALENDAR:
        raise Misfit("is an end of the calendar, which would be stored as infinity")
    return found


def _json(_value: Any, text: str) -> str:
    return text


def _literal(value: Any, text: str) -> str:
    if isinstance(value, dict | list):
        raise Misfit("is not a single value")
    return value if isinstance(value, str) else text


def _each(convert: Converter) -> Converter:
    def convert_all(value: Any, _text: str) -> list[Any]:
        if not isinstance(value, list) or any(isinstance(item, dict | list) for item in value):
            raise Misfit("is not a list of single values")
        # An element has no text of its own here; only the converters of json need it, and they are not for arrays.
        return [None if item is None else convert(item, str(item)) for item in value]

    return convert_all
