"""Single records: read exactly or refused with a reason, and known again however they are spelled."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from records import (
    RecordError,
    canonical_digests,
    check_key,
    check_storable,
    parse,
    parse_scalar,
    read_key,
    without_nul,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), texts),
    lambda children: st.one_of(st.lists(children, max_size=3), st.dictionaries(texts, children, max_size=3)),
    max_leaves=8,
)
records = st.dictionaries(texts, documents, max_size=4)


@given(records)
def test_parse_gives_back_what_was_written(record: dict[str, Any]) -> None:
    """A record without numbers that need more than integers is parsed as the standard library parses it."""
    for ensure_ascii in (True, False):
        assert parse(json.dumps(record, ensure_ascii=ensure_ascii).encode()) == (record, None)


def test_parse_keeps_every_digit() -> None:
    """Integers of any length stay integers, and other numbers keep the digits that they were written with."""
    record, _ = parse(b'{"a":123456789012345678901234567890,"b":0.12345678901234567890,"c":1e2,"d":-0.0}')
    assert record == {"a": 123456789012345678901234567890, "b": Decimal("0.12345678901234567890"), "c": 100, "d": 0}
    assert [type(value) for value in record.values()] == [int, Decimal, Decimal, Decimal]


@pytest.mark.parametrize(
    ("raw", "repeated"),
    [
        (b'{"a":1,"b":2}', None),
        (b'{"a":1,"a":2}', "a"),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'{"x":[{"b":1,"b":1}],"a":1}', "b"),
        (b'{"a":{"x":1},"b":{"x":1}}', None),
        (b'{"b":1,"a":1,"a":2,"b":2}', "b"),
    ],
)
def test_repeated_names_are_told(raw: bytes, repeated: str | None) -> None:
    """A name that stands twice in one object is told, at any depth; the last value is the one that counts."""
    record, found = parse(raw)
    assert found == repeated
    assert record == json.loads(raw)


def test_one_repeated_name_among_many_takes_no_time() -> None:
    """An object of very many names of which one is repeated is read in time that grows with its length alone."""
    names = b",".join(b'"n%d":1' % number for number in range(200_000))
    assert parse(b'{%b,"n7":2}' % names)[1] == "n7"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'"a"', "not an object"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"a":NaN}', "exactly"),
        (b'{"a":-Infinity}', "exactly"),
        (b'{"a":%b}' % (b"9" * 5_000), "exactly"),
        (b'{"a":1e99999999999999999999}', "exactly"),
        (b'{"a":"\n"}', "exactly"),
        (b'{"a":1', "exactly"),
        (b'{"a":%b1%b}' % (b"[" * 100_000, b"]" * 100_000), "nested too deeply"),
    ],
)
def test_what_cannot_be_parsed_has_a_reason(raw: bytes, reason: str) -> None:
    """A record that cannot be read exactly is refused, and the reason says why."""
    with pytest.raises(RecordError, match=reason):
        parse(raw)


@given(st.one_of(texts, st.integers(), st.none(), st.booleans(), st.decimals(allow_nan=False, allow_infinity=False)))
def test_scalars_are_parsed_alike(value: Any) -> None:
    """The text of a single value means the same alone as inside a record."""
    text = str(value) if isinstance(value, Decimal) else json.dumps(value)
    alone, (record, _) = parse_scalar(text), parse(f'{{"a":{text}}}'.encode())
    assert (type(alone), alone) == (type(record["a"]), record["a"])


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'{"id":1,"x":"\xff"}', {"id": 1, "b": None}),
        (b'{"id":1,"x":"\n"}', {"id": 1, "b": None}),
        (b'{"id":"a","b":1.50}', {"id": "a", "b": Decimal("1.50")}),
        (b'{"id":{},"b":null}', {"id": {}, "b": None}),
        (b"[]", None),
        (b'{"id":1', None),
        (b'{"id":1,"x":%b}' % (b"9" * 5_000), None),
        (b'{"id":1,"x":%b}' % (b"[" * 100_000), None),
        (b'{"id":1,"x":1e99999999999999999999}', None),
    ],
)
def test_read_key(raw: bytes, key: dict[str, Any] | None) -> None:
    """The key of a record that cannot be stored is made out as far as it can be, without any error."""
    assert read_key(raw, ("id", "b")) == key


def test_a_broken_key_is_no_other_key() -> None:
    """A key that is not UTF-8 is not taken for one that contains a replacement character."""
    key = read_key(b'{"id":"a\xff"}', ("id",))
    assert key is not None
    with pytest.raises(RecordError):
        check_storable(key)


@pytest.mark.parametrize(
    ("raw", "stripped"),
    [
        (b'{"a":"x"}', b'{"a":"x"}'),
        (b'{"a\\u0000":"\\u0000x\\u0000"}', b'{"a":"x"}'),
        (rb'{"a":"\\u0000"}', rb'{"a":"\\u0000"}'),
        (rb'{"a":"\\\u0000"}', rb'{"a":"\\"}'),
        (rb'{"a":"\"\u0000"}', rb'{"a":"\""}'),
    ],
)
def test_nul_characters(raw: bytes, stripped: bytes) -> None:
    """NUL characters are stripped or refused by policy; what only looks like one is left alone."""
    assert without_nul(raw, strip=True) == stripped
    if raw == stripped:
        assert without_nul(raw, strip=False) == raw
    else:
        with pytest.raises(RecordError, match="NUL"):
            without_nul(raw, strip=False)


@pytest.mark.parametrize(
    ("value", "what"), [(None, "missing"), (True, "neither"), (Decimal("1.5"), "neither"), ({}, "neither")]
)
def test_what_is_no_key_is_named(value: object, what: str) -> None:
    """The field that is no key is named, and what is wrong with it."""
    check_key({"id": 1, "code": "x"})
    with pytest.raises(RecordError, match=f"'code'.*{what}"):
        check_key({"id": 1, "code": value})


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        {"a": ["\udfff"]},
        {"\ud800": 1},
        Decimal("1e309"),
        [{"a": Decimal("1e-16384")}],
        Decimal("-1e999999999"),
        10**309,
        {"a": [-(10**4000)]},
    ],
)
def test_what_postgresql_cannot_store(value: object) -> None:
    """Half characters and numbers out of range are found at any depth."""
    with pytest.raises(RecordError):
        check_storable(value)


def test_depth_alone_is_no_reason() -> None:
    """A value is looked through however deeply it is nested."""
    value: Any = [Decimal("1e308"), 10**308, "ä", True, None]
    for _ in range(50_000):
        value = {"a": [value]}
    check_storable(value)
    innermost = value
    while innermost:
        innermost, value = innermost.get("a", [None])[0] if isinstance(innermost, dict) else None, innermost


def digest(text: str) -> bytes:
    """Return the canonical digest of one record."""
    return canonical_digests([Raw(text.encode())])


def shuffled(value: Any, seed: random.Random) -> Any:
    """Return a value with the fields of all its objects in another order, and nulls strewn in at the top."""
    if isinstance(value, dict):
        members = [(name, shuffled(member, seed)) for name, member in value.items()]
        seed.shuffle(members)
        return dict(members)
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


@given(records, st.randoms(use_true_random=False), st.sampled_from([None, 0, 3]), st.booleans())
def test_spelling_does_not_matter(
    record: dict[str, Any], seed: random.Random, indent: int | None, ascii_only: bool
) -> None:
    """Order of fields, white space, escapes, and null for an absent field make no other record."""
    other = shuffled({name: value for name, value in record.items() if value is not None}, seed)
    respelled = json.dumps(other | {"an absent field": None}, indent=indent, ensure_ascii=ascii_only)
    assert digest(json.dumps(record | {"an absent field": None})) == digest(respelled)


@given(records, records)
def test_different_records_have_different_digests(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Records that differ in any value have different canonical digests."""
    same = strict({name: value for name, value in one.items() if value is not None}) == strict(
        {name: value for name, value in other.items() if value is not None}
    )
    assert (digest(json.dumps(one)) == digest(json.dumps(other))) == same


def strict(value: Any) -> Any:
    """Return what tells true from 1."""
    if isinstance(value, dict):
        return {name: strict(member) for name, member in value.items()}
    return [strict(item) for item in value] if isinstance(value, list) else (type(value), value)


NUMBERS = ["0", "1", "-1", "10", "0.1", "0.10000000000000000001", "100000000000000000000", "1e-7", "1e400", "1e401",
           "0.1234567890123456789012345678901", "0.1234567890123456789012345678902", "9007199254740993",
           "9007199254740992", "123456789012345678901234567890", "123456789012345678901234567891"]  # fmt: skip


def test_numbers_that_differ_are_told_apart() -> None:
    """No two different numbers share a digest, nor a number and a text, nor one order of a list and another."""
    values = [*NUMBERS, *(f'"{number}"' for number in NUMBERS), "true", "false", '"true"', "[]", "{}", "[1,2]", "[2,1]",
              "[1]", "[null]", '{"a":null}', '{"a":1}', '{"a":"1"}']  # fmt: skip
    assert len({digest(f'{{"x":{value}}}') for value in values}) == len(values)


@pytest.mark.parametrize(
    "spellings",
    [
        ["1", "1.0", "1e0", "10e-1", "1.000000000000000000000000"],
        ["0", "-0", "0.0", "-0.0", "0e5"],
        ["100", "1e2", "1E+2", "100.00"],
        ["0.1", "1e-1", "0.10", "0.1000000000000000000000000000000000"],
        ["1.5e300", "15e299"],
        [
            "0.1234567890123456789012345678901",
            "0.12345678901234567890123456789010",
            "1234567890123456789012345678901e-31",
        ],
    ],
)
def test_equal_numbers_are_equal_however_they_are_written(spellings: list[str]) -> None:
    """The same number has one digest in all its spellings, at any depth."""
    assert len({digest(f'{{"x":{number},"y":[{{"z":{number}}}]}}') for number in spellings}) == 1


@given(
    st.lists(st.sampled_from([b'{"a":1}', b'{"a":\xff}', b'{"a":"\\ud800"}', b'{"a":%b}' % (b"[" * 5_000), b"1", b"{"]))
)
def test_what_cannot_be_decoded_has_a_digest_too(raws: list[bytes]) -> None:
    """Every record has its digest, sound or not, and equal bytes have equal ones."""
    digests = canonical_digests([Raw(raw) for raw in raws])
    assert len(digests) == 16 * len(raws)
    assert len({digests[start : start + 16] for start in range(0, len(digests), 16)}) == len(set(raws))


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
@example(Decimal("1e999999"), Decimal("1e-999999"))
@example(Decimal("1e22"), Decimal(10**22 + 1))
def test_any_two_numbers(one: Decimal, other: Decimal) -> None:
    """Two numbers within the range of a double have one digest if, and only if, they are equal."""
    digests = {digest(f'{{"x":{number}}}') for number in (one, other)}
    if one != other:
        assert len(digests) == 2
    elif abs(one.adjusted()) < 300:
        assert len(digests) == 1


def test_a_record_need_not_be_a_message_of_msgspec() -> None:
    """Names that mean something to a program mean nothing here."""
    record = {"__proto__": {"a": 1}, "": 0, 'q"': "\\", "type": None}
    assert parse(msgspec.json.encode(record)) == (record, None)
