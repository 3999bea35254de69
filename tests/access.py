"""What the tests of access share: a service with a secret key, users, tokens, and a way to sign in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aiohttp
from argon2 import PasswordHasher

from access import Scope, ServiceToken, User
from app import create_app
from config import load_settings
from store import Database
from store.access import insert_token, insert_user
from tests.service import Feed, served
from web.passwords import Passwords
from web.sign_in import SignInRules

SECRET_KEY = "canary-secret-key-0123456789abcdef"  # noqa: S105
PASSWORD = "canary horse battery staple"  # noqa: S105

QUICK = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
"""As little work as argon2 can be given, so that tests are about everything else."""

RULES = SignInRules(passwords=QUICK, attempts_per_name=3, attempts_per_address=8, window=timedelta(minutes=5))


@dataclass
class Guarded:
    """A service that asks who is calling."""

    client: aiohttp.ClientSession
    database: Database
    feed: Feed
    settings: dict[str, Any] = field(default_factory=dict)

    async def add_user(self, name: str = "ada", *scopes: Scope) -> User:
        hashed = await QUICK.hash(PASSWORD)
        user = await insert_user(self.database, name=name, password_hash=hashed, scopes=frozenset(scopes or ("read",)))
        assert user is not None
        return user

    async def add_token(self, *scopes: Scope, lifetime: timedelta | None = None) -> tuple[ServiceToken, str]:
        return await insert_token(self.database, name="cron", scopes=frozenset(scopes), lifetime=lifetime)

    async def sign_in(self, name: str = "ada", password: str = PASSWORD, **fields: str) -> tuple[int, Any]:
        form = {"grant_type": "password", "username": name, "password": password, **fields}
        async with self.client.post("/auth/token", data=form) as response:
            return response.status, await response.json()

    async def call(self, token: str | None, path: str = "/runs", method: str = "GET", **options: Any) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.client.request(method, path, headers=headers, **options) as response:
            await response.read()
            return response.status

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Guarded]:
        """Serve another one on the same database."""
        async with served(create_app(load_settings(**self.settings), sign_in_rules=RULES)) as client:
            yield Guarded(client, self.database, self.feed, self.settings)


@asynccontextmanager
async def guarded(feed: Feed, database_url: str, database: Database, **given: Any) -> AsyncIterator[Guarded]:
    """Serve with a secret key, as if from elsewhere."""
    settings = {
        "source_url": feed.url,
        "database_url": database_url,
        "settle_seconds": 0,
        "source_attempts": 1,
        "secret_key": SECRET_KEY,
        "require_token": True,
    } | given
    async with served(create_app(load_settings(**settings), sign_in_rules=RULES)) as client:
        yield Guarded(client, database, feed, settings)


def valid_claims(user: User, **others: Any) -> dict[str, Any]:
    """Return the claims of an access token that is valid now, with `others` in place of or beside them."""
    moment = int(time.time())
    claims = {
        "iss": "lockstep", "aud": "lockstep", "sub": str(user.id), "scope": "read", "iat": moment, "exp": moment + 60,
        "jti": "1",
    }  # fmt: skip
    return {name: value for name, value in (claims | others).items() if value is not None}
