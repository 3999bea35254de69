"""A token of OAuth 2 is obtained once, used while it is valid, and obtained anew when the source refuses it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest

from definitions import LinkHeaderPaging, OAuth2Auth, Source
from errors import (
    AddressRefused,
    SourceError,
    SourceInvalid,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
)
from sources import is_retryable
from tests.feed_server import Answer, FeedServer, HangUp, Request, Silence, Stall, redirect
from tests.sources.support import fetch, source

CLIENT, SECRET = "tw33t:client", "tw33t/secret +"
_clients = itertools.count()


def auth_at(server: FeedServer, **details: Any) -> OAuth2Auth:
    """Return credentials that no other test has used."""
    unused = {"client_id": f"{CLIENT}{next(_clients)}", "client_secret": SECRET, "scope": "read all"}
    return OAuth2Auth(**({"token_url": f"{server.origin}/token?tenant=tw33t"} | unused | details))


class Issuer:
    """A token endpoint that issues `tw33t-token-1`, `-2`, … and a source that takes the newest alone."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.issued = 0
        self.refused = 0

    def token(self, _: Request) -> Answer:
        self.issued += 1
        fields = {"access_token": f"tw33t-token-{self.issued}", "token_type": "bearer", **self.fields}
        return Answer(body=json.dumps(fields).encode())

    def feed(self, request: Request) -> Answer:
        if request.headers.get("authorization") == f"Bearer tw33t-token-{self.issued}":
            return Answer(body=b'[{"id":1}]')
        self.refused += 1
        return Answer(status=401)


async def obtain(source_of: Source) -> None:
    _, records = await fetch(source_of)
    assert list(records.values()) == [b'{"id":1}']


async def test_the_exchange() -> None:
    """The client proves itself by HTTP Basic, and the token goes to the source alone."""
    issuer = Issuer(expires_in=3600)
    async with FeedServer(issuer.token) as tokens, FeedServer(issuer.feed) as server:
        auth = auth_at(tokens)
        await obtain(source(server.url, auth=auth, headers={"X-Key": "tw33t-key"}))
    (asked,) = tokens.requests
    assert (asked.method, asked.headers["content-type"]) == ("POST", "application/x-www-form-urlencoded")
    assert parse_qs(asked.body.decode()) == {"grant_type": ["client_credentials"], "scope": ["read all"]}
    scheme, _, proof = asked.headers["authorization"].partition(" ")
    number = auth.client_id.removeprefix(CLIENT)
    assert (scheme, base64.b64decode(proof).decode()) == ("Basic", f"tw33t%3Aclient{number}:tw33t%2Fsecret+%2B")
    assert "x-key" not in asked.headers
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer tw33t-token-1"]


async def test_one_token_for_all() -> None:
    """Concurrent and later fetches share a token; other credentials and another scope have their own."""
    issuer = Issuer(expires_in="3600")
    async with FeedServer(issuer.token) as tokens, FeedServer(Answer(body=b'[{"id":1}]')) as server:
        auth = auth_at(tokens)
        await asyncio.gather(*(obtain(source(server.url, auth=auth)) for _ in range(10)))
        await obtain(source(server.url, auth=auth))
        assert issuer.issued == 1
        await obtain(source(server.url, auth=auth_at(tokens, client_id=auth.client_id, scope=None)))
        assert issuer.issued == 2


def test_tokens_outlive_an_event_loop() -> None:
    """Several event loops of a process share a token, even where callers wait for it in each of them."""
    issuer = Issuer(expires_in=3600)
    given: list[OAuth2Auth] = []

    async def fetch_all() -> None:
        async with FeedServer(issuer.token) as tokens, FeedServer(Answer(body=b'[{"id":1}]')) as server:
            given.append(auth_at(tokens))
            await asyncio.gather(*(obtain(source(server.url, auth=given[0])) for _ in range(3)))

    for _ in range(2):
        asyncio.run(fetch_all())
    assert issuer.issued == 1


@pytest.mark.parametrize(
    ("life", "issued"), [(0, 2), (3600, 1), (None, 1), ("soon", 1), pytest.param(10**400, 1, id="for ever")]
)
async def test_expiry(life: Any, issued: int) -> None:
    """A token is used until shortly before it expires, or until it is refused where its life is not told."""
    issuer = Issuer(expires_in=life)
    async with FeedServer(issuer.token) as tokens, FeedServer(issuer.feed) as server:
        auth = auth_at(tokens)
        for _ in range(2):
            await obtain(source(server.url, auth=auth))
    assert (issuer.issued, issuer.refused) == (issued, 0)


async def test_a_token_that_is_refused() -> None:
    """A 401 makes a new token be obtained, once, wherever in the pages it comes."""
    issuer = Issuer(expires_in=3600)

    def feed(request: Request) -> Answer:
        answer = issuer.feed(request)
        link = {"Link": '</2>; rel="next"'} if request.path == "/feed.json" else {}
        issuer.issued += link != {}  # what was issued for the first page is void for the second
        return Answer(status=answer.status, body=f'[{{"id":"{request.path}"}}]'.encode(), headers=link)

    async with FeedServer(issuer.token) as tokens, FeedServer(feed) as server:
        auth = auth_at(tokens)
        _, records = await fetch(source(server.url, auth=auth, paging=LinkHeaderPaging()))
        assert (len(records), issuer.refused, len(tokens.requests)) == (2, 1, 2)
        server.answers = Answer(status=401)
        server.requests.clear()
        with pytest.raises(SourceRefused) as caught:
            await fetch(source(server.url, auth=auth))
        assert (caught.value.status, len(server.requests)) == (401, 2)


async def test_a_token_stays_with_its_origin() -> None:
    """A redirect elsewhere does not get the token, and a 401 from there does not cost it."""
    issuer = Issuer(expires_in=3600)
    async with (
        FeedServer(issuer.token) as tokens,
        FeedServer(Answer(status=401)) as other,
        FeedServer(redirect(other.url)) as server,
    ):
        with pytest.raises(SourceRefused):
            await fetch(source(server.url, auth=auth_at(tokens)))
    assert issuer.issued == 1
    assert "authorization" not in other.requests[0].headers


def refusals() -> Iterator[Any]:
    echoed = json.dumps({"error": SECRET, "error_description": SECRET}).encode()
    good = {"access_token": "t", "token_type": "Bearer"}
    for name, answer, expected, said in (
        ("invalid client", Answer(status=401, body=b'{"error":"invalid_client"}'), SourceRefused, "invalid_client"),
        ("invalid scope", Answer(status=400, body=b'{"error":"invalid_scope"}'), SourceRefused, "invalid_scope"),
        ("echo", Answer(status=400, body=echoed), SourceRefused, "400 Bad Request."),
        ("busy", Answer(status=503, headers={"Retry-After": "7"}, body=b"<html>"), SourceRefused, "503"),
        ("redirect", redirect("/elsewhere"), SourceRefused, "302"),
        ("not JSON", Answer(body=SECRET.encode()), SourceInvalid, "without an access_token"),
        ("an array", Answer(body=b"[]"), SourceInvalid, "without an access_token"),
        ("no token", Answer(body=echoed), SourceInvalid, "without an access_token"),
        ("unsendable", Answer(body=json.dumps({**good, "access_token": "a\r\nb"}).encode()), SourceInvalid, "sent"),
        ("type", Answer(body=json.dumps({**good, "token_type": "mac"}).encode()), SourceInvalid, "Bearer"),
        ("too large", Answer(body=b" " * (1 << 20)), SourceTooLarge, "larger than"),
        ("hung up", Answer(fault=HangUp()), SourceUnreachable, "/token"),
        ("silent", Answer(fault=Silence()), SourceTimeout, "SOURCE_READ_TIMEOUT_SECONDS"),
        ("stalled", Answer(body=b"{}", fault=Stall(at=1)), SourceTimeout, "SOURCE_READ_TIMEOUT_SECONDS"),
    ):
        yield pytest.param(answer, expected, said, id=name)


@pytest.mark.parametrize(("answer", "expected", "said"), list(refusals()))
async def test_no_token(answer: Answer, expected: type[SourceError], said: str) -> None:
    """Where the endpoint gives no token, that is said without a secret, and the source is not asked."""
    async with FeedServer(answer) as tokens, FeedServer() as server:
        with pytest.raises(expected, match=said) as caught:
            await fetch(source(server.url, auth=auth_at(tokens), read_timeout_seconds=0.1))
    assert not server.requests
    assert all(request.path == "/token" for request in tokens.requests)
    told = "".join(traceback.format_exception(caught.value))
    assert "tw33t" not in told.replace("tw33t:client", "")
    if isinstance(caught.value, SourceRefused):
        assert is_retryable(caught.value) is (answer.status == 503)
        assert caught.value.retry_after_seconds == (7.0 if answer.status == 503 else None)


async def test_the_endpoint_is_guarded() -> None:
    """The endpoint's address is guarded like the source's own, and what it gzips is read."""
    async with FeedServer() as tokens, FeedServer(Answer(body=b'[{"id":1}]')) as server:
        for url in (f"http://0x7f.1:{tokens.port}/", "file:///etc/passwd"):
            with pytest.raises(AddressRefused):
                await fetch(source(server.url, auth=auth_at(tokens, token_url=url)))
        assert not tokens.requests
        tokens.answers = Answer(body=gzip.compress(b'{"access_token":"t"}'), headers={"Content-Encoding": "gzip"})
        await obtain(source(server.url, auth=auth_at(tokens)))


async def test_the_token_is_not_told() -> None:
    """A source that repeats the token does not get it into an error."""

    def echo(request: Request) -> Answer:
        return Answer(body=request.headers["authorization"].encode())

    async with FeedServer(Issuer(expires_in=3600).token) as tokens, FeedServer(echo) as server:
        with pytest.raises(SourceInvalid) as caught:
            await fetch(source(server.url, auth=auth_at(tokens)))
    assert "tw33t" not in "".join(traceback.format_exception(caught.value))
