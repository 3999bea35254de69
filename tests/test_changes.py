"""The change feed: pages and event streams, in the order of commits, nothing skipped and nothing twice."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import sqlalchemy as sa
from quart import Quart

from access import ServiceTokenRow
from app import create_app
from config import load_settings
from definitions import Sources
from store import Database
from store.access import delete_token, insert_token
from tests.access import SECRET_KEY
from tests.events import Event, all_pages, entries_of, follow, journal
from tests.faults.databases import own_server
from tests.faults.processes import service_process
from tests.feed_server import FeedServer
from tests.service import Feed, get, serve_feed, served
from web.service import Service
from web.serving import CONNECTIONS_END_SECONDS
from web.streams import Streams

TABLES = ("a", "b", "c", "d")
BEAT_SECONDS = 0.05

LARGE_ENTRIES = (
    """INSERT INTO lockstep.runs (source, mirror, owner, status, lease_until, first_seq, last_seq)
       VALUES ('s', 'public.s', '', 'succeeded', now(), 1, 100)""",
    """INSERT INTO lockstep.changes (run, mirror, op, key, changes)
       SELECT 1, 'public.s', 'updated', '{}', jsonb_build_object('a', jsonb_build_array(repeat('x', 200000), 1))
         FROM generate_series(1, 100)""",
)
"""More than the buffers between two processes hold."""


@pytest.fixture
async def fed() -> AsyncIterator[Feed]:
    async with serve_feed() as served_feed:
        yield served_feed


@pytest.fixture
def app(fed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quart:
    """Make the service with four mirrors of one feed."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(source_url=fed.url, database_url=database_url, settle_seconds=0, source_attempts=1)
    app = create_app(settings)
    usual = replace(settings.source(), max_delete_share=1, allow_empty=True)
    service: Service = app.extensions["lockstep"]
    service.sources = Sources([replace(usual, name=f"of_{table}", table=table) for table in TABLES])
    return app


@pytest.fixture
async def client(app: Quart) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(app) as session:
        yield session


def places(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.seq, event.content["table"]) for event in events]


async def read_pages(client: aiohttp.ClientSession, query: str, goal: asyncio.Future[int]) -> list[Event]:
    """Read pages of all sizes until the goal is reached."""
    chance, seen, after = random.Random(query), [], 0
    while not (goal.done() and after >= goal.result()):
        _, page = await get(client, f"/changes?after={after}&limit={chance.randint(1, 40)}{query}")
        seen += entries_of(page)
        after = page["next"]
    return seen


async def follow_and_reconnect(client: aiohttp.ClientSession, query: str, goal: asyncio.Future[int]) -> list[Event]:
    """Follow until the goal is reached, over connections that break at any moment."""
    chance, seen, last_id = random.Random(query), list[Event](), None
    while not (goal.done() and int(last_id or 0) >= goal.result()):
        async with follow(client, f"?after=0{query}", last_id=last_id) as stream:
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.01, 0.2)), aclosing(stream.events()) as events:
                    async for event in events:
                        seen.append(event)
            last_id = stream.last_id
    return seen


async def test_followers_get_the_whole_journal(
    app: Quart, client: aiohttp.ClientSession, fed: Feed, database: Database
) -> None:
    """While runs of several mirrors overlap, every follower gets each entry once, in order, however it reconnects."""
    service: Service = app.extensions["lockstep"]
    service.streams.beat_seconds = BEAT_SECONDS
    goal: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    queries = ("", "&table=b", "&source=of_c")
    following = [
        asyncio.create_task(follower(client, query, goal))
        for query in queries
        for follower in (read_pages, follow_and_reconnect)
    ]
    for version in range(4):
        fed.records = [{"id": number, "version": version} for number in range(version, 30 + version)]
        reports = await asyncio.gather(*(service.run(source) for source in service.sources))
    fed.records = []
    undo, *_ = await asyncio.gather(
        service.undo(reports[0].run), *(service.run(service.sources.named(f"of_{table}")) for table in TABLES[1:])
    )
    assert undo.counts.restored == 1
    expected = await journal(database)
    goal.set_result(expected[-1][0])
    seen = [places(events) for events in await asyncio.gather(*following)]
    wanted = {"": TABLES, "&table=b": ("b",), "&source=of_c": ("c",)}
    for query, found in zip((query for query in queries for _ in range(2)), seen, strict=True):
        assert found == [place for place in expected if place[1] in {f"public.{table}" for table in wanted[query]}]
    assert len(expected) == 4 * (1 + 3 * 31) + 31 + 3 * 30


class TestPages:
    async def test_a_source_or_table_is_read_alone(self, app: Quart, client: aiohttp.ClientSession, fed: Feed) -> None:
        """`source` and `table` choose; `next` goes beyond what belongs to others; a first load has its place."""
        service: Service = app.extensions["lockstep"]
        for source in service.sources:
            await service.run(source)
        fed.records[0]["name"] = "new"
        for source in service.sources:
            await service.run(source)
        everything = await all_pages(client, limit=1)
        assert [(event.name, event.content["table"]) for event in everything] == [
            (name, f"public.{table}") for name in ("first_load", "change") for table in TABLES
        ]
        assert everything[0].content | {"at": ""} == {
            "seq": 1, "run": 1, "source": "of_a", "table": "public.a", "rows": 40, "at": ""
        }  # fmt: skip
        for query in ("&source=of_b", "&table=b", "&table=public.b", "&source=of_b&table=b"):
            assert await all_pages(client, query) == [everything[1], everything[5]]
        assert await all_pages(client, "&source=of_a&table=b") == []
        _, page = await get(client, "/changes?table=b")
        assert page["next"] == everything[-1].seq
        assert await get(client, "/changes?after=latest") == (200, {"changes": [], "next": everything[-1].seq})

    @pytest.mark.parametrize(
        ("query", "status"),
        [("source=of_x", 404), ("table=lockstep.runs", 404), ("table=x", 404), ("after=-1", 400), ("after=newest", 400),
         ("limit=1001", 400), ("op=created", 400), ("source=of_a&source=of_b", 400)],
    )  # fmt: skip
    async def test_a_wrong_question_is_refused(self, client: aiohttp.ClientSession, query: str, status: int) -> None:
        """What is not there is 404, what makes no sense 400; the same goes for streams, which have no limit."""
        assert (await get(client, f"/changes?{query}"))[0] == status
        assert (await get(client, f"/changes?{query}", headers={"Accept": "text/event-stream"}))[0] == status


class TestStreams:
    async def test_a_stream_begins_where_it_is_asked_to(
        self, app: Quart, client: aiohttp.ClientSession, fed: Feed
    ) -> None:
        """It begins with what is new, or after a number; what the client has seen last counts before that."""
        service: Service = app.extensions["lockstep"]
        for number in range(4):
            fed.records = [{"id": 1, "n": number}]
            await service.run(service.sources.default)
        first, *_, last = everything = await all_pages(client)
        for query, last_id, expected in (
            ("?after=0", None, everything),
            (f"?after={first.seq}", None, everything[1:]),
            ("?after=0", str(first.seq), everything[1:]),
            ("?after=0", "", everything),
        ):
            async with follow(client, query, last_id=last_id) as stream:
                assert await stream.take(len(expected)) == expected
        for query in ("", "?after=latest"):
            async with follow(client, query) as stream:
                assert stream.last_id == str(last.seq)
                fed.records = [{"id": 1, "n": query}]
                await service.run(service.sources.default)
                (last,) = await stream.take(1)
                assert last.content["changes"]["n"][1] == query

    async def test_what_a_stream_says_of_itself(self, client: aiohttp.ClientSession) -> None:
        """No cache keeps it, no proxy holds it back; asking for its head ends."""
        headers = {"Accept": "text/event-stream"}
        async with client.head("/changes", headers=headers) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert response.headers["Vary"] == "Accept"
        headers["Last-Event-ID"] = "yesterday"
        assert (await get(client, "/changes", headers=headers))[0] == 400

    async def test_no_value_breaks_out_of_its_event(self, app: Quart, client: aiohttp.ClientSession, fed: Feed) -> None:
        """Line breaks, markup and all that looks like a field of the stream arrive as the values that they are."""
        service: Service = app.extensions["lockstep"]
        hostile = [
            "\r\n\r\ndata: x",
            "\n\nid: 9\n\n",
            "\rretry: 1\r",
            "\u2028\u2029\x85\x0b\x0c",
            "</script>\ufeff\t\\",
        ]
        for round_ in (0, 1):
            fed.records = [{"id": value, "n": value * round_ or None} for value in hostile]
            await service.run(service.sources.default)
        async with follow(client, "?after=1") as stream:
            events = await stream.take(len(hostile))
        assert {event.content["key"]["id"]: event.content["changes"]["n"] for event in events} == {
            value: [None, value] for value in hostile
        }
        assert stream.last_id == str(events[-1].content["seq"])
        assert not any("\r" in line for line in stream.lines)

    async def test_a_quiet_stream_shows_life_and_moves_on(self, app: Quart, client: aiohttp.ClientSession) -> None:
        """Where nothing happens comments are sent; where others change, the id that a client resumes from moves."""
        service: Service = app.extensions["lockstep"]
        service.streams.beat_seconds = BEAT_SECONDS
        async with follow(client, "?source=of_b") as stream, aclosing(stream.blocks()) as blocks:
            async for _ in blocks:
                if stream.comments == 2:
                    break
            await service.run(service.sources.named("of_a"))
            newest = (await get(client, "/changes?after=latest"))[1]["next"]
            async for block in blocks:
                if block:
                    break
            assert block == {"id": str(newest)}

    async def test_there_are_so_many_streams_and_no_more(self, app: Quart, client: aiohttp.ClientSession) -> None:
        """One too many is answered 503 with Retry-After; a place is free again when its client has gone."""
        app.extensions["lockstep"].streams = Streams(most=1, beat_seconds=BEAT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        async with follow(client):
            async with client.get("/changes", headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == (503, "too_many_streams")
                assert int(response.headers["Retry-After"]) > 0
            assert (await get(client, "/changes"))[0] == 200
        async with asyncio.timeout(10):
            while (await client.head("/changes", headers=headers)).status == 503:
                pass

    @pytest.mark.parametrize("by", ["revocation", "expiry"])
    async def test_a_stream_ends_with_its_token(
        self,
        fed: Feed,
        database_url: str,
        database: Database,
        tmp_path: Path,
        by: str,
    ) -> None:
        """Whose token is revoked, or has expired, sees nothing of what comes after the next sign of life."""
        settings = load_settings(
            source_url=fed.url, database_url=database_url, secret_key=SECRET_KEY, require_token=True, data_dir=tmp_path
        )
        app = create_app(settings)
        app.extensions["lockstep"].streams = Streams(beat_seconds=BEAT_SECONDS)
        token, text = await insert_token(database, name="reader", scopes=frozenset({"read"}))
        async with served(app) as client, follow(client, token=text) as stream, aclosing(stream.blocks()) as blocks:
            await anext(blocks)
            if by == "revocation":
                await delete_token(database, token.id)
            else:
                async with database.transaction() as session:
                    await session.execute(sa.update(ServiceTokenRow).values(expires_at=sa.func.now()))
            async with asyncio.timeout(10):
                assert [block async for block in blocks if "data" in block] == []


class TestDatabase:
    async def test_a_stream_outlives_its_database(
        self, feed: FeedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the server restarts a stream is silent; then it goes on, with nothing skipped and nothing twice."""
        monkeypatch.chdir(tmp_path)
        async with own_server(feed) as own:
            settings = load_settings(source_url=feed.url, database_url=own.url, settle_seconds=0)
            app = create_app(settings)
            service: Service = app.extensions["lockstep"]
            service.streams = Streams(beat_seconds=BEAT_SECONDS, poll_seconds=0.1)
            async with served(app) as client, follow(client, "?after=0") as stream:
                events: list[Event] = []
                for version in range(3):
                    feed.respond([{"id": number, "version": version} for number in range(3)])
                    await service.run(settings.source())
                    events += await stream.take(3 if version else 1)
                    if version == 1:
                        own.signal(signal.SIGINT)
                        await own.come_back()
                assert events == await all_pages(client)


async def test_the_service_ends_while_streams_are_open(fed: Feed, database_url: str, tmp_path: Path) -> None:
    """SIGTERM ends streams as they should end, and the process with 0, at once."""
    home = tmp_path / "home"
    async with (
        service_process(source_url=fed.url, database_url=database_url, home=home) as (running, client),
        follow(client) as stream,
        asyncio.timeout(CONNECTIONS_END_SECONDS / 2),
    ):
        running.process.send_signal(signal.SIGTERM)
        assert [block async for block in stream.blocks()] == []
        assert await running.process.wait() == 0


async def test_a_client_that_takes_nothing_does_not_delay_the_end(
    fed: Feed, database_url: str, database: Database, tmp_path: Path
) -> None:
    """A stream that is stuck in a client that does not read any more is cut off; the process ends well, and with 0."""
    async with database.transaction() as session:
        for statement in LARGE_ENTRIES:
            await session.execute(sa.text(statement))
    impatient = ["-c", "import app, web.serving; web.serving.CONNECTIONS_END_SECONDS = 3.5; app.main()"]
    async with service_process(
        source_url=fed.url, database_url=database_url, home=tmp_path / "home", program=impatient
    ) as (running, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]), limit=1)
        writer.write(b"GET /changes?after=0 HTTP/1.1\r\nHost: x.localhost\r\nAccept: text/event-stream\r\n\r\n")
        assert await reader.readexactly(12) == b"HTTP/1.1 200"
        running.process.send_signal(signal.SIGTERM)
        assert await running.process.wait() == 0
        writer.close()
    assert [line for line in running.lines if "uncaught_error" in line] == []
