"""Users, service tokens, and how often somebody has tried to sign in."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from datetime import timedelta
from typing import cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from access import TOKEN_PREFIX, Scope, ServiceToken, ServiceTokenRow, SignInRow, User, UserRow, known_scopes
from errors import DatabaseError, TooManyAttempts
from store.database import Database

TOKEN_BYTES = 32
TOUCH_INTERVAL = timedelta(minutes=1)
"""How exactly the last use of a token is known; writing at every request would cost more than it tells."""

SLOTS = 2**16
"""How many slots there are for addresses, and as many for names; so the table is bounded whoever attacks."""


async def insert_user(database: Database, *, name: str, password_hash: str, scopes: frozenset[Scope]) -> User | None:
    """Add a user; return None if the name is taken."""
    async with database.transaction() as session:
        row = await session.scalar(
            insert(UserRow)
            .values(name=name, password_hash=password_hash, scopes=sorted(scopes))
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(UserRow)
        )
        return _user(row) if row else None


async def select_user(database: Database, name: str) -> User | None:
    """Return the user with this name, or None."""
    async with database.transaction() as session:
        row = await session.scalar(sa.select(UserRow).where(UserRow.name == name))
        return _user(row) if row else None


async def select_user_by_id(database: Database, user: int) -> User | None:
    """Return the user with this id, or None."""
    async with database.transaction() as session:
        row = await session.get(UserRow, user)
        return _user(row) if row else None


async def select_users(database: Database) -> list[User]:
    """Return all users by name."""
    async with database.transaction() as session:
        return [_user(row) for row in await session.scalars(sa.select(UserRow).order_by(UserRow.name))]


async def update_password_hash(database: Database, *, user: int, old: str, new: str) -> None:
    """Store a user's password hashed anew, unless it was changed meanwhile."""
    async with database.transaction() as session:
        await session.execute(
            sa.update(UserRow).where(UserRow.id == user, UserRow.password_hash == old).values(password_hash=new)
        )


async def delete_user(database: Database, name: str) -> bool:
    """Remove a user; return whether there was one."""
    async with database.transaction() as session:
        return await session.scalar(sa.delete(UserRow).where(UserRow.name == name).returning(UserRow.id)) is not None


async def insert_token(
    database: Database, *, name: str, scopes: frozenset[Scope], lifetime: timedelta | None = None
) -> tuple[ServiceToken, str]:
    """Make a token; return what is kept of it, and the token itself, which nobody can be shown again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires_at = None if lifetime is None else sa.func.clock_timestamp() + sa.literal(lifetime)
    async with database.transaction() as session:
        row = await session.scalar(
            insert(ServiceTokenRow)
            .values(name=name, digest=digest(token), scopes=sorted(scopes), expires_at=expires_at)
            .returning(ServiceTokenRow)
        )
        return _token(cast("ServiceTokenRow", row)), token


async def select_tokens(database: Database) -> list[ServiceToken]:
    """Return all tokens in the order in which they were made."""
    async with database.transaction() as session:
        return [_token(row) for row in await session.scalars(sa.select(ServiceTokenRow).order_by(ServiceTokenRow.id))]


async def use_token(database: Database, token: str) -> ServiceToken | None:
    """Return what is kept of a token that is valid now, and note its use; None if it is not valid."""
    fresh = ServiceTokenRow.last_used_at > sa.func.clock_timestamp() - sa.literal(TOUCH_INTERVAL)
    query = sa.select(ServiceTokenRow, sa.func.coalesce(fresh, sa.false())).where(
        ServiceTokenRow.digest == digest(token),
        sa.or_(ServiceTokenRow.expires_at.is_(None), ServiceTokenRow.expires_at > sa.func.clock_timestamp()),
    )
    async with database.transaction() as session:
        found = (await session.execute(query)).one_or_none()
    if found is None:
        return None
    row, is_fresh = found
    if not is_fresh:
        # A database that cannot be written to must not keep anybody from reading.
        with suppress(DatabaseError):
            await _touch_token(database, row.id)
    return _token(row)


async def _touch_token(database: Database, token: int) -> None:
    unlocked = sa.select(ServiceTokenRow.id).where(ServiceTokenRow.id == token).with_for_update(skip_locked=True)
    async with database.transaction() as session:
        await session.execute(
            sa.update(ServiceTokenRow)
            .where(ServiceTokenRow.id == unlocked.scalar_subquery())
            .values(last_used_at=sa.func.clock_timestamp())
        )


async def delete_token(database: Database, token: int) -> ServiceToken | None:
    """Revoke a token; return what was kept of it, or None if there is none with this id."""
    async with database.transaction() as session:
        row = await session.scalar(
            sa.delete(ServiceTokenRow).where(ServiceTokenRow.id == token).returning(ServiceTokenRow)
        )
        return _token(row) if row else None


def digest(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def address_slot(address: str, *, key: bytes) -> int:
    """Return the slot in which an address is counted; without `key` nobody can aim at the slot of another one."""
    return _slot(address, key)


def name_slot(name: str, *, key: bytes) -> int:
    """Return the slot in which a user's name is counted, be there such a user or not."""
    return SLOTS + _slot(name, key)


def _slot(text: str, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), key=key, digest_size=8).digest(), "big") % SLOTS


async def count_attempt(database: Database, *, slots: dict[int, int], window: timedelta) -> None:
    """Count one attempt in each slot; raise TooManyAttempts, and count none, where one has reached its number.

    Counted before the password is looked at, so that no number of attempts at the same moment exceeds the limit.
    """
    async with database.transaction() as session:
        # In one order always, or two attempts could wait for each other.
        for slot, most in sorted(slots.items()):
            await _count(session, slot, most, window)


async def _count(session: AsyncSession, slot: int, most: int, window: timedelta) -> None:
    moment = sa.func.clock_timestamp()
    over = SignInRow.began_at + sa.literal(window) <= moment
    counted = await session.scalar(
        insert(SignInRow)
        .values(slot=slot, attempts=1, began_at=moment)
        .on_conflict_do_update(
            index_elements=["slot"],
            set_={
                "attempts": sa.case((over, 1), else_=SignInRow.attempts + 1),
                "began_at": sa.case((over, moment), else_=SignInRow.began_at),
            },
            where=sa.or_(over, SignInRow.attempts < most),
        )
        .returning(SignInRow.slot)
    )
    if counted is None:
        until = sa.func.extract("epoch", SignInRow.began_at + sa.literal(window) - moment)
        left = await session.scalar(sa.select(sa.cast(until, sa.Double)).where(SignInRow.slot == slot))
        raise TooManyAttempts("There were too many attempts to sign in.", retry_after_seconds=max(left or 0.0, 1.0))


async def forgive_attempt(database: Database, *, address: int, name: int) -> None:
    """Take back what a sign-in that succeeded was counted for; the name begins anew."""
    async with database.transaction() as session:
        await session.execute(
            sa.update(SignInRow)
            .where(SignInRow.slot == address, SignInRow.attempts > 0)
            .values(attempts=SignInRow.attempts - 1)
        )
        await session.execute(sa.update(SignInRow).where(SignInRow.slot == name).values(attempts=0))


def _user(row: UserRow) -> User:
    return User(
        id=row.id,
        name=row.name,
        scopes=known_scopes(row.scopes),
        created_at=row.created_at,
        password_hash=row.password_hash,
    )


def _token(row: ServiceTokenRow) -> ServiceToken:
    return ServiceToken(
        id=row.id,
        name=row.name,
        scopes=known_scopes(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
