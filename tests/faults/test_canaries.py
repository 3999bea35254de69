"""No secret shows anywhere: not in the log, an answer, an error, a run's row, or what Python prints of a value."""

# ruff: noqa: S105, S106 (its passwords are canaries)

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from sqlalchemy.engine import make_url

from errors import LockstepError
from store import Database
from sync import sync_data
from tests.engine import Engine
from tests.faults.support import BODY, FaultyService, faulty_service, make_settings
from tests.feed_server import Answer, Answers, BadChunk, HangUp, Request, Reset, Silence, Truncate, bomb, redirect
from tests.service import free_port

CANARY = "tw33t"
USER, PASSWORD = "tw33t-user", "tw33t-p@ss/word"
SECRET_KEY = "tw33t-secret-key-0123456789abcdef"
SPELLINGS = (CANARY, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())

CREDENTIALS = "tw33t-user:tw33t-p%40ss%2Fword@"
QUERY = "api_key=tw33t-key-1234&ticket=tw33t-ticket-1234&tw33t-bare-5678&page=2"


def secret_url(url: str) -> str:
    """Return a URL with a secret in every place that can hold one."""
    return url.replace("//", f"//{CREDENTIALS}", 1) + f"?{QUERY}#tw33t-fragment"


def assert_no_canary(text: str) -> None:
    """Assert that no secret is in a text, and show where."""
    for spelling in SPELLINGS:
        place = text.find(spelling)
        assert place < 0, f"a canary sings: …{text[max(place - 200, 0) : place + 200]}…"


def echo(request: Request) -> Answer:
    """Answer with all that was sent, as a talkative source might."""
    sent = {"error": request.query["api_key"], "headers": dict(request.headers), "url": f"http://{CREDENTIALS}host/"}
    return Answer(body=json.dumps(sent).encode())


def echo_in_html(request: Request) -> Answer:
    """Answer with an error page that repeats what was sent."""
    return Answer(body=f"<p>No such key: {request.query['api_key'][0]}</p>".encode(), content_type="text/html")


def echo_in_a_record(request: Request) -> Answer:
    """Answer with a record that cannot be read, near what was sent."""
    return Answer(body=f'[{{"id": 1, "link": "?api_key={request.query["api_key"][0]}", "v": NaN}}]'.encode())


def on_second(answer: Answer, *, location: str) -> Callable[[Request], Answer]:
    """Redirect once, and answer there."""
    return lambda request: redirect(location) if request.path == "/feed.json" else answer


REDIRECTED = "/second?ticket=tw33t-redirected-1234&X-Amz-Signature=tw33t-signature"

FAULTS: dict[str, Answers] = {
    "none": Answer(body=BODY, etag='"v1"'),
    "refused": Answer(status=403),
    "unavailable": Answer(status=503, headers={"Retry-After": "tw33t"}),
    "broken off": Answer(body=BODY, fault=Truncate(at=50)),
    "broken chunk": Answer(body=BODY, framing="chunked", fault=BadChunk(at=50)),
    "reset": Answer(body=BODY, fault=Reset(at=50)),
    "hung up": Answer(fault=HangUp()),
    "silent": Answer(fault=Silence()),
    "bomb": Answer(body=bomb(8 << 20), headers={"Content-Encoding": "gzip"}),
    "not HTTP": Answer(headers={"X": "a\r\nthis is no header"}),
    "no status": Answer(status=99_999),
    "bad length": Answer(headers={"Content-Length": "minus one"}),
    "unknown compression": Answer(headers={"Content-Encoding": "lzma"}),
    "echo": echo,
    "echo in HTML": echo_in_html,
    "echo in a record": echo_in_a_record,
    "redirect to a file": redirect(f"file://{CREDENTIALS}host/x?{QUERY}"),
    "redirect to a private address": redirect(f"http://{CREDENTIALS}localhost:1/x?{QUERY}"),
    "redirect to no URL": redirect(f"http://{CREDENTIALS}[bad/?{QUERY}"),
    "redirect to no port": redirect(f"http://{CREDENTIALS}localhost:99999/?{QUERY}"),
    "redirect to no host": redirect(f"http://{CREDENTIALS}a..b/?{QUERY}"),
    "redirect without end": redirect(f"/feed.json?{QUERY}"),
    "redirected and refused": on_second(Answer(status=401), location=REDIRECTED),
    "redirected and broken off": on_second(Answer(body=BODY, fault=Truncate(at=50)), location=REDIRECTED),
    "redirected and not HTTP": on_second(Answer(headers={"X": "a\r\nthis is no header"}), location=REDIRECTED),
    "redirected and hung up": on_second(Answer(fault=HangUp()), location=REDIRECTED),
    "redirected and silent": on_second(Answer(fault=Silence()), location=REDIRECTED),
}


@pytest.fixture
async def secretive(
    engine: Engine, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[FaultyService]:
    """A service that is full of secrets, and logs all that it can."""
    secret_database = make_url(database_url).set(password="tw33t-dsn-password")
    async with faulty_service(
        engine,
        secret_database.render_as_string(hide_password=False),
        tmp_path,
        source_url=secret_url(engine.feed.url),
        secret_key=SECRET_KEY,
        require_token=True,
        log_level="DEBUG",
        log_format=request.param,
        source_read_timeout_seconds=0.1,
        max_body_bytes=1 << 20,
    ) as service:
        service.client.headers["Authorization"] = f"Bearer {SECRET_KEY}"
        yield service


@pytest.mark.parametrize("secretive", ["console", "json"], indirect=True)
async def test_no_canary_sings(secretive: FaultyService, capfd: pytest.CaptureFixture[str]) -> None:
    """Good runs and every kind of failure leave no secret in the log, in answers, or in the service's tables."""
    for name, answers in FAULTS.items():
        secretive.answer(answers)
        for path in ("/sync_data", "/sync_data?dry_run=1"):
            assert await call(secretive, path) in ({200} if name == "none" else {502, 504}), name
    for path in ("/runs", "/runs/1", "/changes", "/nowhere?token=tw33t-token", "/sync_data?unknown=tw33t"):
        await call(secretive, path)
    for number in range(1, len(FAULTS) + 1):
        await call(secretive, f"/runs/{number}")
    for token in ("tw33t-wrong-token", "ls_tw33t" + "x" * 40, "eyJtw33t1234.tw33t.tw33t", "tw33t tw33t"):
        assert await call(secretive, "/runs", headers={"Authorization": f"Bearer {token}"}) == 401
    form = {"grant_type": "password", "username": "ada", "password": "tw33t-password"}
    assert await call(secretive, "/auth/token", method="POST", data=form) == 400
    assert_no_canary(secretive.log_file.read_text())
    assert_no_canary(await tables(secretive.engine))
    assert_no_canary("".join(capfd.readouterr()))


async def call(service: FaultyService, path: str, *, method: str = "GET", **options: Any) -> int:
    """Call the service, assert that its answer holds no secret, and return its status."""
    async with service.client.request(method, path, **options) as response:
        assert_no_canary(f"{response.raw_headers!r} {await response.text()}")
        return response.status


async def tables(engine: Engine) -> str:
    """Return all that the service keeps in its own tables about runs and mirrors."""
    names = [
        row["name"]
        for row in await engine.sql.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'lockstep'"
        )
    ]
    rows = [row["t"] for name in names for row in await engine.sql.fetch(f"SELECT t::text FROM {name} t")]
    assert rows
    return "\n".join(rows)


@pytest.mark.parametrize("fault", [name for name in FAULTS if not name.startswith(("none", "echo"))])
async def test_errors_carry_no_canary(engine: Engine, fault: str) -> None:
    """What is raised holds no secret of the source, nor does anything that it was raised from."""
    engine.configure(url=secret_url(engine.feed.url), attempts=1, read_timeout_seconds=0.1, max_body_bytes=1 << 20)
    engine.feed.answers = FAULTS[fault]
    with pytest.raises(LockstepError) as caught:
        await engine.sync()
    assert_no_canary("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("kind", ["nobody listens", "no such database", "wrong password"])
async def test_a_database_that_is_away_tells_no_password(
    engine: Engine, database_url: str, kind: Literal["nobody listens", "no such database"], caplog: Any
) -> None:
    """An error of connecting does not repeat what it tried to connect with."""
    url = make_url(database_url).set(password="tw33t-dsn-password")
    if kind == "nobody listens":
        url = url.set(host="127.0.0.1", port=free_port(), query={})
    elif kind == "no such database":
        url = url.set(database="nowhere")
    else:
        url = url.set(username="nobody")
    away = Database.connect(url.render_as_string(hide_password=False), pool_size=1)
    with caplog.at_level(logging.DEBUG), pytest.raises(LockstepError) as caught:
        await sync_data(away, engine.source)
    await away.close()
    assert_no_canary("".join(traceback.format_exception(caught.value)))
    assert_no_canary(f"{caplog.text} {away!r} {away.engine!r} {vars(away)!r}")


async def test_no_value_prints_its_canary(engine: Engine, database_url: str) -> None:
    """What Python prints of settings, source and service, in a debugger or a traceback, holds no secret."""
    settings = make_settings(
        source_url=secret_url(engine.feed.url),
        database_url=make_url(database_url).set(password="tw33t").render_as_string(hide_password=False),
        password_for_sql="tw33t",
        username_for_sql="ada",
        secret_key=SECRET_KEY,
    )
    for value in (settings, settings.source(), settings.model_dump(), settings.model_dump_json()):
        assert_no_canary(f"{value} {value!r}")


async def test_a_call_of_somebody_else_tells_nothing(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """What a caller sends in vain is not logged either."""
    async with faulty_service(engine, database_url, tmp_path, secret_key=SECRET_KEY, require_token=True) as service:
        headers = {"Authorization": "Basic tw33t-basic", "Cookie": "session=tw33t-cookie", "X-Api-Key": "tw33t-api"}
        async with aiohttp.ClientSession() as stranger, service.client.get("/") as somewhere:
            url = somewhere.url.with_path("/runs").with_query(access_token="tw33t-token")
            async with stranger.get(url, headers=headers) as response:
                assert response.status == 401
                assert_no_canary(f"{response.raw_headers!r} {await response.text()}")
        assert_no_canary(service.log_file.read_text())
