"""Passwords: hashed by argon2id in a thread, so that the loop goes on serving."""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from base64 import b64encode

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

AT_ONCE = 2
"""How many are hashed at the same moment in one process; each takes 64 MiB and a core."""

SHORTEST_PASSWORD = 8


class Passwords:
    """Hashes passwords, and compares them with their hashes."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()  # the second recommendation of RFC 9106
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def hash(self, password: str) -> str:
        """Return what is stored of a password."""
        async with self._turns:
            return await asyncio.to_thread(self._hasher.hash, _normalized(password))

    async def match(self, stored: str | None, password: str) -> bool:
        """Tell whether this is the password that was stored; where there is none, take the same time to say no."""
        async with self._turns:
            return await asyncio.to_thread(self._matches, stored or self._nobodys_hash(), password)

    def are_outdated(self, stored: str) -> bool:
        """Tell whether a password is stored with other parameters than those of today."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _normalized(password))
        except (VerificationError, InvalidHashError):
            return False

    def _nobodys_hash(self) -> str:
        """Return a hash that no password has, with the parameters of those that some password has."""
        hasher = self._hasher
        parameters = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
        salt, digest = (
            b64encode(secrets.token_bytes(length)).decode().rstrip("=") for length in (hasher.salt_len, hasher.hash_len)
        )
        return f"$argon2id$v=19${parameters}${salt}${digest}"


def _normalized(password: str) -> str:
    """Return a password as every keyboard and system spells it (NIST SP 800-63B, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)
