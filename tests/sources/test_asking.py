"""A source is asked as its operator says, and what he gave goes to nobody else."""

# ruff: noqa: S105, S106 (its passwords are canaries)

from __future__ import annotations

import base64
import json
import traceback
from typing import Any

import pytest

from definitions import ApiKeyAuth, BasicAuth, BearerAuth
from errors import SourceError, SourceInvalid, SourceRefused
from sources import open_feed
from telemetry import hide
from tests.feed_server import Answer, FeedServer, Request, redirect
from tests.sources.support import fetch, source

SECRET = "tw33t/secret+value"
SPELLINGS = (SECRET, "tw33t%2Fsecret%2Bvalue", base64.b64encode(f"ada:{SECRET}".encode()).decode())


async def asked(given: Any, **details: Any) -> Request:
    """Fetch once; return the request that arrived."""
    async with FeedServer(Answer(body=b"[]")) as server:
        await fetch(source(server.url + given, **details))
    return server.requests[0]


async def test_post() -> None:
    """A POST sends its body as JSON, unless a header says that it is something else."""
    request = await asked("", method="POST", body='{"since":"ü"}')
    assert (request.method, request.body.decode()) == ("POST", '{"since":"ü"}')
    assert request.headers["content-type"] == "application/json"
    request = await asked("", method="POST", body="{}", headers={"content-type": "application/graphql+json"})
    assert request.headers["content-type"] == "application/graphql+json"
    request = await asked("", method="POST")
    assert (request.method, request.body) == ("POST", b"")


async def test_headers() -> None:
    """Headers are added, and take the place of those that are sent anyhow."""
    request = await asked("", headers={"user-agent": "mine", "ACCEPT": "application/vnd.x+json", "X-Tenant": "a"})
    assert request.headers["user-agent"] == "mine"
    assert request.headers["accept"] == "application/vnd.x+json"
    assert request.headers["x-tenant"] == "a"
    assert request.headers["accept-encoding"] == "gzip, deflate, br, zstd"


async def test_params() -> None:
    """Parameters are added to the query, in place of those of the same names; the others stay as they were written."""
    request = await asked("?b=1&a%20b=1&c=%2B&flag&b=2", params={"b": "x&y", "a b": "é", "d": "+"})
    assert request.query == {"c": ["+"], "b": ["x&y"], "a b": ["é"], "d": ["+"]}


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (BearerAuth(token="abc"), "authorization", "Bearer abc"),
        (BasicAuth(username="usér", password="a:b"), "authorization", "Basic dXPDqXI6YTpi"),
        (ApiKeyAuth(header="X-MBX-APIKEY", value="abc"), "x-mbx-apikey", "abc"),
    ],
)
async def test_auth(auth: Any, header: str, value: str) -> None:
    """Credentials travel in the header that their kind says."""
    assert (await asked("", auth=auth)).headers[header] == value


@pytest.mark.parametrize(
    "details",
    [
        {"auth": BearerAuth(token=f"{SECRET}\n")},
        {"auth": ApiKeyAuth(header="X-Key", value=f"{SECRET}\r\nX: y")},
        {"auth": BasicAuth(username="a:b", password=SECRET)},
        {"headers": {"X-Key": f"{SECRET}\0"}},
    ],
)
async def test_what_no_header_can_hold(details: Any) -> None:
    """A value that HTTP cannot send is refused before anything is asked, without being told."""
    async with FeedServer() as server:
        with pytest.raises(SourceInvalid, match="cannot send") as caught:
            await fetch(source(server.url, **details))
    assert not server.requests
    assert SECRET not in str(caught.value)


async def test_nothing_follows_to_another_origin() -> None:
    """A redirect elsewhere gets neither credentials nor headers nor parameters, nor does a way back through it."""
    async with FeedServer() as server, FeedServer() as other:

        def answer(request: Request) -> Answer:
            return {"/feed.json": redirect("/here"), "/here": redirect(f"{other.origin}/away")}.get(
                request.path, Answer(body=b"[]")
            )

        server.answers, other.answers = answer, redirect(f"{server.origin}/back")
        details = {
            "auth": ApiKeyAuth(header="X-Key", value=SECRET),
            "headers": {"X-More": SECRET, "User-Agent": "mine"},
        }
        await fetch(source(server.url, params={"token": SECRET}, **details))
    here, away, back = server.requests[1], other.requests[0], server.requests[2]
    assert (here.headers["x-key"], here.headers["x-more"], here.headers["user-agent"]) == (SECRET, SECRET, "mine")
    for request in (away, back):
        assert SECRET not in f"{request}"
        assert request.headers["user-agent"].startswith("Lockstep/")


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [(301, "GET", b""), (302, "GET", b""), (303, "GET", b""), (307, "POST", b"{}"), (308, "POST", b"{}")],
)
async def test_redirected_post(status: int, method: str, body: bytes) -> None:
    """307 and 308 repeat a POST, the others turn it into a GET; a body never goes to another origin."""

    def answer(request: Request) -> Answer:
        return redirect("/there", status=status) if request.path == "/feed.json" else Answer(body=b"[]")

    async with FeedServer(answer) as server, FeedServer(Answer(body=b"[]")) as other:
        details: Any = {"method": "POST", "body": "{}", "headers": {"Content-Type": "application/json"}}
        await fetch(source(server.url, **details))
        assert (server.requests[1].method, server.requests[1].body) == (method, body)
        assert ("content-type" in server.requests[1].headers) is (method == "POST")
        server.answers = redirect(other.url, status=status)
        if method == "GET":
            await fetch(source(server.url, **details))
        else:
            with pytest.raises(SourceInvalid, match="must not go"):
                await fetch(source(server.url, **details))
        assert all(request.body == b"" for request in other.requests)


def echo(request: Request) -> Answer:
    return Answer(body=f"<p>{request.headers} {request.query}</p>".encode())


@pytest.mark.parametrize(
    "answer",
    [
        echo,
        Answer(status=401, body=SECRET.encode()),
        Answer(body=b'{"x":"' + b"y" * 50 + SECRET.encode() + b'"}'),
        Answer(body=f'[{{"id": 1, "v": NaN, "w": "{SECRET}"}}]'.encode()),
        Answer(headers={"Content-Encoding": SECRET}),
    ],
)
@pytest.mark.parametrize(
    "details",
    [
        {"auth": BearerAuth(token=SECRET)},
        {"auth": BasicAuth(username="ada", password=SECRET)},
        {"auth": ApiKeyAuth(header="X-Key", value=SECRET)},
        {"headers": {"X-Key": SECRET}},
        {"params": {"apikey": SECRET}},
    ],
)
async def test_no_secret_is_told(answer: Any, details: Any) -> None:
    """No error, traceback or representation holds a secret, even where the source repeats it."""
    async with FeedServer(answer) as server:
        secretive = source(server.url, **details)
        with pytest.raises(SourceError) as caught:
            await fetch(secretive)
        server.answers = Answer(body=b"[]")
        async with open_feed(secretive) as feed:
            told = f"{''.join(traceback.format_exception(caught.value))}{caught.value!r}{secretive!r}{feed!r}"
    for spelling in SPELLINGS:
        assert spelling not in told
        assert f"{spelling[:10]}…" not in told


def test_a_secret_that_an_excerpt_cuts_is_masked() -> None:
    """The beginning of a secret at the end of an excerpt is one too; short values are left to be read."""
    assert hide("see tw33t/sec…", [SECRET]) == "see ***…"
    assert hide("1 of 100", ["1", "100"]) == "1 of 100"


def test_a_secret_in_json_is_masked() -> None:
    """A source that repeats what it was sent writes it as JSON does, maybe twice."""
    secret = 'tw"33\\t/ü'
    for told in (json.dumps({"pw": secret}), json.dumps({"body": json.dumps({"pw": secret})})):
        assert "33" not in hide(told, [secret])


async def test_a_post_is_never_conditional() -> None:
    """A 304 means nothing for a POST, so no validators are kept or sent."""
    async with FeedServer(Answer(body=b"[]", etag='"v1"')) as server:
        feed, _ = await fetch(source(server.url, method="POST"))
        assert not feed.validators
        feed, _ = await fetch(source(server.url))
        again, _ = await fetch(source(server.url, method="POST"), validators=feed.validators)
        assert not again.not_modified


async def test_what_a_refusal_carries() -> None:
    """A refusal keeps the wait that the source asks for, and an answer its headers under names in any case."""
    async with FeedServer(Answer(status=418, headers={"Retry-After": "120"})) as server:
        with pytest.raises(SourceRefused) as caught:
            await fetch(source(server.url))
        assert (caught.value.status, caught.value.retry_after_seconds) == (418, 120.0)
        server.answers = Answer(body=b"[]", headers={"X-MBX-Used-Weight": "7"})
        feed, _ = await fetch(source(server.url))
    assert feed.response_headers["x-mbx-used-weight"] == "7"
