"""Who may call what, and with which token."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from access import SCOPES, ServiceTokenRow
from app import create_app
from config import load_settings
from store import Database
from store.access import delete_token, delete_user, insert_token, select_tokens, use_token
from tests.access import SECRET_KEY, Guarded, guarded, valid_claims
from tests.service import Feed, get, serve_feed, served
from web.access_tokens import derive_key
from web.auth import NEEDED_SCOPES, OPEN_ENDPOINTS

HOUSE = Path(__file__).parents[1]
INVALID = 'Bearer realm="lockstep", error="invalid_token"'


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    async with serve_feed() as served_feed:
        yield served_feed


@pytest.fixture
async def service(
    feed: Feed, database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    monkeypatch.chdir(tmp_path)
    async with guarded(feed, database_url, database) as running:
        yield running


def routes(**settings: Any) -> list[tuple[str, str, str]]:
    """Return endpoint, method and path of every route there is, with or without a sample feed."""
    app = create_app(load_settings(secret_key=SECRET_KEY, require_token=True, **settings))
    return [
        (str(rule.endpoint), method, rule.rule.replace("<int:run>", "1"))
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods or ())
    ]


def test_every_route_is_open_by_name_or_names_its_scope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No route is open, or left to the default, without having been thought of."""
    monkeypatch.chdir(tmp_path)
    assert {endpoint for endpoint, _, _ in routes()} == OPEN_ENDPOINTS | NEEDED_SCOPES.keys()
    assert OPEN_ENDPOINTS.isdisjoint(NEEDED_SCOPES)
    assert set(NEEDED_SCOPES.values()) <= set(SCOPES)


async def test_every_route_answers_those_alone_who_may(service: Guarded, feed: Feed) -> None:
    """By every method a protected route answers 401 without a valid token, 403 with one that lacks its scope."""
    tokens = {scope: (await service.add_token(scope))[1] for scope in SCOPES}
    for endpoint, method, path in routes(source_url=feed.url):
        needed = NEEDED_SCOPES.get(endpoint)
        for token in (None, "wrong", f"{SECRET_KEY}x", "ls_" + "x" * 43, "a.b.c"):
            assert (await service.call(token, path, method) == 401) is (needed is not None), (method, path, token)
        for scope, token in tokens.items():
            answered = await service.call(token, path, method)
            assert answered != 401, (method, path)
            assert (answered == 403) is (needed is not None and scope not in {needed, "admin"}), (method, path, scope)


async def test_a_caller_is_told_what_is_missing(service: Guarded) -> None:
    """Refusals carry the challenge of RFC 6750: nothing given, an invalid token, or the scope that is needed."""
    _, token = await service.add_token("read")
    for given, status, challenge in [
        ({}, 401, 'Bearer realm="lockstep"'),
        ({"Authorization": f"Basic {SECRET_KEY}"}, 401, 'Bearer realm="lockstep"'),
        ({"Authorization": "Bearer wrong"}, 401, INVALID),
        (
            {"Authorization": f"Bearer {token}"},
            403,
            'Bearer realm="lockstep", error="insufficient_scope", scope="sync"',
        ),
    ]:
        async with service.client.get("/sync_data", headers=given) as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (status, challenge)
            assert "***" not in (await response.json(content_type=None))["remedy"]


async def test_the_secret_key_itself_may_do_everything(service: Guarded) -> None:
    """Where only SECRET_KEY is set, cron sends that; the scheme is known in any case, as RFC 9110 has it."""
    async with service.client.get("/sync_data", headers={"Authorization": f"bearer {SECRET_KEY}"}) as response:
        assert (response.status, (await response.json())["created"]) == (200, 40)
    # There is nothing to approve, but it may ask.
    assert await service.call(SECRET_KEY, "/sync_data?approve=1") == 409


async def test_a_secret_key_of_any_script_is_understood(feed: Feed, database_url: str, database: Database) -> None:
    """A key beyond ASCII is sent as UTF-8."""
    async with guarded(feed, database_url, database, secret_key="schlüssel-ключ-鍵") as service:  # noqa: S106
        headers = {"Authorization": "Bearer schlüssel-ключ-鍵"}
        assert (await get(service.client, "/runs", headers=headers))[0] == 200


async def test_a_token_in_the_url_counts_for_nothing(service: Guarded) -> None:
    """Tokens are read from the header alone, and from one header alone."""
    for name in ("access_token", "token", "secret_key", "authorization"):
        assert await service.call(None, f"/runs?{name}={SECRET_KEY}") == 401
    twice = [("Authorization", f"Bearer {SECRET_KEY}"), ("Authorization", "Bearer wrong")]
    for headers in (twice, twice[::-1]):
        assert (await get(service.client, "/runs", headers=headers))[0] == 401


async def test_approving_a_hold_needs_admin(service: Guarded) -> None:
    """Whoever may sync may plan, but not let go of what the guard holds."""
    _, token = await service.add_token("sync")
    assert await service.call(token, "/sync_data") == 200
    assert await service.call(token, "/sync_data?dry_run=1") == 200
    service.feed.records = service.feed.records[:10]
    async with service.client.get("/sync_data", headers={"Authorization": f"Bearer {token}"}) as response:
        held = await response.json(content_type=None)
    assert held["status"] == "held"
    assert await service.call(token, held["approve"]) == 403
    _, admin = await service.add_token("admin")
    assert await service.call(admin, held["approve"]) == 200


async def test_on_loopback_without_configuration_nothing_is_asked_for(
    feed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a secret key everybody on this machine may do everything, and there is nothing to sign in to."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(source_url=feed.url, database_url=database_url, settle_seconds=0)
    async with served(create_app(settings)) as client:
        assert (await get(client, "/sync_data"))[0] == 200
        assert (await get(client, "/sync_data?approve=1"))[0] == 409
        async with client.post("/auth/token", data={"grant_type": "password"}) as response:
            assert (response.status, (await response.json())["error"]) == (400, "invalid_request")


async def test_a_key_alone_asks_nobody_on_loopback(
    feed: Feed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is set anyway does not lock out the curl of the same machine, unless tokens are required."""
    monkeypatch.chdir(tmp_path)
    given = {"source_url": feed.url, "database_url": database_url, "settle_seconds": 0, "secret_key": SECRET_KEY}
    for required, status in ((None, 200), (False, 200), (True, 401)):
        async with served(create_app(load_settings(**given, require_token=required))) as client:
            assert (await get(client, "/sync_data"))[0] == status


async def test_a_service_without_a_secret_key_is_for_loopback_only(tmp_path: Path) -> None:
    """Bound to anything else it refuses to start, exits with 2, and says what to set."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, HOUSE / "app.py", cwd=tmp_path, env={"HOST": "0.0.0.0"},  # noqa: S104
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            output, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, output) == (2, b"")
    assert b"SECRET_KEY" in said
    assert b"Traceback" not in said


def signed(claims: dict[str, Any], *, key: Any = None, **header: str) -> str:
    key = key or OctKey.import_key(derive_key(SECRET_KEY, "access tokens"))
    return jwt.encode({"alg": "HS256", "typ": "at+jwt"} | header, claims, key, algorithms=["HS256", "HS512", "RS256"])


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    header = {"alg": algorithm, "typ": "at+jwt"}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    return ".".join([*parts, ""])


async def test_a_forged_access_token_is_refused(service: Guarded) -> None:
    """Alg none, another algorithm, a key of another type, another purpose, issuer, audience or time: 401."""
    user = await service.add_user()
    assert await service.call(signed(valid_claims(user))) == 200
    claims = valid_claims(user)
    moment = claims["iat"]
    raw_key = OctKey.import_key(SECRET_KEY)
    forged = {
        "alg none": unsigned(claims, "none"),
        "alg None": unsigned(claims, "None"),
        "no signature": unsigned(claims, "HS256"),
        "another algorithm": signed(claims, alg="HS512"),
        "a key of another type": signed(claims, key=RSAKey.generate_key(2048), alg="RS256"),
        "the secret key itself": signed(claims, key=raw_key),
        "a key for another purpose": signed(claims, key=OctKey.import_key(derive_key(SECRET_KEY, "sign-in slots"))),
        "another type": signed(claims, typ="JWT"),
        "expired": signed(valid_claims(user, iat=moment - 900, exp=moment - 60)),
        "not yet issued": signed(valid_claims(user, iat=moment + 600, exp=moment + 900)),
        "not yet valid": signed(valid_claims(user, nbf=moment + 600)),
        "for ever": signed(valid_claims(user, exp="never")),
        "another audience": signed(valid_claims(user, aud="elsewhere")),
        "another issuer": signed(valid_claims(user, iss="elsewhere")),
        "nobody": signed(valid_claims(user, sub="ada")),
        "nobody any more": signed(valid_claims(user, sub="999999")),
        "scopes as a list": signed(valid_claims(user, scope=["admin"])),
        "not a token": "eyJhbGciOiJIUzI1NiJ9",
        **{f"without {name}": signed(valid_claims(user, **{name: None})) for name in claims},
    }
    answers = {case: await service.call(token) for case, token in forged.items()}
    assert answers == dict.fromkeys(forged, 401)


async def test_an_access_token_does_no_more_than_its_user_may(service: Guarded) -> None:
    """What a token claims beyond the user's own scopes, as after they were reduced, counts for nothing."""
    user = await service.add_user("ada", "read")
    token = signed(valid_claims(user, scope="read sync admin"))
    assert await service.call(token, "/runs") == 200
    assert await service.call(token, "/sync_data") == 403


async def test_a_user_who_is_removed_is_out_at_once(service: Guarded) -> None:
    """The access tokens of a user end with the user; another user of the same name does not revive them."""
    await service.add_user()
    _, granted = await service.sign_in()
    assert await service.call(granted["access_token"]) == 200
    await delete_user(service.database, "ada")
    assert await service.call(granted["access_token"]) == 401
    await service.add_user()
    assert await service.call(granted["access_token"]) == 401


async def test_a_service_token_is_known_by_its_hash_alone(service: Guarded) -> None:
    """The database does not hold what a caller would have to send."""
    _, token = await service.add_token("read")
    assert len(base64.urlsafe_b64decode(token.removeprefix("ls_") + "=")) == 32
    async with service.database.transaction() as session:
        stored = (await session.execute(sa.text("SELECT t::text FROM lockstep.service_tokens AS t"))).scalar_one()
    assert token not in stored
    assert token.removeprefix("ls_").encode().hex() not in stored
    assert await service.call(token) == 200


async def test_a_service_token_ends_when_it_is_revoked_or_expires(service: Guarded) -> None:
    """A token is worth nothing from the moment on at which it was revoked, or at which it was to end."""
    revoked, first = await service.add_token("read")
    expiring, second = await service.add_token("read", lifetime=timedelta(days=1))
    assert [await service.call(token) for token in (first, second)] == [200, 200]
    await delete_token(service.database, revoked.id)
    await update_tokens(service, expires_at=sa.func.now() - timedelta(seconds=1))
    assert [await service.call(token) for token in (first, second)] == [401, 401]
    assert [token.id for token in await select_tokens(service.database)] == [expiring.id]


async def test_the_last_use_of_a_token_is_known_to_the_minute(service: Guarded) -> None:
    """The first use is noted, those within a minute after it write nothing, a later one is noted again."""
    _, token = await service.add_token("read")
    await service.call(token)
    (first,) = await select_tokens(service.database)
    assert first.last_used_at is not None
    await service.call(token)
    assert await select_tokens(service.database) == [first]
    await update_tokens(service, last_used_at=sa.func.now() - timedelta(minutes=2))
    await service.call(token)
    (again,) = await select_tokens(service.database)
    assert again.last_used_at is not None
    assert again.last_used_at > first.last_used_at


async def test_a_database_that_takes_no_writes_keeps_no_token_out(database: Database, database_url: str) -> None:
    """That the use of a token cannot be noted does not matter to whoever reads."""
    _, token = await insert_token(database, name="cron", scopes=frozenset({"read"}))
    async with database.transaction() as session:
        name = (await session.execute(sa.text("SELECT current_database()"))).scalar_one()
        await session.execute(sa.text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    read_only = Database.connect(database_url, pool_size=1)
    known = await use_token(read_only, token)
    await read_only.close()
    assert known is not None
    assert known.last_used_at is None


async def update_tokens(service: Guarded, **values: Any) -> None:
    async with service.database.transaction() as session:
        await session.execute(sa.update(ServiceTokenRow).values(**values))
