"""The service answers what it promises, whatever becomes of its source, its database or its callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy.engine import make_url

from app import create_app
from config import Settings, load_settings
from tests.service import Feed, free_port, get, serve_feed, served

MEMBERS = [
    "run", "source", "status", "message", "created", "updated", "restored", "deleted", "unchanged", "held", "rejected",
    "duration_ms",
]  # fmt: skip


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    async with serve_feed() as served:
        yield served


MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(feed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    monkeypatch.chdir(tmp_path)

    def make(**given: Any) -> Settings:
        usual = {"source_url": feed.url, "database_url": database_url, "settle_seconds": 0, "source_attempts": 1}
        return load_settings(**(usual | given))

    return make


@pytest.fixture
async def client(make_settings: MakeSettings) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(create_app(make_settings())) as session:
        yield session


def assert_problem(body: Any, *, http_status: int, code: str) -> None:
    assert body["http_status"] == http_status
    assert body["code"] == code
    assert body["type"] == f"urn:lockstep:problem:{code}"
    assert all(isinstance(body[member], str) and body[member] for member in ("title", "detail", "remedy"))


async def test_the_front_door_says_hello(client: aiohttp.ClientSession) -> None:
    """`/` answers 200 with the text Hello World."""
    async with client.get("/") as response:
        assert (response.status, await response.text()) == (200, "Hello World")


async def test_a_sync_answers_with_its_counts(client: aiohttp.ClientSession, feed: Feed) -> None:
    """`/sync_data` answers, by GET and POST, with what it did; a second call finds nothing to do."""
    status, first = await get(client, "/sync_data")
    assert status == 200
    assert list(first)[: len(MEMBERS)] == MEMBERS
    assert (first["status"], first["created"]) == ("succeeded", 40)
    assert first["message"] == "Data synchronization completed"
    async with client.post("/sync_data") as response:
        second = await response.json()
    assert (second["status"], second["unchanged"], second["run"] > first["run"]) == ("unchanged", 40, True)
    feed.records[0]["name"] = "new"
    _, third = await get(client, "/sync_data")
    assert (third["status"], third["updated"], third["unchanged"]) == ("succeeded", 1, 39)


async def test_a_plan_is_applied_exactly_or_not_at_all(client: aiohttp.ClientSession, feed: Feed) -> None:
    """A dry run writes nothing and shows the differences; its hash applies them, unless the source has moved on."""
    await get(client, "/sync_data")
    feed.records[3]["name"] = "planned"
    status, plan = await get(client, "/sync_data?dry_run=1")
    assert (status, plan["updated"]) == (200, 1)
    assert plan["differences"] == [{"key": {"id": 3}, "op": "updated", "changes": {"name": ["n3", "planned"]}}]
    feed.records[4]["name"] = "later"
    status, stale = await get(client, f"/sync_data?plan={plan['plan']}")
    assert (status, stale["status"]) == (409, "stale")
    assert_problem(stale, http_status=409, code="stale")
    feed.records[4]["name"] = "n4"
    status, applied = await get(client, plan["apply"])
    assert (status, applied["updated"]) == (200, 1)


async def test_held_deletions_are_approved_by_their_run(client: aiohttp.ClientSession, feed: Feed) -> None:
    """Deletions over the guard answer 422 with how many and how to approve; the approval carries them out."""
    await get(client, "/sync_data")
    feed.records = feed.records[:20]
    status, held = await get(client, "/sync_data")
    assert (status, held["status"], held["held"], held["deleted"]) == (422, "held", 20, 0)
    assert_problem(held, http_status=422, code="held")
    assert held["approve"] == f"/sync_data?approve={held['run']}"
    status, approved = await get(client, held["approve"])
    assert (status, approved["deleted"]) == (200, 20)
    status, again = await get(client, held["approve"])
    assert (status, again["status"]) == (409, "failed")
    assert_problem(again, http_status=409, code="approval_refused")


async def test_a_second_call_learns_of_the_run_under_way(client: aiohttp.ClientSession, feed: Feed) -> None:
    """While a run is under way another call answers 409 at once, with that run, since when, and Retry-After."""
    feed.may_answer.clear()
    first = asyncio.create_task(get(client, "/sync_data"))
    await feed.asked.wait()
    async with client.get("/sync_data") as response:
        busy = await response.json(content_type=None)
        assert (response.status, busy["status"]) == (409, "busy")
        assert int(response.headers["Retry-After"]) > 0
    assert_problem(busy, http_status=409, code="busy")
    feed.may_answer.set()
    status, done = await first
    assert (status, done["run"]) == (200, busy["run"])
    assert busy["since"]


async def test_a_caller_that_hangs_up_does_not_stop_the_run(client: aiohttp.ClientSession, feed: Feed) -> None:
    """The run of a caller that went away is finished."""
    feed.may_answer.clear()
    impatient = asyncio.create_task(get(client, "/sync_data"))
    await feed.asked.wait()
    impatient.cancel()
    await asyncio.wait({impatient})
    _, running = await get(client, "/runs")
    assert running["runs"][0]["status"] == "running"
    feed.may_answer.set()
    async with asyncio.timeout(20):
        while (await get(client, "/runs"))[1]["runs"][0]["status"] == "running":
            pass
    _, ended = await get(client, "/runs")
    assert (ended["runs"][0]["status"], ended["runs"][0]["created"]) == ("succeeded", 40)


@pytest.mark.parametrize(
    ("status", "records", "code"), [(500, [], "source_refused"), (200, {"error": "no"}, "source_invalid")]
)
async def test_a_source_at_fault_answers_502(
    client: aiohttp.ClientSession, feed: Feed, status: int, records: Any, code: str
) -> None:
    """A source that fails is answered 502 with cause and remedy, and its run is recorded as failed."""
    feed.status, feed.records = status, records
    answered, body = await get(client, "/sync_data")
    assert (answered, body["status"]) == (502, "failed")
    assert_problem(body, http_status=502, code=code)
    _, run = await get(client, f"/runs/{body['run']}")
    assert (run["status"], run["error"]) == ("failed", code)


async def test_a_source_too_slow_answers_504(make_settings: MakeSettings, feed: Feed) -> None:
    """A source that does not answer in time is answered 504."""
    feed.may_answer.clear()
    async with served(create_app(make_settings(source_read_timeout_seconds=0.2))) as client:
        status, body = await get(client, "/sync_data")
    assert (status, body["status"]) == (504, "failed")
    assert_problem(body, http_status=504, code="source_timeout")


async def test_settling_delays_the_answer(make_settings: MakeSettings) -> None:
    """After the work the call waits SETTLE_SECONDS before it answers."""
    loop = asyncio.get_running_loop()
    async with served(create_app(make_settings(settle_seconds=0.5))) as client:
        began = loop.time()
        await get(client, "/sync_data")
        assert loop.time() - began >= 0.5


@pytest.mark.parametrize(
    "query",
    [
        "dryrun=1",
        "dry_run=maybe",
        "plan=a%0d%0ab",
        "approve=0",
        "approve=-1",
        "approve=x",
        "approve=9223372036854775808",
        "approve=1&approve=2",
        "dry_run=1&approve=1",
    ],
)
async def test_a_malformed_request_is_refused(client: aiohttp.ClientSession, feed: Feed, query: str) -> None:
    """A parameter that is unknown or malformed is answered 400 and starts nothing."""
    status, body = await get(client, f"/sync_data?{query}")
    assert (status, body["status"]) == (400, 400)
    assert_problem(body, http_status=400, code="bad_request")
    assert not feed.asked.is_set()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_of_another_site_starts_nothing(client: aiohttp.ClientSession, feed: Feed, site: str) -> None:
    """A request that a browser sends for a page of another site is answered 403."""
    status, body = await get(client, "/sync_data", headers={"Sec-Fetch-Site": site})
    assert_problem(body, http_status=403, code="cross_site_refused")
    assert status == 403
    assert not feed.asked.is_set()


async def test_asking_for_headers_alone_starts_nothing(client: aiohttp.ClientSession, feed: Feed) -> None:
    """HEAD promises to change nothing, so it is answered 405."""
    async with client.head("/sync_data") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")
    assert not feed.asked.is_set()


async def test_errors_have_one_shape(make_settings: MakeSettings) -> None:
    """Whatever goes wrong is answered as a problem document, and a defect shows nothing of the inside."""
    app = create_app(make_settings())

    @app.get("/defect")
    async def defect() -> str:
        raise RuntimeError("inner workings")

    async with served(app) as client:
        for method, path, http_status, code, body in [
            ("GET", "/nowhere", 404, "not_found", None),
            ("GET", "/runs/12345", 404, "not_found", None),
            ("GET", "/..%2f..%2fetc/passwd", 404, "not_found", None),
            ("DELETE", "/sync_data", 405, "method_not_allowed", None),
            ("POST", "/sync_data", 413, "request_entity_too_large", b"x" * 100_000),
            ("GET", "/defect", 500, "error", None),
        ]:
            async with client.request(method, path, data=body) as response:
                problem = await response.json(content_type=None)
                assert (response.status, response.content_type) == (http_status, "application/problem+json")
                assert_problem(problem, http_status=http_status, code=code)
                assert "inner workings" not in str(problem)


async def test_runs_and_changes_are_paged(client: aiohttp.ClientSession, feed: Feed) -> None:
    """`/runs` goes back from the newest, `/changes` forward from any point, each by its `next`."""
    await get(client, "/sync_data")
    for number in range(3):
        feed.records[number]["name"] = "changed"
        await get(client, "/sync_data")
    _, newest = await get(client, "/runs?limit=3")
    assert [run["updated"] for run in newest["runs"]] == [1, 1, 1]
    _, oldest = await get(client, f"/runs?limit=3&before={newest['next']}")
    assert ([run["created"] for run in oldest["runs"]], oldest["next"]) == ([40], None)
    _, changes = await get(client, "/changes?limit=2")
    _, rest = await get(client, f"/changes?after={changes['next']}")
    updated = [change for change in changes["changes"] + rest["changes"] if change["op"] == "updated"]
    assert [change["key"] for change in updated] == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert updated[0]["changes"] == {"name": ["n0", "changed"]}
    _, end = await get(client, f"/changes?after={rest['next']}")
    assert end == {"changes": [], "next": rest["next"]}


@asynccontextmanager
async def gateway(database_url: str, port: int) -> AsyncIterator[None]:
    """Let connections to `port` reach the database for as long as the block lasts."""
    url = make_url(database_url)
    target = url.query.get("host") or url.host

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if str(target).startswith("/"):
            inner = await asyncio.open_unix_connection(f"{target}/.s.PGSQL.{url.query.get('port', url.port or 5432)}")
        else:
            inner = await asyncio.open_connection(str(target), url.port or 5432)
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def test_a_database_that_is_away_is_waited_for(make_settings: MakeSettings, database_url: str) -> None:
    """With its database down the service serves, says 503 with the reason where it needs it, and recovers alone."""
    port = free_port()
    away = make_url(database_url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
    app = create_app(make_settings(database_url=away))
    async with served(app, ready=False) as client:
        assert (await get(client, "/health/live"))[0] == 200
        for path, word in [("/health/ready", 503), ("/sync_data", "failed"), ("/runs", 503)]:
            async with client.get(path) as response:
                body = await response.json(content_type=None)
                assert (response.status, body["status"]) == (503, word)
                assert_problem(body, http_status=503, code="database_unavailable")
                assert int(response.headers["Retry-After"]) > 0
        async with gateway(database_url, port):
            await app.extensions["lockstep"].wait_until_ready()
            assert await get(client, "/health/ready") == (200, {"status": "ready"})
            assert (await get(client, "/sync_data"))[1]["created"] == 40
            await app.extensions["lockstep"].close()
