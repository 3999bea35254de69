"""A fetch over real HTTP: complete and right, or an error that says why."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
import xxhash

from errors import (
    SourceError,
    SourceIncomplete,
    SourceInvalid,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
)
from models import Progress, Validators
from sources import open_feed
from tests.feed_server import (
    Answer,
    BadChunk,
    Drip,
    Fault,
    FeedServer,
    HangUp,
    Reset,
    Silence,
    Stall,
    Truncate,
    bomb,
    compress,
)
from tests.sources.support import fetch, source

ROWS = [{"id": number, "name": f"Name {number}", "note": "},{" * 3} for number in range(3000)]
BODY = json.dumps(ROWS).encode()
LINES = b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n"


def values(records: dict[int, bytes]) -> list[Any]:
    assert list(records) == sorted(records)
    return [json.loads(record) for record in records.values()]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    "encodings", [(), ("gzip",), ("deflate",), ("deflate-raw",), ("br",), ("zstd",), ("br", "gzip")]
)
async def test_whole(framing: Any, encodings: tuple[str, ...]) -> None:
    """Every framing and every compression brings the same records and the same digest."""
    async with FeedServer(Answer(body=BODY, framing=framing, encodings=encodings)) as server:
        feed, records = await fetch(source(server.url))
    assert values(records) == ROWS
    assert feed.records == len(ROWS)
    assert feed.body_bytes == len(BODY)
    assert feed.digest == xxhash.xxh3_128(BODY).hexdigest()
    assert feed.rejected == feed.unidentified == 0


@pytest.mark.parametrize("encodings", [(), ("gzip",), ("zstd",)])
async def test_long_bodies(encodings: tuple[str, ...]) -> None:
    """A body of many pieces is cut into the same records in every layout."""
    rows = [{**row, "id": number, "tags": [{"a": 1}, {"b": 2}]} for number, row in enumerate(ROWS * 12)]
    compact = json.dumps(rows, separators=(",", ":")).encode()
    bodies: list[tuple[bytes, dict[str, Any]]] = [
        (compact, {}),
        (json.dumps(rows, indent=2).encode(), {}),
        (b'{"data":{"rows":%b},"total":%d}' % (compact, len(rows)), {"records": ("data", "rows")}),
        (b"\n".join(json.dumps(row).encode() for row in rows), {"format": "ndjson"}),
    ]
    async with FeedServer() as server:
        for body, details in bodies:
            assert len(body) > 2_500_000
            server.respond(body, encodings=encodings)
            feed, records = await fetch(source(server.url, **details))
            assert values(records) == rows
            assert feed.body_bytes == len(body)


async def test_the_loop_stays_free() -> None:
    """Other tasks get their turns while a long body is cut."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    hard = b"[" + b'{"a":"\\ud800"},' * 50_000 + b"{}]"
    async with FeedServer(Answer(body=hard)) as server:
        other = asyncio.create_task(take_turns())
        feed, records = await fetch(source(server.url))
        other.cancel()
    assert list(records.values()) == [b"{}"]
    assert (feed.rejected, feed.unidentified, feed.rejected_keys) == (50_000, 50_000, [])
    assert turns > 20


async def test_leaving_early() -> None:
    """A consumer may leave in the middle of a body that will never end, and its own errors come out as they are."""
    async with FeedServer(Answer(body=BODY * 20, fault=Stall(at=len(BODY) * 10))) as server:
        async with open_feed(source(server.url)) as feed:
            async for batch in feed.batches():
                assert batch.position == 0
                break
        with pytest.raises(TimeoutError, match="mine"):
            async with open_feed(source(server.url)) as feed:
                raise TimeoutError("mine")


async def test_not_http() -> None:
    """A peer that does not speak HTTP is an error of the source."""

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((SourceIncomplete, SourceUnreachable)):
            await fetch(source(f"http://127.0.0.1:{port}/"))


@pytest.mark.parametrize("url", ["http://[bad/", "http://a b/", "http://", "", "http://u%3Au:x@127.0.0.1/"])
async def test_not_a_url(url: str) -> None:
    """A URL that cannot be one is an error that does not repeat its secrets."""
    with pytest.raises(SourceError):
        await fetch(source(url))


async def test_too_many_layers_of_compression() -> None:
    """Compression many times over is refused."""
    async with FeedServer(Answer(body=b"[]", encodings=("gzip",) * 5)) as server:
        with pytest.raises(SourceInvalid, match="5 times"):
            await fetch(source(server.url))


async def test_validators_that_could_not_be_sent_back() -> None:
    """A validator with odd characters is not kept."""
    async with FeedServer(Answer(body=b"[]", etag='"\xe9"', last_modified="yesterday")) as server:
        feed, _ = await fetch(source(server.url))
    assert feed.validators == Validators(last_modified="yesterday")


async def test_several_compressed_members() -> None:
    """Compressed streams that follow one another are one body."""
    for encoding in ("gzip", "zstd"):
        body = compress(BODY[:1000], encoding) + compress(BODY[1000:], encoding)
        async with FeedServer(Answer(body=body, headers={"Content-Encoding": encoding})) as server:
            _, records = await fetch(source(server.url))
        assert values(records) == ROWS


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "deflate-raw", "br", "zstd"])
@pytest.mark.parametrize("missing", [1, 4, 8, 500])
async def test_truncated_compression(framing: Any, encoding: str, missing: int) -> None:
    """Compressed data that lacks its end is refused, even where all of the JSON came out of it."""
    body = compress(BODY, encoding)[:-missing]
    headers = {"Content-Encoding": encoding.removesuffix("-raw")}
    async with FeedServer(Answer(body=body, framing=framing, headers=headers)) as server:
        with pytest.raises(SourceIncomplete):
            await fetch(source(server.url))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_damaged_compression(encoding: str) -> None:
    """Compressed data that cannot be read is refused."""
    body = b"\x78\x9c" + BODY[:500]
    async with FeedServer(Answer(body=body, headers={"Content-Encoding": encoding})) as server:
        with pytest.raises(SourceInvalid, match="compression"):
            await fetch(source(server.url))


async def test_unknown_compression() -> None:
    """A Content-Encoding that was not asked for is refused by name."""
    async with FeedServer(Answer(body=BODY, headers={"Content-Encoding": "compress"})) as server:
        with pytest.raises(SourceInvalid, match="compress"):
            await fetch(source(server.url))


@pytest.mark.parametrize(
    ("framing", "fault", "expected"),
    [
        ("length", Truncate(at=50_000), SourceIncomplete),
        ("length", Truncate(at=len(LINES) - 1), SourceIncomplete),
        ("chunked", Truncate(at=50_000), SourceIncomplete),
        ("chunked", Truncate(at=len(BODY)), SourceIncomplete),
        ("close", Truncate(at=50_000), SourceIncomplete),
        ("chunked", BadChunk(at=0), SourceIncomplete),
        ("chunked", BadChunk(at=50_000), SourceIncomplete),
        ("chunked", BadChunk(at=len(BODY)), SourceIncomplete),
        ("length", Reset(at=50_000), (SourceUnreachable, SourceIncomplete)),
        ("chunked", Reset(at=50_000), (SourceUnreachable, SourceIncomplete)),
        ("close", Reset(at=50_000), (SourceUnreachable, SourceIncomplete)),
        ("length", HangUp(), SourceUnreachable),
    ],
)
@pytest.mark.parametrize("body", [BODY, LINES], ids=["array", "lines"])
async def test_broken_transfer(framing: Any, fault: Fault, expected: type[SourceError], body: bytes) -> None:
    """A transfer that breaks is never taken for a whole body."""
    async with FeedServer(Answer(body=body, framing=framing, fault=fault)) as server:
        with pytest.raises(expected):
            await fetch(source(server.url))


async def test_content_length_beyond_the_body() -> None:
    """A body shorter than its Content-Length is refused although the JSON is complete."""
    headers = {"Content-Length": str(len(BODY) + 10)}
    async with FeedServer(Answer(body=BODY, headers=headers)) as server:
        with pytest.raises(SourceIncomplete):
            await fetch(source(server.url))


async def test_lines_need_a_marked_end() -> None:
    """Lines whose end nothing marks are refused, and any of the marks will do."""
    async with FeedServer(Answer(body=LINES, framing="close")) as server:
        with pytest.raises(SourceIncomplete, match="Content-Length"):
            await fetch(source(server.url))
        for details in ({"framing": "length"}, {"framing": "chunked"}, {"framing": "close", "encodings": ("gzip",)}):
            server.respond(LINES, content_type="application/x-ndjson", **details)
            _, records = await fetch(source(server.url))
            assert values(records) == ROWS


async def test_drip() -> None:
    """A body that drips in is read whole."""
    rows = ROWS[:3]
    async with FeedServer(Answer(body=json.dumps(rows).encode(), fault=Drip(size=7))) as server:
        _, records = await fetch(source(server.url))
    assert values(records) == rows


@pytest.mark.parametrize("fault", [Silence(), Stall(at=0), Stall(at=50_000)])
async def test_read_timeout(fault: Fault) -> None:
    """A source that goes silent is given up after the read timeout, by name."""
    async with FeedServer(Answer(body=BODY, fault=fault)) as server:
        with pytest.raises(SourceTimeout, match="SOURCE_READ_TIMEOUT_SECONDS"):
            await fetch(source(server.url, read_timeout_seconds=0.1))


@pytest.mark.parametrize("fault", [Silence(), Stall(at=50_000), Drip(size=1000, gap_seconds=0.05)])
async def test_total_timeout(fault: Fault) -> None:
    """A fetch that goes on for too long is given up after the total timeout, by name."""
    async with FeedServer(Answer(body=BODY, fault=fault)) as server:
        with pytest.raises(SourceTimeout, match="SOURCE_TOTAL_TIMEOUT_SECONDS"):
            await fetch(source(server.url, total_timeout_seconds=0.2))


async def test_total_timeout_ends_with_the_body() -> None:
    """Once the last batch was taken, the total timeout does not run any more."""
    async with (
        FeedServer(Answer(body=BODY)) as server,
        open_feed(source(server.url, total_timeout_seconds=0.3)) as feed,
    ):
        async for _ in feed.batches():
            pass
        await asyncio.sleep(0.5)


async def test_connect_timeout() -> None:
    """A connection that is not accepted is given up after the connect timeout, by name."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as waiting:
        port = full.getsockname()[1]
        waiting.connect(("127.0.0.1", port))  # takes the only place in the queue
        with pytest.raises(SourceTimeout, match="SOURCE_CONNECT_TIMEOUT_SECONDS"):
            await fetch(source(f"http://127.0.0.1:{port}/", connect_timeout_seconds=0.1))


async def test_nobody_listens() -> None:
    """A source that is down is unreachable, and its credentials are not told."""
    async with FeedServer() as server:
        url = server.url.replace("//", "//user:hunter2@") + "?key=hunter2"
    with pytest.raises(SourceUnreachable) as caught:
        await fetch(source(url))
    assert "hunter2" not in str(caught.value)


async def test_body_cap() -> None:
    """The cap is on the decompressed body, so a bomb ends there."""
    async with FeedServer(Answer(body=bomb(64 << 20), headers={"Content-Encoding": "gzip"})) as server:
        with pytest.raises(SourceTooLarge, match="MAX_BODY_BYTES"):
            await fetch(source(server.url, max_body_bytes=1 << 20))
        with pytest.raises(SourceTooLarge, match="MAX_RECORD_BYTES"):
            await fetch(source(server.url, max_record_bytes=1 << 20))


async def test_not_modified() -> None:
    """The validators of one answer make the next one a 304 without records."""
    async with FeedServer(Answer(body=BODY, etag='"v1"', last_modified="Sat, 01 Jan 2026 00:00:00 GMT")) as server:
        feed, _ = await fetch(source(server.url))
        assert feed.validators == Validators(etag='"v1"', last_modified="Sat, 01 Jan 2026 00:00:00 GMT")
        again, records = await fetch(source(server.url), validators=feed.validators)
        assert again.not_modified
        assert not records
        assert again.validators == feed.validators
        by_date, _ = await fetch(source(server.url), validators=Validators(last_modified=feed.validators.last_modified))
        assert by_date.not_modified
        changed, records = await fetch(source(server.url), validators=Validators(etag='"v0"'))
        assert not changed.not_modified
        assert values(records) == ROWS


async def test_not_modified_unasked() -> None:
    """A 304 that no condition was sent for is refused."""
    async with FeedServer(Answer(status=304)) as server:
        with pytest.raises(SourceInvalid, match="304"):
            await fetch(source(server.url))


@pytest.mark.parametrize("status", [201, 204, 206, 300, 305, 400, 401, 403, 404, 418, 429, 500, 503, 599])
async def test_other_statuses(status: int) -> None:
    """Only 200 carries a snapshot."""
    async with FeedServer(Answer(status=status, body=b"" if status == 204 else BODY)) as server:
        with pytest.raises(SourceRefused, match=str(status)) as caught:
            await fetch(source(server.url))
    assert caught.value.status == status


async def test_progress() -> None:
    """Progress is told in bytes and records, and ends at all of them."""
    told: list[Progress] = []
    async with (
        FeedServer(Answer(body=BODY)) as server,
        open_feed(source(server.url), on_progress=told.append) as feed,
    ):
        async for _ in feed.batches():
            pass
    assert told[-1] == Progress(body_bytes=len(BODY), records=len(ROWS), total_bytes=len(BODY))
    assert len(told) < 20


async def test_what_is_asked_for() -> None:
    """The request names what it accepts and who it is."""
    async with FeedServer(Answer(body=b"[]")) as server:
        feed, records = await fetch(source(server.url))
        assert not records
        assert feed.records == 0
        headers = server.requests[0].headers
    assert headers["accept-encoding"] == "gzip, deflate, br, zstd"
    assert headers["accept"].startswith("application/json")
    assert headers["user-agent"].startswith("Lockstep/")
    assert "cookie" not in headers


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/html; charset=utf-8", "x", "application/octet-stream", None]
)
async def test_content_type_does_not_matter(content_type: str | None) -> None:
    """Valid JSON is accepted whatever it is served as."""
    async with FeedServer(Answer(body=BODY, content_type=content_type)) as server:
        _, records = await fetch(source(server.url))
    assert values(records) == ROWS
