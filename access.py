"""Who may do what: scopes, callers and what they prove themselves with, and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models import ServiceBase, Timestamp, now

Scope = Literal["read", "sync", "admin"]
"""`read` sees runs and changes, `sync` plans and syncs, `admin` may do that and everything else."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

TOKEN_PREFIX = "ls_"  # noqa: S105 (what such a token begins with)
"""By which people, logs and scanners for leaked secrets know a service token."""


def known_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes among `words`; what is no scope grants nothing."""
    named = frozenset(words)
    return frozenset(scope for scope in SCOPES if scope in named)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever is behind a request, and what they may do."""

    name: str
    """For the log: `ada`, `token 7`, `secret key`, `this machine`."""
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Tell whether the caller may do what needs `scope`."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, kw_only=True)
class User:
    """A person who signs in with a password."""

    id: int
    """Never given to another user, not even to a later one of the same name."""
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    password_hash: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ServiceToken:
    """What is known of a long-lived token; the token itself is not."""

    id: int
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class UserRow(ServiceBase):
    """A person who signs in with a password."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text, unique=True)
    password_hash: Mapped[str] = mapped_column(sa.Text)
    """By argon2id, with salt and parameters."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=now)


class ServiceTokenRow(ServiceBase):
    """A long-lived token for a program."""

    __tablename__ = "service_tokens"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text)
    digest: Mapped[bytes] = mapped_column(sa.LargeBinary, unique=True)
    """SHA-256 of the token; its 256 random bits need no slow hash."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=now)
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)


class SignInRow(ServiceBase):
    """How many sign-ins failed of late in one slot; addresses and names share a fixed number of slots."""

    __tablename__ = "sign_ins"

    slot: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    attempts: Mapped[int] = mapped_column(sa.Integer)
    began_at: Mapped[datetime] = mapped_column(Timestamp)
