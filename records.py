"""Read single records: exactly, leniently for the sake of their key, or in canonical form.

Everything here is pure. msgspec is fast but silent about what it loses (rounded floats, repeated field names), so the
standard library's parser reads what must be exact.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import xxhash
from msgspec import Raw

from columns import fits_double, fits_numeric, is_integral, key_type, shortest

NUL_ESCAPE = re.compile(rb"\\(?:u0000|.)", re.DOTALL)
"""Any escape: the others are matched so that the second half of an escaped backslash is not taken for a start."""

DOUBLE_SAFE_LENGTH = 16
"""A literal this short has at most 15 digits, and every decimal of 15 digits survives a double (DBL_DIG in C)."""


class RecordError(ValueError):
    """A record that cannot be stored; the message is the reason that is reported."""


def parse(raw: bytes | Raw) -> tuple[dict[str, Any], str | None]:
    """Parse one record exactly: integers as int, other numbers as Decimal, the last of repeated names wins.

    Returns the record and the first field name that stands twice in one of its objects. Raises RecordError.
    """
    repeated: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            times = Counter(name for name, _ in pairs)
            repeated.append(next(name for name in built if times[name] > 1))
        return built

    try:
        text = bytes(raw).decode()
        record = json.loads(text, object_pairs_hook=build, parse_float=Decimal, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise RecordError("it is not valid UTF-8") from error
    except RecursionError as error:
        raise RecordError("it is nested too deeply") from error
    except (ValueError, ArithmeticError) as error:
        raise RecordError("it holds a number or a text that cannot be read exactly") from error
    if not isinstance(record, dict):
        raise RecordError("it is not an object")
    return record, repeated[0] if repeated else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def parse_scalar(text: str) -> Any:
    """Parse the JSON text of a single value as `parse` would; quick for numbers and plain texts."""
    if text[0] in "-0123456789":
        return Decimal(text) if any(mark in text for mark in ".eE") else int(text)
    if text[0] == '"' and "\\" not in text:
        return text[1:-1]
    return json.loads(text, parse_float=Decimal)


def read_key(raw: bytes | Raw, key: Sequence[str]) -> dict[str, Any] | None:
    """Return the key of a record that cannot be stored, as far as it can be made out at all."""
    record = read_leniently(raw)
    return {name: record.get(name) for name in key} if record is not None else None


def read_leniently(raw: bytes | Raw) -> dict[str, Any] | None:
    """Return a record that cannot be stored, if it can be made out at all.

    Bytes that are not UTF-8 become half surrogate pairs, so that no such text passes for the key of a row.
    """
    try:
        record = json.loads(bytes(raw).decode(errors="surrogateescape"), strict=False, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def without_nul(raw: bytes, *, strip: bool) -> bytes:
    """Return a record's text without NUL characters, which PostgreSQL cannot store; raise RecordError or strip them."""
    if b"\\u0000" not in raw:
        return raw
    stripped = NUL_ESCAPE.sub(lambda match: b"" if match[0] == rb"\u0000" else match[0], raw)
    if stripped != raw and not strip:
        raise RecordError("it contains a NUL character, which PostgreSQL cannot store")
    return stripped


def check_key(key: Mapping[str, Any]) -> None:
    """Raise RecordError unless every key field is a text or a whole number."""
    for name, value in key.items():
        if key_type(value) is None:
            what = "missing or null" if value is None else "neither a text nor a whole number"
            raise RecordError(f"its key field {name!r} is {what}")


def check_storable(value: Any) -> None:
    """Raise RecordError for what no column type of PostgreSQL holds, at any depth."""
    pending = [value]  # A record may be nested more deeply than functions may call each other.
    while pending:
        match pending.pop():
            case str() as text:
                if not text.isascii():
                    _check_text(text)
            case bool() | None:
                pass
            case int() | Decimal() as number:
                if not fits_numeric(number):
                    raise RecordError("it holds a number that is too large or has too many digits")
            case dict() as members:
                pending.extend(members)
                pending.extend(members.values())
            case elements:
                pending.extend(elements)


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError("it holds half a surrogate pair, which is not a character") from error


def canonical_digests(raws: Sequence[bytes | Raw]) -> bytes:
    """Return 16 bytes for each record that do not depend on field order, white space or the spelling of numbers.

    A null field counts as absent, since both are NULL in the mirror. What cannot be decoded keeps its raw digest: it
    will not be stored anyway.
    """
    return b"".join([_canonical_digest(raw) for raw in raws])


def _canonical_digest(raw: bytes | Raw) -> bytes:
    try:
        record = _generic.decode(raw)
        canonical = _encoder.encode({name: value for name, value in record.items() if value is not None})
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        canonical = bytes(raw)
    return xxhash.xxh3_128_digest(canonical)


def _canonical_number(literal: str) -> Any:
    if len(literal) <= DOUBLE_SAFE_LENGTH:
        quick = float(literal)
        if quick.is_integer() and abs(quick) < 2**53:
            return int(quick)
    number = Decimal(literal)
    if fits_numeric(number) and is_integral(number):
        return int(number)
    return float(number) if fits_double(number) else Raw(str(shortest(number)).encode())


_generic = msgspec.json.Decoder(dict[str, Any], float_hook=_canonical_number)
_encoder = msgspec.json.Encoder(order="sorted")
