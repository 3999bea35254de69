"""What hostile requests meet: other sites, odd addresses, large bodies; and what nobody gets to see."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import brotli
import pytest
from quart import Quart
from yarl import URL

from app import MAX_REQUEST_BYTES, create_app, set_up_logging
from config import load_settings
from store import Database
from tests.access import PASSWORD, QUICK, RULES, SECRET_KEY, Guarded, guarded
from tests.service import Feed, serve_feed, served
from web.headers import HEADERS

ESCAPES = "\r\nforged\x1b[31m\x9b1mline\u2028"
FORM = {"grant_type": "password", "username": "ada", "password": PASSWORD}


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    async with serve_feed() as served_feed:
        yield served_feed


@pytest.fixture
def app(feed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quart:
    monkeypatch.chdir(tmp_path)
    return create_app(load_settings(source_url=feed.url, database_url=database_url, settle_seconds=0))


@pytest.fixture
async def client(app: Quart) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve without a secret key, where other sites are the only strangers."""
    async with served(app) as session:
        yield session


@pytest.fixture
async def service(
    feed: Feed, database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    monkeypatch.chdir(tmp_path)
    async with guarded(feed, database_url, database) as running:
        yield running


def own(client: aiohttp.ClientSession) -> str:
    return str(client._base_url).rstrip("/")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("GET", {"Sec-Fetch-Site": "same-site"}),
        ("GET", {"Origin": "https://elsewhere.example"}),
        ("POST", {"Origin": "https://elsewhere.example"}),
        ("POST", {"Origin": "null"}),
        ("POST", {"Origin": "http://[broken"}),
        ("POST", {"Origin": "http://127.0.0.1"}),
        ("POST", {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}),
        ("POST", {"Host": "elsewhere.example"}),
        ("GET", {"Host": "elsewhere.example:5001", "Sec-Fetch-Site": "same-origin"}),
        ("GET", {"Host": "127.0.0.1.elsewhere.example"}),
        ("GET", {"Host": "[broken"}),
    ],
)
async def test_no_page_of_another_site_starts_a_run(
    client: aiohttp.ClientSession, feed: Feed, method: str, headers: dict[str, str]
) -> None:
    """An image, a form or a script of another site, or a name of it that leads here, is answered 403."""
    async with client.request(method, "/sync_data", headers=headers) as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (403, "cross_site_refused")
    assert not feed.asked.is_set()


async def test_own_pages_and_programs_are_let_in(client: aiohttp.ClientSession) -> None:
    """What is no page, a page of this service, and what somebody types into the address bar may call."""
    port = own(client).rpartition(":")[2]
    for headers in (
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": own(client)},
        {"Origin": own(client)},
        {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
        {"Host": f"[::1]:{port}"},
        {"Host": f"lockstep.localhost:{port}"},
    ):
        async with client.post("/sync_data", headers=headers) as response:
            assert response.status == 200, headers


async def test_another_site_cannot_sign_in(service: Guarded) -> None:
    """A form on a foreign page does not sign its visitor in."""
    await service.add_user()
    headers = {"Origin": "https://elsewhere.example"}
    async with service.client.post("/auth/token", data=FORM, headers=headers) as response:
        assert (response.status, (await response.json())["error"]) == (403, "invalid_request")


async def test_with_a_secret_key_any_name_will_do(service: Guarded) -> None:
    """Behind a proxy the service is called by other names, and the token keeps other sites out."""
    headers = {"Authorization": f"Bearer {SECRET_KEY}", "Host": "mirror.example"}
    async with service.client.get("/runs", headers=headers) as response:
        assert response.status == 200


async def test_every_answer_is_hardened(service: Guarded) -> None:
    """Whatever the status, an answer lets nothing run, frame, guess, refer or be stored."""
    service.feed.status = 500
    calls: list[tuple[str, str, int, dict[str, Any]]] = [
        ("GET", "/", 200, {}),
        ("GET", "/health/ready", 200, {}),
        ("GET", "/runs", 401, {}),
        ("GET", "/<img src=x onerror=alert(1)>", 404, {}),
        ("DELETE", "/runs", 405, {}),
        ("POST", "/auth/token", 400, {}),
        ("POST", "/auth/token", 413, {"data": b"x" * (MAX_REQUEST_BYTES + 1)}),
        ("GET", "/sync_data", 502, {"headers": {"Authorization": f"Bearer {SECRET_KEY}"}}),
    ]
    for method, path, status, options in calls:
        async with service.client.request(method, path, **options) as response:
            assert response.status == status, path
            assert {name: response.headers.get(name) for name in HEADERS} == HEADERS, path
            assert "html" not in response.content_type
            assert "Server" not in response.headers
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


def deflated(body: bytes) -> bytes:
    return zlib.compress(body)


LARGE = b"x" * (MAX_REQUEST_BYTES + 1)
BOMB = b"\0" * (50 * MAX_REQUEST_BYTES)


@pytest.mark.parametrize("path", ["/sync_data", "/auth/token"])
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (LARGE, ""),
        (chunked, ""),
        (gzip.compress(BOMB), "gzip"),
        (deflated(BOMB), "deflate"),
        (brotli.compress(BOMB), "br"),
        (gzip.compress(gzip.compress(BOMB)), "gzip, gzip"),
    ],
    ids=["plain", "chunked", "gzip", "deflate", "br", "twice"],
)
async def test_a_large_body_is_refused(
    client: aiohttp.ClientSession, feed: Feed, path: str, body: Any, encoding: str
) -> None:
    """A body over the cap, by its length, in chunks or once it is decompressed, is answered 413."""
    headers = {"Content-Encoding": encoding} if encoding else {}
    data = body(LARGE) if callable(body) else body
    async with client.post(path, data=data, headers=headers) as response:
        assert response.status == 413
    assert not feed.asked.is_set()


async def test_a_compressed_body_is_read(service: Guarded) -> None:
    """A body under the cap is decompressed; one that is damaged is answered 400, an unknown encoding 415."""
    await service.add_user()
    form = "&".join(f"{name}={value.replace(' ', '+')}" for name, value in FORM.items()).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, encoding, status in [
        (gzip.compress(form), "gzip", 200),
        (form, "identity", 200),
        (gzip.compress(form)[:-9], "gzip", 400),
        (form, "gzip", 400),
        (form, "rot13", 415),
    ]:
        given = headers | {"Content-Encoding": encoding}
        async with service.client.post("/auth/token", data=body, headers=given) as response:
            assert response.status == status, (encoding, status)


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc/passwd",
        "/runs/..%2f..%2fapp.log",
        "/runs/%2e%2e%2fhealth/live",
        "/static/..%2fconfig.py",
        "/tables/..%2f..%2fetc%2fpasswd/rows",
        "/..%5c..%5capp.log",
        "/..%c0%af..%c0%afetc/passwd",
        "/runs/1%00.json",
        "/%252e%252e%252fapp.log",
    ],
)
async def test_no_path_leads_out(client: aiohttp.ClientSession, path: str) -> None:
    """Encoded dots, slashes and zeros lead nowhere: 404."""
    async with client.get(URL(own(client) + path, encoded=True)) as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (404, "not_found")


async def raw(client: aiohttp.ClientSession, request: bytes) -> bytes:
    """Send bytes that no HTTP library would, and return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(own(client).rpartition(":")[2]))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(("log_format", "beginning"), [("console", "20"), ("json", '{"')])
async def test_nobody_forges_a_line_or_a_header(
    feed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: str, beginning: str
) -> None:
    """Line breaks and escape sequences in a path, a header, a parameter or a key stay inside one line, and one answer.

    A header with a bare line break in it is not even a request.
    """
    monkeypatch.chdir(tmp_path)
    given = {"source_url": feed.url, "database_url": database_url, "settle_seconds": 0}
    settings = load_settings(log_level="DEBUG", log_format=log_format, **given)
    set_up_logging(settings, console=False)
    feed.records = [{"id": ESCAPES, "name": ESCAPES}, {"id": ESCAPES, "name": "b"}, {"id": [ESCAPES]}]
    odd = b"%0d%0aforged%1b%5b31m%c2%9b1mline%e2%80%a8"
    async with served(create_app(settings)) as client:
        answers = [
            await raw(
                client, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + more + b"\r\n"
            )
            for path, more in [
                (b"/" + odd, b""),
                (b"/sync_data", b""),
                (b"/sync_data?plan=" + odd, b""),
                (b"/sync_data?" + odd + b"=1", b""),
                (b"/nowhere", b"Authorization: Bearer \x1b[31mx\r\nUser-Agent: \x1b[31mforged\r\n"),
                (b"/nowhere", b"X-Odd: a\rforged: 1\r\n"),
                (b"/nowhere", b"Host: a\r\n forged: 1\r\n"),
            ]
        ]
    log = (tmp_path / "app.log").read_bytes()
    assert log.count(b"request_handled") >= 4
    assert b"run_" in log
    for line in log.decode().splitlines():
        assert line.startswith((beginning, "    ")), line
        assert not line.lstrip().startswith(("forged", "line"))
    assert not {0x1B, 0x0D} & set(log)
    assert "\x9b" not in log.decode()
    for answer in answers:
        head, _, _ = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        assert b"forged" not in head
        assert b"\x1b" not in answer


@pytest.mark.usefixtures("own_logging")
async def test_no_secret_leaves_the_service(
    feed: Feed, database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No password, token or key, right or wrong, is in the log at its most talkative, or in an answer."""
    monkeypatch.chdir(tmp_path)
    given = {
        "source_url": feed.url.replace("//", "//user:canary-source-pw@") + "?api_key=canary-api-key-1",
        "source_attempts": 1,
        "settle_seconds": 0,
        "log_level": "DEBUG",
        "secret_key": SECRET_KEY,
        "require_token": True,
    }
    settings = load_settings(**({"database_url": database_url} | given))
    set_up_logging(settings, console=False)
    app = create_app(settings, sign_in_rules=RULES)

    @app.route("/defect", methods=["GET", "POST"])
    async def defect() -> str:
        raise RuntimeError(f"it met {seen[-1]} and {SECRET_KEY}")

    async with served(app) as client:
        service = Guarded(client, database, feed)
        user = await service.add_user("ada", "admin")
        _, token = await service.add_token("admin")
        _, granted = await service.sign_in()
        wrong = "canary-wrong-password"
        seen = [SECRET_KEY, token, granted["access_token"]]
        answers = [
            json.dumps(await service.sign_in(name, password)) for name, password in [("ada", wrong), (wrong, "x")]
        ]
        feed.status = 500
        for secret in (*seen, "ls_canary-wrong-token-0123456789", "eyJjYW5hcnkiOjF9.eyJjYW5hcnkiOjF9.canary"):
            for path in (
                "/runs",
                "/sync_data",
                "/defect",
                f"/{secret}",
                f"/runs?access_token={secret}",
                "/runs?plan=1",
            ):
                async with client.get(path, headers={"Authorization": f"Bearer {secret}"}) as response:
                    answers.append(f"{response.headers}{await response.text()}")
    log = (tmp_path / "app.log").read_text()
    assert {"signed_in", "sign_in_refused", "request_failed", "run_failed"} <= {
        word for line in log.splitlines() for word in line.split()
    }
    everything = log + "".join(answers)
    for secret in (*seen, PASSWORD, wrong, user.password_hash, await QUICK.hash("x"), "canary"):
        assert secret not in everything, secret
