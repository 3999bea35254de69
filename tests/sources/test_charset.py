"""A body in another encoding comes out right or not at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import SourceInvalid
from sources.charset import Transcoder
from tests.feed_server import Answer, FeedServer
from tests.sources.support import fetch, source

WESTERN = [{"id": 1, "name": "Zoë Čapek".replace("Č", "C"), "city": "Málaga"}]
GREEK = [{"id": 1, "name": "Ωμέγα"}]
JAPANESE = [{"id": 1, "name": "日本語テキスト"}]
EMOJI = [{"id": 1, "name": "😀 ümläut"}]


def transcode(body: bytes, declared: str | None = None, *, piece_bytes: int | None = None) -> bytes:
    transcoder = Transcoder(declared)
    size = piece_bytes or max(len(body), 1)
    pieces = [transcoder.feed(body[start : start + size]) for start in range(0, len(body), size)]
    return b"".join([*pieces, transcoder.finish()])


def text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, None])
@pytest.mark.parametrize(
    ("value", "encoding", "declared"),
    [
        (EMOJI, "utf-8", None),
        (EMOJI, "utf-8", "utf-8"),
        (EMOJI, "utf-8", "UTF8"),
        (EMOJI, "utf-8-sig", None),
        (EMOJI, "utf-16", None),
        (EMOJI, "utf-16-le", None),
        (EMOJI, "utf-16-be", None),
        (EMOJI, "utf-32", None),
        (EMOJI, "utf-32-le", None),
        (EMOJI, "utf-32-be", None),
        (EMOJI, "utf-16-be", "utf-16"),
        (EMOJI, "utf-16-le", "iso-8859-1"),
        (EMOJI, "utf-8", "iso-8859-1"),
        (EMOJI, "utf-8", "utf-16"),
        (EMOJI, "utf-8", "no-such-charset"),
        (EMOJI, "utf-8", "unicode_escape"),
        (WESTERN, "iso-8859-1", "iso-8859-1"),
        (WESTERN, "cp1252", "windows-1252"),
        (WESTERN, "iso-8859-15", "iso-8859-15"),
        (GREEK, "iso-8859-7", "iso-8859-7"),
        (JAPANESE, "cp932", "ms932"),
        (JAPANESE, "shift_jis", "shift_jis"),
        (JAPANESE, "euc_jp", "euc-jp"),
        (JAPANESE, "gb18030", "gb18030"),
        ([], "utf-8", "iso-8859-1"),
        ([], "utf-16-le", None),
    ],
)
def test_right(value: object, encoding: str, declared: str | None, piece_bytes: int | None) -> None:
    """Text that is what it is declared to be, or UTF-8, UTF-16 or UTF-32 whatever is declared, is decoded right."""
    assert transcode(text(value).encode(encoding), declared, piece_bytes=piece_bytes) == text(value).encode()


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, None])
@pytest.mark.parametrize(
    ("body", "declared"),
    [
        (text(WESTERN).encode("latin-1"), "no-such-charset"),
        (text(WESTERN).encode("latin-1"), "utf-7"),
        (text(WESTERN).encode("latin-1"), "unicode_escape"),
        (text(WESTERN).encode("latin-1"), "rot13"),
        (text(WESTERN).encode("latin-1"), "cp037"),
        (text(WESTERN).encode("latin-1"), "a\0b"),
        (text(EMOJI).encode() + b"\xe9", "iso-8859-1"),
        (text(EMOJI).encode() + text(WESTERN).encode("latin-1"), "windows-1252"),
        (text(JAPANESE).encode("euc_jp")[:-4] + b'\xff"}]', "euc-jp"),
        (b'["\x81"]', "windows-1252"),
        (text(EMOJI).encode("utf-16")[:-1], None),
        (text(EMOJI).encode("utf-32")[:-1], None),
        (b"\xff\xfe[\0\0\xd8a\0", None),
    ],
)
def test_refused(body: bytes, declared: str | None, piece_bytes: int | None) -> None:
    """Where the bytes contradict every reading that was declared, nothing is guessed."""
    with pytest.raises(SourceInvalid):
        transcode(body, declared, piece_bytes=piece_bytes)


@settings(max_examples=100, deadline=None)
@given(
    body=st.text(st.characters(max_codepoint=0xFF, min_codepoint=0x20, exclude_categories=["Cc"])),
    piece_bytes=st.integers(1, 9),
    encoding=st.sampled_from(["cp1252", "utf-8", "utf-16-le", "utf-8-sig"]),
)
def test_never_garbled(body: str, piece_bytes: int, encoding: str) -> None:
    """Under one declared charset, each text comes out right, or is refused, or reads as UTF-8 both ways."""
    document = text([body])
    raw = document.encode(encoding)
    try:
        result = transcode(raw, "windows-1252", piece_bytes=piece_bytes)
    except SourceInvalid:
        return
    is_also_utf_8 = encoding == "cp1252" and _reads_as_utf_8(raw)
    assert result == document.encode() or is_also_utf_8


def _reads_as_utf_8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("value", "encoding", "charset"),
    [
        (EMOJI, "utf-16", "utf-16"),
        (WESTERN, "latin-1", "ISO-8859-1"),
        (EMOJI, "utf-8-sig", "utf-8"),
        (EMOJI, "utf-8", "x"),
    ],
)
async def test_over_http(value: object, encoding: str, charset: str) -> None:
    """The charset of the Content-Type header is the declared one."""
    answer = Answer(body=text(value).encode(encoding), content_type=f"application/json; charset={charset}")
    async with FeedServer(answer) as server:
        _, records = await fetch(source(server.url))
    assert [json.loads(record) for record in records.values()] == value


async def test_undeclared_broken_utf_8_passes_to_its_record() -> None:
    """Bytes that are not UTF-8 reach the decoder of their record, so that they cost no other one."""
    body = b'[{"id":1},{"id":2,"v":"\xe9"},{"id":3}]'
    async with FeedServer(Answer(body=body)) as server:
        _, records = await fetch(source(server.url))
    assert list(records.values()) == [b'{"id":1}', b'{"id":2,"v":"\xe9"}', b'{"id":3}']
