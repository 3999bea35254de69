"""Whatever a source puts into its JSON, it is stored exactly, or rejected with its record, or refused as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from errors import SourceError, SourceIncomplete, SourceInvalid
from models import Report
from tests.engine import Engine, assert_holds, parse
from tests.faults.support import BEFORE
from tests.feed_server import Answer
from tests.sources.test_documents import INVALID_VALUES, LONE_SURROGATES, VALID_VALUES

NEIGHBOURS = {(1,): {"id": 1, "v": "old"}, (3,): {"id": 3, "v": "old"}}
OLD = {**NEIGHBOURS, (2,): {"id": 2, "v": "old"}}

LEFT_OPEN = [
    *LONE_SURROGATES,
    b'"\xff"', b'"\xe9"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe6\x97"',
    b"1e400", b"-1e400", b"1e-400", b"1e999999999", b"-1e-999999999", b"9" * 5000, b"-" + b"9" * 5000,
    b"0." + b"1" * 20_000, b"1" + b"0" * 200_000, b'"\\u0000"', b'{"\\u0000":1}', b'["\\u0000"]',
]  # fmt: skip
"""What RFC 8259 leaves to parsers: numbers beyond range, text that is no Unicode; and NUL, which is not stored."""

DOCUMENTS = [
    *VALID_VALUES, *INVALID_VALUES, *LEFT_OPEN,
    b"[]]", b"[", b"]", b"[1", b"[,]", b"[1,]", b"[1]x", b"[][]", b"[]\x00", b"\x00", b"\xef\xbb\xbf", b"\xef\xbb\xbf[",
    b"\xfe\xff", b"\xff\xfe[\x00", b'["a",\n4\n,1,', b'{"a":"b"}#{}', b"[{}", b"[{", b"[{]", b'[{"id":2,"id"', b"\xe5",
    b"\x1b[31m", b'["x"', b"[1,\n1\n,1", b'{"a":true} "x"', b"[\xe2\x81\xa0]", b"\xe2\x81\xa0", b"[<null>]",
    b"\x0c[]", b"[\x0c]", b"[]\x0c", b"\x0b[]", b"[]\x0b", b"\xc2\xa0[]", b"//\n[]", b"[]//",
    b"[" * 100_000, b'[{"":' * 50_000, b"[" * 100_000 + b"]" * 100_000,
]  # fmt: skip


@pytest.fixture
async def loaded(engine: Engine) -> Engine:
    """A mirror of three records, of which the second is about to change."""
    engine.configure(attempts=1, allow_empty=False)
    await engine.sync([OLD[key] for key in sorted(OLD)])
    return engine


def around(value: bytes) -> bytes:
    """Return a snapshot in which the second record has this value."""
    return b'[{"id": 1, "v": "old"}, {"id": 2, "v": %b}, {"id": 3, "v": "old"}]' % value


async def attempt(engine: Engine, body: bytes, **answer: Any) -> Report | SourceError:
    """Sync a body; return the report, or what the source was found guilty of, when nothing was written."""
    engine.serve(body, **answer)
    try:
        return await engine.sync()
    except SourceError as error:
        return error


async def start_over(engine: Engine) -> None:
    """Bring the mirror back to what it was, in columns that fit it."""
    await engine.edit("DROP TABLE {table} CASCADE", "DELETE FROM lockstep.mirrors")
    await engine.sync([OLD[key] for key in sorted(OLD)])


async def test_a_strict_parser_s_verdict_on_fields(loaded: Engine) -> None:
    """A value that a strict parser takes is stored exactly or costs its record; any other fails the run."""
    for value in [*VALID_VALUES, *LEFT_OPEN]:
        ended = await attempt(loaded, around(value))
        assert isinstance(ended, Report), (value[:50], ended)
        if ended.counts.rejected:
            assert (ended.counts.rejected, ended.counts.deleted) == (1, 0), value[:50]
            assert ended.status in ("unchanged", "held"), value[:50]
            assert_holds(await loaded.state(), OLD)
            assert may_be_rejected(value), value[:50]
        else:
            assert_holds(await loaded.state(), {**NEIGHBOURS, (2,): {"id": 2, "v": exactly(value)}})
            await start_over(loaded)
    for value in INVALID_VALUES:
        ended = await attempt(loaded, around(value))
        assert isinstance(ended, SourceInvalid | SourceIncomplete), (value, ended)
    assert_holds(await loaded.state(), OLD)
    await loaded.sync(around(b'"new"'))
    await loaded.check()


def exactly(value: bytes) -> Any:
    """Parse a value without losing anything."""
    return parse(value)


def may_be_rejected(value: bytes) -> bool:
    """Tell whether a value is one that no column could hold."""
    if b"\\u0000" in value or value in LEFT_OPEN:
        return True
    parsed = json.loads(value, parse_float=Decimal, parse_int=Decimal)
    return isinstance(parsed, Decimal) and abs(parsed.adjusted()) > 300


async def test_a_strict_parser_s_verdict_on_bodies(loaded: Engine) -> None:
    """No body, whatever it is, crashes a run, costs a row, or passes for a snapshot when it is none."""
    for document in DOCUMENTS:
        for body in (document, b"[%b]" % document):
            # Asserts that a run which fails has written nothing.
            if isinstance(ended := await attempt(loaded, body), Report):
                assert ended.status == "held", body[:50]
                assert is_array(body), body[:50]
                assert_holds(await loaded.state(), OLD)
    await loaded.sync(around(b'"new"'))
    await loaded.check()


def is_array(body: bytes) -> bool:
    """Tell whether a strict parser finds an array; bytes that are no text are left open to its elements."""
    found = json.loads(body.decode(errors="surrogateescape"), parse_int=str, parse_constant=refuse)
    return isinstance(found, list)


def refuse(constant: str) -> None:
    raise ValueError(constant)


@pytest.mark.parametrize(
    ("literal", "sql_type"),
    [
        (str(2**53 + 1), "bigint"),
        (str(2**63 - 1), "bigint"),
        (str(-(2**63)), "bigint"),
        (str(2**63), "numeric"),
        (str(-(2**63) - 1), "numeric"),
        (str(2**64), "numeric"),
        ("123456789012345678901234567890", "numeric"),
        ("0.1", "double precision"),
        ("0.1234567890123456789", "numeric"),
        ("1.7976931348623157e308", "double precision"),
        ("9007199254740993.0", None),
        ("100000000000000000000000000000000000001e-20", "numeric"),
    ],
)
async def test_numbers_are_exact(engine: Engine, literal: str, sql_type: str | None) -> None:
    """A number comes out to the digit, on the first load and as a change, and is never a rounded double."""
    await engine.sync(b'[{"id": 1, "v": %b}]' % literal.encode())
    await engine.check()
    stored = await engine.sql.fetchval(f"SELECT v::text FROM {engine.table}")
    assert Decimal(stored) == Decimal(literal)
    if sql_type is not None:
        assert (await engine.types())["v"] == sql_type
    await engine.sync(b'[{"id": 1, "v": 1}]')
    await engine.sync(b'[{"id": 1, "v": %b}]' % literal.encode())
    await engine.check()


TEXTS: Mapping[str, list[dict[str, Any]]] = {
    "ascii": [{"id": 1, "v": "plain"}],
    "latin": [{"id": 1, "v": "Ærøskøbing über Čapek"[:12]}],
    "any": [{"id": 1, "v": "Ångström 日本語 😀 \u2028"}],
}


@pytest.mark.parametrize(
    ("text", "encoding", "charset"),
    [
        ("any", "utf-8", None),
        ("any", "utf-8", "utf-8"),
        ("any", "utf-8", "latin-1"),
        ("any", "utf-8-sig", None),
        ("any", "utf-16", None),
        ("any", "utf-16-le", "utf-16le"),
        ("any", "utf-16-be", None),
        ("any", "utf-32", None),
        ("latin", "latin-1", "iso-8859-1"),
        ("ascii", "ascii", "klingon"),
        ("any", "utf-8", "klingon"),
        ("latin", "latin-1", None),
        ("latin", "latin-1", "utf-8"),
        ("latin", "latin-1", "klingon"),
        ("any", "utf-8", "utf-16"),
    ],
)
async def test_text_is_right_or_refused(engine: Engine, text: str, encoding: str, charset: str | None) -> None:
    """Text of any encoding is decoded right, or costs its record or the run; it is never garbled."""
    engine.configure(attempts=1)
    before = [{"id": 1, "v": "before"}]
    await engine.sync(before)
    records = TEXTS[text]
    content_type = "application/json" + (f"; charset={charset}" if charset else "")
    body = json.dumps(records, ensure_ascii=False).encode(encoding)
    ended = await attempt(engine, body, content_type=content_type)
    engine.served = json.dumps(records).encode()
    is_taken = isinstance(ended, Report) and not ended.counts.rejected
    assert_holds(await engine.state(), {(1,): (records if is_taken else before)[0]})
    assert is_taken or encoding == "latin-1", ended
    await engine.sync(before)
    await engine.check()


async def test_a_number_without_end_takes_no_time(loaded: Engine) -> None:
    """Huge exponents and numbers of a million digits cost their record, and no more time than their bytes."""
    for value in (b"1e999999999", b"-1E-999999999", b"9" * 1_000_000, b"0." + b"3" * 1_000_000):
        ended = await attempt(loaded, around(value))
        assert isinstance(ended, Report)
        assert ended.counts.rejected == 1
        assert ended.duration_ms is not None
        assert ended.duration_ms < 3_000
    assert_holds(await loaded.state(), OLD)


async def test_what_a_source_calls_its_fields_reaches_no_sql(engine: Engine) -> None:
    """Names with quotes, semicolons, path steps and keywords become columns of their own, and nothing else."""
    names = [
        'a"; DROP TABLE lockstep.runs; --',
        "a'b", "a\\b", "$$", "__proto__", "constructor", "select", "ID", "Id", " id",
        "id ", "é", "e\u0301", "😀", "x" * 63, "x" * 64, "x" * 63 + "y", "x" * 1000, "", ":v", "%(v)s", "%s", "{v}",
        "_sync_fingerprint", "_sync_deleted_at", "_SYNC_deleted_at", "ctid", "xmin", "tableoid", "a.b", "a\tb", "a\nb",
    ]  # fmt: skip
    first: dict[str, Any] = {"id": 1, **{name: f"value of {name[:20]}" for name in names}}
    records = [first, {"id": 2}]
    await engine.sync(json.dumps(records).encode())
    await engine.check()
    report = await engine.sync(json.dumps([{**first, names[0]: "new"}, {"id": 2, "_sync_deleted_at": "x"}]).encode())
    assert report.counts.updated == 2
    await engine.check()
    assert await engine.sql.fetchval("SELECT count(*) FROM lockstep.runs") > 0


async def test_deep_records_are_bounded(engine: Engine) -> None:
    """Nesting as deep as records have is kept; a hundred thousand levels fail the run, wherever they begin."""
    engine.configure(attempts=1)
    await engine.sync(b'[{"id": 1, "v": %b1%b}]' % (b"[" * 400, b"]" * 400))
    await engine.check()
    before = await engine.rows()
    for deep in (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 100_000 + b"]" * 100_000):
        engine.feed.answers = Answer(body=b'[{"id": 1, "v": %b}]' % deep)
        with pytest.raises(SourceInvalid, match="deep"):
            await engine.sync()
    assert await engine.rows() == before
    await engine.sync(json.dumps(BEFORE).encode())
