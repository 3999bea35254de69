"""Signing in: what the token endpoint grants, how it refuses, and how often it lets anybody try."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from access import SignInRow
from store import Database
from store.access import SLOTS, address_slot, insert_user, name_slot, select_user
from tests.access import PASSWORD, RULES, Guarded, guarded
from tests.service import Feed, serve_feed
from web.passwords import AT_ONCE, Passwords
from web.sign_in import place_of

WRONG = {"error": "invalid_grant", "error_description": "The user name or the password is wrong."}


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    async with serve_feed() as served_feed:
        yield served_feed


@pytest.fixture
async def service(
    feed: Feed, database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    monkeypatch.chdir(tmp_path)
    async with guarded(feed, database_url, database, token_lifetime_seconds=321) as running:
        yield running


async def test_a_user_signs_in(service: Guarded) -> None:
    """Name and password give a token for all that the user may do, which nobody on the way may store."""
    await service.add_user("ada", "read", "sync")
    form = {"grant_type": "password", "username": "Ada", "password": PASSWORD}
    async with service.client.post("/auth/token", data=form) as response:
        granted = await response.json()
        assert response.status == 200
        assert (response.headers["Cache-Control"], response.headers["Pragma"]) == ("no-store", "no-cache")
    token = granted.pop("access_token")
    assert granted == {"token_type": "Bearer", "expires_in": 321, "scope": "read sync"}
    assert [await service.call(token, path) for path in ("/runs", "/sync_data", "/sync_data?approve=1")] == [
        200,
        200,
        403,
    ]


async def test_a_token_can_be_for_less(service: Guarded) -> None:
    """The scopes that are asked for are those that the token has; an admin may ask for any."""
    await service.add_user("ada", "admin")
    status, granted = await service.sign_in(scope="read")
    assert (status, granted["scope"]) == (200, "read")
    assert await service.call(granted["access_token"], "/runs") == 200
    assert await service.call(granted["access_token"], "/sync_data") == 403


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("", "invalid_request"),
        ("grant_type=password", "invalid_request"),
        ("grant_type=password&username=ada", "invalid_request"),
        ("grant_type=password&username=&password=x", "invalid_request"),
        ("grant_type=password&username=ada&username=eve&password=x", "invalid_request"),
        ("grant_type=password&username=ada&password=%ff", "invalid_request"),
        ("grant_type=password&" + "&".join(f"f{number}=" for number in range(30)), "invalid_request"),
        ("username", "invalid_request"),
        ("grant_type=client_credentials", "unsupported_grant_type"),
        ("grant_type=password&username=ada&password=x&scope=root", "invalid_scope"),
        (f"grant_type=password&username=ada&password={PASSWORD}&scope=admin", "invalid_scope"),
        (f"grant_type=password&username=ada%00&password={PASSWORD}", "invalid_grant"),
        ("grant_type=password&username=ada&password=wrong", "invalid_grant"),
    ],
)
async def test_refusals_are_in_the_words_of_the_standard(service: Guarded, form: str, error: str) -> None:
    """What cannot be granted is answered 400 with the error that RFC 6749, 5.2, has for it."""
    await service.add_user()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with service.client.post("/auth/token", data=form, headers=headers) as response:
        body = await response.json()
        assert (response.status, body["error"]) == (400, error)
        assert set(body) == {"error", "error_description"}
        assert response.headers["Cache-Control"] == "no-store"


async def test_only_a_form_in_the_body_is_taken(service: Guarded) -> None:
    """A password in the URL, as JSON or as multipart is refused, even the right one."""
    await service.add_user()
    form = {"grant_type": "password", "username": "ada", "password": PASSWORD}
    wrong: list[dict[str, Any]] = [{"params": form}, {"json": form}, {"params": {"a": "b"}, "data": form}]
    for given in wrong:
        async with service.client.post("/auth/token", **given) as response:
            assert (response.status, (await response.json())["error"]) == (400, "invalid_request")


async def test_names_cannot_be_found_out(service: Guarded) -> None:
    """A name that nobody has is answered just as a wrong password is."""
    await service.add_user()
    assert await service.sign_in("ada", "wrong") == (400, WRONG)
    assert await service.sign_in("eve", "wrong") == (400, WRONG)


async def test_a_name_that_nobody_has_takes_as_long() -> None:
    """Without a password to compare with, as much is computed as with one."""
    passwords = Passwords(PasswordHasher(time_cost=2, memory_cost=16 * 1024, parallelism=1))
    stored = await passwords.hash(PASSWORD)

    async def seconds(known: str | None) -> float:
        began = time.perf_counter()
        assert not await passwords.match(known, "wrong")
        return time.perf_counter() - began

    with_user = min([await seconds(stored) for _ in range(5)])
    without = min([await seconds(None) for _ in range(5)])
    assert 0.5 < without / with_user < 2


async def test_hashing_does_not_hold_the_loop() -> None:
    """While passwords are hashed, a few at a time, the loop goes on serving."""
    passwords = Passwords(PasswordHasher(time_cost=4, memory_cost=32 * 1024, parallelism=1))
    hashing = [asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(2 * AT_ONCE)]
    turns = 0
    while not all(task.done() for task in hashing):
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100


async def test_a_password_that_does_not_hash_is_no_password() -> None:
    """A stored text that is no hash matches nothing."""
    assert not await RULES.passwords.match("plain", "plain")


async def test_spelling_of_unicode_does_not_matter() -> None:
    """A password matches whichever way a keyboard composes its letters."""
    stored = await RULES.passwords.hash("Zu\u0308rich \u2126")
    assert await RULES.passwords.match(stored, "Z\u00fcrich \u03a9")


async def test_an_outdated_hash_is_renewed(service: Guarded) -> None:
    """When the parameters have changed, the next sign-in stores the password with those of today."""
    older = Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    stored = await older.hash(PASSWORD)
    await insert_user(service.database, name="ada", password_hash=stored, scopes=frozenset({"read"}))
    assert (await service.sign_in())[0] == 200
    user = await select_user(service.database, "ada")
    assert user is not None
    assert "m=8,t=1,p=1" in user.password_hash
    assert (await service.sign_in())[0] == 200


async def test_a_name_can_be_tried_so_often_only(service: Guarded) -> None:
    """After the last attempt even the right password is answered 429, by every replica, until the window is over."""
    await service.add_user()
    for _ in range(RULES.attempts_per_name):
        assert (await service.sign_in("ada", "wrong"))[0] == 400
    async with service.replica() as replica:
        for each in (service, replica):
            form = {"grant_type": "password", "username": "ada", "password": PASSWORD}
            async with each.client.post("/auth/token", data=form) as response:
                assert (response.status, (await response.json())["error"]) == (429, "temporarily_unavailable")
                assert 0 < int(response.headers["Retry-After"]) <= RULES.window.total_seconds()
    await let_time_pass(service, RULES.window)
    assert (await service.sign_in())[0] == 200


async def test_an_address_can_try_so_often_only(service: Guarded) -> None:
    """Trying a few passwords on many names is counted by address."""
    tried = [(await service.sign_in(f"user{number}", "wrong"))[0] for number in range(RULES.attempts_per_address + 2)]
    assert tried == [400] * RULES.attempts_per_address + [429] * 2


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_site_of_ipv6_counts_as_one_address(address: str, place: str) -> None:
    """Whoever has one address of IPv6 has 2 to the power of 64 of them."""
    assert place_of(address) == place


async def test_attempts_at_the_same_moment_count_too(service: Guarded) -> None:
    """However many guesses arrive together, no more of them are looked at than the limit says."""
    await service.add_user()
    tried = await asyncio.gather(*(service.sign_in("ada", f"guess {number}") for number in range(20)))
    statuses = [status for status, _ in tried]
    assert (statuses.count(400), statuses.count(429)) == (RULES.attempts_per_name, 20 - RULES.attempts_per_name)


async def test_signing_in_well_is_not_counted(service: Guarded) -> None:
    """Whoever knows the password may sign in as often as they like, and a mistake is forgiven."""
    await service.add_user()
    for _ in range(RULES.attempts_per_address):
        assert (await service.sign_in("ada", "wrong"))[0] == 400
        assert (await service.sign_in())[0] == 200
        await forget_address(service)
    assert (await service.sign_in())[0] == 200


async def test_counting_cannot_fill_the_database(service: Guarded) -> None:
    """Names and addresses share a fixed number of rows, and nobody without the key can tell who shares with whom."""
    key, other = b"k" * 32, b"o" * 32
    names = [f"name {number}" for number in range(1000)]
    assert all(SLOTS <= name_slot(name, key=key) < 2 * SLOTS for name in names)
    assert all(0 <= address_slot(name, key=key) < SLOTS for name in names)
    assert [name_slot(name, key=key) for name in names] != [name_slot(name, key=other) for name in names]
    # The row of the address, and that of the name; attempts that are refused leave none.
    for _ in range(RULES.attempts_per_address + 3):
        await service.sign_in("ada", "wrong")
    async with service.database.transaction() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(SignInRow)) == 2


async def let_time_pass(service: Guarded, passed: timedelta) -> None:
    async with service.database.transaction() as session:
        await session.execute(sa.update(SignInRow).values(began_at=SignInRow.began_at - sa.literal(passed)))


async def forget_address(service: Guarded) -> None:
    async with service.database.transaction() as session:
        await session.execute(sa.delete(SignInRow).where(SignInRow.slot < SLOTS))
