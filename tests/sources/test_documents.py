"""Every document gets the verdict of a strict parser; what a strict parser accepts costs at most single records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from errors import SourceIncomplete, SourceInvalid, SourceTooLarge
from models import KEPT_PROBLEMS
from tests.sources.support import cut

PIECES = [1, 2, 3, 7, 64, None]

VALID_VALUES = [
    b"0", b"-0", b"0.0", b"-0.1e-7", b"1E+2", b"1e2", b"123456789012345678901234567890", b"1e400", b"1e999999999",
    b"0.1234567890123456789", b"9" * 5000, b"true", b"false", b"null", b'""', b'"a"', b'"\\""', b'"\\\\"', b'"\\/"',
    b'"\\b\\f\\n\\r\\t"', b'"\\u0000"', b'"\\u00e9"', b'"\\uD83D\\uDE00"', b'"\\\\ud800"', b'"\x7f"',
    '"é€😀\u2028\ufeff\ufffe"'.encode(), b'"},{"', b'"[{"', b'"\\"},{\\""', b"[]", b"[ ]", b"{}", b"{ }", b"[[[[]]]]",
    b'[1, 2 ,3 ]', b'{"a":{"a":{"a":[{}]}}}', b'{"a":1,"a":2}', b'{"":0}', b'[{"a":1},{"b":2}]',
    b"[" * 200 + b"]" * 200,
]  # fmt: skip

INVALID_VALUES = [
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"-NaN", b"inf", b"01", b"-01", b"00", b"1.", b".5", b"-.5", b"+1",
    b"1e",
    b"1e+", b"1.e3", b"0x10", b"1_0", b"1a", b"-", b"--1", b"1 2", b"True", b"tru", b"nul", b"nulll", b"undefined",
    b"'a'",
    b'"\x00"', b'"\x01"', b'"\t"', b'"\n"', b'"\r"', b'"\x1f"', b'"\\x41"', b'"\\a"', b'"\\u12"', b'"\\u12G4"',
    b'"\\U0041"',
    b'"\\\n"', b'"\\u"', b'"a" "b"', b'""""', b"[1,]", b"[,1]", b"[,]", b"[1,,2]", b"[1 2]", b"[1;2]", b"[1", b"1]",
    b"]", b"[}",
    b'{"a":1,}', b"{,}", b'{"a"}', b'{"a":}', b'{"a":1 "b":2}', b'{"a" 1}', b'{"a"::1}', b"{a:1}", b"{'a':1}",
    b"{1:1}",
    b"{null:1}", b'{"a":1', b'"a":1}', b"}", b"{]", b'{"a":1]', b"/**/1", b"1//", b"#1", b"\x0c1", b"\xa01",
    b"\xff", b"\\u0031",
    "\u20281".encode(), "\ufeff1".encode(), b"", b" ", b"\x00", b"*", b"<a>", b"(1)", b"=1", b'"a', b"a\"", b'"\\',
    b'"\\"',
]  # fmt: skip

LONE_SURROGATES = [
    b'"\\ud800"', b'"\\udc00"', b'"\\uDFFF"', b'"\\ud800x"', b'"\\ud800\\u0041"', b'"\\ud800\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\\\\\ud800"', b'{"\\ud800":1}', b'"\\ud800\\n"', b'["\\ud83d\\ude00","\\ud800"]',
]  # fmt: skip


def row(number: int, value: bytes = b"1") -> bytes:
    return b'{"id":%d,"v":%b}' % (number, value)


def strict(document: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(document, parse_constant=refuse, parse_int=str)


@pytest.mark.parametrize("value", VALID_VALUES)
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_valid_value(value: bytes, piece_bytes: int | None) -> None:
    """What a strict parser accepts as a field is handed on untouched, and so are its neighbours."""
    rows = [row(0), row(1, value), row(2)]
    assert strict(value) is not NotImplemented
    result = cut(b"[%b]" % b", ".join(rows), piece_bytes=piece_bytes)
    assert list(result.records.values()) == rows
    assert list(cut(b"\n".join(rows), piece_bytes=piece_bytes).records.values()) == rows
    document = b'{"before":%b,"items":[%b],"after":%b}' % (value, b",".join(rows), value)
    assert list(cut(document, piece_bytes=piece_bytes, records=("items",)).records.values()) == rows


@pytest.mark.parametrize("value", INVALID_VALUES)
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_invalid_value(value: bytes, piece_bytes: int | None) -> None:
    """What a strict parser refuses spoils the document, wherever it stands."""
    with pytest.raises(ValueError):  # noqa: PT011 - the point is that it refuses, not how
        strict(b"[%b]" % row(0, value))
    rows = [row(0), row(1, value), row(2)]
    broken = (SourceInvalid, SourceIncomplete)
    with pytest.raises(broken):
        cut(b"[%b]" % b",".join(rows), piece_bytes=piece_bytes)
    with pytest.raises(broken):
        cut(b"\n".join(rows), piece_bytes=piece_bytes, format="ndjson")
    with pytest.raises(broken):
        cut(b'{"before":%b,"items":[{}]}' % value, piece_bytes=piece_bytes, records=("items",))
    with pytest.raises(broken):
        cut(b'{"items":[{}],"after":%b}' % value, piece_bytes=piece_bytes, records=("items",))


@pytest.mark.parametrize("value", [value for value in INVALID_VALUES if value.strip()])
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_invalid_element(value: bytes, piece_bytes: int | None) -> None:
    """What a strict parser refuses as an element spoils the document."""
    for document in (b"[%b]", b'[{"a":1},%b]', b'[%b,{"a":1}]', b'[{"a":1},%b,{"a":1}]'):
        with pytest.raises(ValueError):  # noqa: PT011
            strict(document % value)
        with pytest.raises((SourceInvalid, SourceIncomplete)):
            cut(document % value, piece_bytes=piece_bytes)


@pytest.mark.parametrize("value", LONE_SURROGATES)
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_lone_surrogate(value: bytes, piece_bytes: int | None) -> None:
    """An unpaired surrogate costs its record alone, and the record's key is known."""
    rows = [row(0), row(1, value), row(2)]
    for document in (b"[%b]" % b",".join(rows), b"\n".join(rows)):
        result = cut(document, piece_bytes=piece_bytes)
        assert list(result.records) == [0, 2]
        assert result.rejections.keys == [{"id": 1}]
        assert result.rejections.unidentified == 0
        problem = result.rejections.problems[0]
        assert (problem.kind, problem.position, problem.key) == ("rejected", 1, {"id": 1})
        assert "surrogate" in problem.reason


def test_lone_surrogate_in_the_key() -> None:
    """A record whose key cannot be held by any text is counted as unidentified."""
    result = cut(b'[{"id":"\\ud800"},{"id":"a"},{"v":"\\ud800"},{"id":null,"v":"\\ud800"},{"id":1.5,"v":"\\ud800"}]')
    assert list(result.records) == [1]
    assert result.rejections.unidentified == 4
    assert result.rejections.keys == []


def test_compound_key() -> None:
    """All fields of a compound key are needed to identify a record."""
    result = cut(b'[{"a":1,"b":"x","v":"\\ud800"},{"a":1,"v":"\\ud800"}]', key=("a", "b"))
    assert result.rejections.keys == [{"a": 1, "b": "x"}]
    assert result.rejections.unidentified == 1


@pytest.mark.parametrize("element", [b"1", b"-1.5", b'"x"', b"null", b"true", b"false", b"[]", b"[{}]"])
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_elements_that_are_not_records(element: bytes, piece_bytes: int | None) -> None:
    """Scalars and arrays among the records are rejected, each of them, and nothing else is."""
    for document in (b'[%b,{"id":1},%b,%b,{"id":4}]', b'%b\n{"id":1}\n%b\n%b\n{"id":4}'):
        result = cut(document % (element, element, element), piece_bytes=piece_bytes,
                     format="ndjson" if document[0] != ord("[") else "json")  # fmt: skip
        assert list(result.records) == [1, 4]
        assert [problem.position for problem in result.rejections.problems] == [0, 2, 3]
        assert result.rejections.unidentified == 3


def test_many_rejected() -> None:
    """All rejected records are counted; the first are described."""
    result = cut(b"[" + b",".join([b"1"] * 1000) + b"]")
    assert result.rejections.count == result.rejections.unidentified == 1000
    assert len(result.rejections.problems) == KEPT_PROBLEMS


@pytest.mark.parametrize(
    "body",
    [
        b"", b" \n", b"null", b"{}", b'{"error":"no"}', b'{"error":"no"}\n', b'"a string"', b"12", b"true",
        b"<html><body>", b"Not found",
        b'{\n  "id": 1\n}\n', b'{"id":1}{"id":2}', b'{"id":1},{"id":2}', b"[]]", b"[],", b"[]{}", b'[{"id":1}]x',
        b"[][]", b"[", b"[ ",
        b'[{"id":1}', b'[{"id":1},', b'[{"id":1}}', b'[{"id":1},]', b"[,]", b"]", b"}", b'\x1b[31m{"a":1}', b"\x00",
        b"\x00\x00\x00\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_not_an_array(body: bytes, piece_bytes: int | None) -> None:
    """What is not an array of records is an error, never a snapshot without records; the error fits one line."""
    with pytest.raises((SourceInvalid, SourceIncomplete)) as caught:
        cut(body, piece_bytes=piece_bytes)
    assert caught.value.cause.isprintable()


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"[\n]\n"])
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_empty_array(body: bytes, piece_bytes: int | None) -> None:
    """An empty array is a snapshot without records."""
    assert cut(body, piece_bytes=piece_bytes).records == {}
    document = b'{"items":%b}' % body
    assert cut(document, piece_bytes=piece_bytes, records=("items",)).records == {}


def test_lone_object_has_a_remedy() -> None:
    """Who serves one object learns of the setting that names the array inside."""
    with pytest.raises(SourceInvalid) as caught:
        cut(b'{"items":[{"id":1}]}')
    assert '{"items"' in caught.value.cause
    assert "SOURCE_RECORDS" in caught.value.remedy
    assert "SOURCE_FORMAT" in caught.value.remedy


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"rows":[],"total":0}', "no field data; the fields there are: rows, total"),
        (b'{"data":{"rows":[]}}', "no field data.items; the fields there are: rows"),
        (b'{"data":{}}', "no field data.items; the fields there are: none"),
        (b'{"data":null}', "no array data.items"),
        (b'{"data":{"items":null}}', "data.items is not an array: null"),
        (b'{"data":{"items":{"a":1}}}', "data.items is not an array"),
        (b'{"error":"x"}', "the fields there are: error"),
        (b"[]", "not an object with an array data.items"),
        (b"<html>", "not an object with an array data.items"),
        (b"", "empty"),
        (b'{"data":{"items":[1],"items":[2]}}', "more than one field data.items"),
        (b'{"data":{"items":[1]},"data":3}', "no array|more than one"),
        (b'{"data":{"items":[1]}} x', "not valid JSON around"),
        (b'{"data":{"items":[1]]}', "not valid JSON around"),
        (b'{"data":{"items":[1]}', "before its own end"),
        (b'{"data":{"it', "ends before"),
        (b'{"x":NaN,"data":{"items":[1]}}', "not valid JSON around"),
        (b'{"x":%b,"data":{"items":[1]}}' % (b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 16, None])
def test_path_that_leads_nowhere(body: bytes, said: str, piece_bytes: int | None) -> None:
    """An error about the path says what stands there instead."""
    if len(body) > 1000 and piece_bytes:
        piece_bytes = 50_000
    with pytest.raises((SourceInvalid, SourceIncomplete), match=said):
        cut(body, piece_bytes=piece_bytes, records=("data", "items"))


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_path_is_not_confused(piece_bytes: int | None) -> None:
    """Only the array under the whole path counts, not one of the same name elsewhere, nor one in a string."""
    body = rb"""{"items":[{"id":9}],"x":{"data":{"items":[{"id":8}]}},"s":"\"data\":{\"items\":[{","a":
        [{"data":{"items":[7]}}],"data":{"x":[{"items":[6]}],"i":{"items":[5]},"\u0069tems":[{"id":1},{"id":2}],"z":[{"items":[4]}]}}"""
    assert cut(body, piece_bytes=piece_bytes, records=("data", "items")).values == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_deep_nesting(opening: bytes) -> None:
    """100,000 levels of nesting are an error, not a crash."""
    closing = opening[::-1].translate(bytes.maketrans(b"[{", b"]}"), b'"a:')
    for document in (b'[{"id":1},{"v":%b}]', b'{"id":1}\n{"v":%b}\n', b'[{"id":1},%b]'):
        with pytest.raises(SourceInvalid, match="nested too deeply"):
            cut(document % (opening * 100_000 + b"1" + closing * 100_000), piece_bytes=1 << 16)
        with pytest.raises((SourceInvalid, SourceIncomplete, SourceTooLarge)):
            cut(document.partition(b"%b")[0] + opening * 100_000, piece_bytes=1 << 16, max_record_bytes=100_000)


@pytest.mark.parametrize("piece_bytes", [64, 1000])
def test_record_cap(piece_bytes: int | None) -> None:
    """A record of the largest size passes, one byte more is refused by the setting's name, finished or not."""
    fitting = row(1, b'"%b"' % (b"x" * (500 - len(row(1, b'""')))))
    assert len(fitting) == 500
    larger = fitting.replace(b"x", b"xx", 1)
    unfinished = larger[:-2] + b"x" * 100_000
    for join, form in ((b"[%b]", "json"), (b"[{},%b\n  ]", "json"), (b"%b", "ndjson"), (b"{}\n%b \n{}\n", "ndjson")):
        assert (
            fitting in cut(join % fitting, piece_bytes=piece_bytes, format=form, max_record_bytes=500).records.values()
        )
        for record in (larger, unfinished):
            with pytest.raises(SourceTooLarge, match="MAX_RECORD_BYTES"):
                cut(join % record, piece_bytes=piece_bytes, format=form, max_record_bytes=500)


def test_surroundings_cap() -> None:
    """What surrounds the array is bounded too."""
    for body in (b'{"x":"%b","items":[]}', b'{"items":[],"x":"%b"}', b'{"x":[%b"1"],"items":[]}'):
        with pytest.raises(SourceTooLarge, match="MAX_RECORD_BYTES"):
            cut(body % (b'1,",' * 1000), piece_bytes=64, records=("items",), max_record_bytes=1000)
    with pytest.raises(SourceTooLarge, match="MAX_RECORD_BYTES"):
        cut(b'{"x":"' + b"1" * 5000, piece_bytes=64, max_record_bytes=1000)


def test_lines_by_content_type() -> None:
    """A single line is a record where the content type says that lines are records; an array stays an array."""
    assert cut(b'{"id":1}', content_type="application/x-ndjson").values == [{"id": 1}]
    assert cut(b'[{"id":1}]', content_type="application/x-ndjson").values == [{"id": 1}]
    assert cut(b'{"id":1}\n', format="ndjson").values == [{"id": 1}]


@pytest.mark.parametrize("line", [b"NaN", b"{]", b"{'a':1}", b'{"id":2}{"id":3},', b"<html>", b'{"id":'])
def test_bad_line(line: bytes) -> None:
    """A line that is not JSON fails the whole body; at the end it may be a cut."""
    with pytest.raises(SourceInvalid):
        cut(b'{"id":1}\n%b\n{"id":2}\n' % line)
    with pytest.raises(SourceIncomplete):
        cut(b'{"id":1}\n{"id":2}\n%b' % line)
