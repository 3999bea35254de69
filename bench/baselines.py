"""What PostgreSQL and the network cost by themselves: the floors that the service is measured against."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp

from bench.database import Database
from bench.feed import COPY_COLUMNS

BARE_TABLE = "bare"
CREATE_BARE_TABLE = f"""
CREATE TABLE {BARE_TABLE} (
    id bigint PRIMARY KEY, sku text, name text, price double precision, stock bigint, active boolean,
    updated_at timestamptz, tags jsonb, description text,
    _sync_fingerprint uuid,
    _sync_created_at timestamptz DEFAULT now(),
    _sync_updated_at timestamptz DEFAULT now(),
    _sync_deleted_at timestamptz
)
"""
SELECT_FINGERPRINTS = f"SELECT _sync_fingerprint FROM {BARE_TABLE} WHERE _sync_deleted_at IS NULL"  # noqa: S608 - constants


async def measure_bare_copy(database: Database, rows: Path) -> float:
    """Return the seconds that one binary COPY of `rows` into a fresh keyed table takes, commit included."""
    async with database.connect() as connection:
        await connection.execute(f"DROP TABLE IF EXISTS {BARE_TABLE}")
        await connection.execute(CREATE_BARE_TABLE)
        await connection.execute("CHECKPOINT")
        start = time.perf_counter()
        await connection.copy_to_table(BARE_TABLE, source=rows, columns=COPY_COLUMNS, format="binary")
        return time.perf_counter() - start


async def measure_download(url: str) -> float:
    """Return the seconds that fetching the feed takes when every byte is thrown away."""
    start = time.perf_counter()
    async with aiohttp.ClientSession(read_bufsize=1 << 20) as http, http.get(url) as response:
        async for _ in response.content.iter_any():
            pass
    return time.perf_counter() - start


async def measure_fingerprints_out(database: Database) -> float:
    """Return the seconds that one binary COPY of all fingerprints out of the bare table takes."""

    async def throw_away(_chunk: bytes) -> None: ...

    async with database.connect() as connection:
        start = time.perf_counter()
        await connection.copy_from_query(SELECT_FINGERPRINTS, output=throw_away, format="binary")
        return time.perf_counter() - start
