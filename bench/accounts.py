"""What must hold whoever was killed on the way: every job is done, every mirror right, and nothing journaled twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from bench.small_feeds import changes_of, records_of

FEEDS_PER_SHARED_TABLE = 100
SHARED_EVERY = 10
"""One feed in so many is a scope of a shared table."""


class Wrong(Exception):
    """Something was lost, done twice, or is not what the feed says."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A small feed and where it goes."""

    number: int

    @property
    def name(self) -> str:
        return f"feed-{self.number:05}"

    @property
    def shares(self) -> bool:
        return self.number % SHARED_EVERY == SHARED_EVERY - 1

    @property
    def table(self) -> str:
        if self.shares:
            return f"shared_{self.number // (SHARED_EVERY * FEEDS_PER_SHARED_TABLE):03}"
        return f"feed_{self.number:05}"

    def entry(self, url: str) -> str:
        """Return the feed's entry of a sources file."""
        shared = f'table = "{self.table}"\nscope = {{ feed = {self.number} }}\n' if self.shares else ""
        return f'[sources.{self.name}]\nurl = "{url}"\n{shared}\n'


async def demand_all_done(connection: asyncpg.Connection, since: int, sources: Collection[str]) -> None:
    """Demand a good run of every source since a run, none that failed, and that nothing of any job is left."""
    runs = await connection.fetch("SELECT source, status FROM lockstep.runs WHERE id > $1", since)
    statuses = Counter(row["status"] for row in runs)
    if unwanted := statuses.keys() - {"succeeded", "unchanged", "interrupted"}:
        raise Wrong(f"runs ended {', '.join(sorted(unwanted))}: {statuses}")
    done = {row["source"] for row in runs if row["status"] != "interrupted"}
    if lost := set(sources) - done:
        raise Wrong(f"{len(lost)} jobs were lost, such as that of {min(lost)}")
    for table in ("pgqueuer", "job_starts", "parked"):
        if left := await connection.fetchval(f"SELECT count(*) FROM lockstep.{table}"):  # noqa: S608 - three constants
            raise Wrong(f"{left} rows are left in lockstep.{table}")


async def demand_journal(connection: asyncpg.Connection, since: int, synced: Mapping[Feed, int], rounds: int) -> int:
    """Demand that the journal since a run says what feeds did between their rounds and these, each thing once.

    Returns how many changes there were.
    """
    rows = await connection.fetch(
        """SELECT r.source, c.op, count(*) AS entries, count(DISTINCT c.key) AS keys
             FROM lockstep.changes c JOIN lockstep.runs r ON r.id = c.run WHERE c.run > $1 GROUP BY 1, 2""",
        since,
    )
    told = {feed.name: Counter[str]() for feed in synced}
    for row in rows:
        if row["entries"] != row["keys"]:
            raise Wrong(f"the journal has some {row['op']} row of {row['source']} twice")
        told[row["source"]][row["op"]] = row["entries"]
    for feed, before in synced.items():
        if told[feed.name] != (expected := changes_of(feed.number, before, rounds)):
            raise Wrong(f"the journal of {feed.name} tells of {told[feed.name]}, not of {expected}")
    return sum(row["entries"] for row in rows)


async def demand_mirrors(connection: asyncpg.Connection, synced: Mapping[Feed, int]) -> int:
    """Compare every value of every mirror with what its feed served after so many rounds; return how many records."""
    compared = 0
    shared = dict[str, dict[int, dict[int, Any]]]()
    for feed, rounds in synced.items():
        expected = {key: comparable(record) for key, record in records_of(feed.number, rounds).items()}
        if not feed.shares:
            found = await live_rows(connection, feed.table)
        else:
            if feed.table not in shared:
                shared[feed.table] = by_scope(await live_rows(connection, feed.table, "feed"))
            found = shared[feed.table].get(feed.number, {})
            expected = {key: {**record, "feed": feed.number} for key, record in expected.items()}
        if found != expected:
            raise Wrong(f"{feed.table} does not hold what {feed.name} serves")
        compared += len(found)
    return compared


def by_scope(rows: dict[Any, dict[str, Any]]) -> dict[int, dict[int, Any]]:
    """Part the rows of a shared table by the feed that they came from."""
    parted = dict[int, dict[int, Any]]()
    for (feed, key), row in rows.items():
        parted.setdefault(feed, {})[key] = row
    return parted


async def live_rows(connection: asyncpg.Connection, table: str, *scope: str) -> dict[Any, dict[str, Any]]:
    """Return the live rows of a mirror by key, as JSON values without the bookkeeping."""
    query = f"SELECT to_jsonb(t)::text FROM {table} t WHERE _sync_deleted_at IS NULL"  # noqa: S608 - names of our own
    rows = dict[Any, dict[str, Any]]()
    for (text,) in await connection.fetch(query):
        row = {name: value for name, value in json.loads(text).items() if not name.startswith("_sync_")}
        key = tuple(row[name] for name in (*scope, "id"))
        rows[key if scope else row["id"]] = comparable(row)
    return rows


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its instant as one, however that is spelled."""
    return {**record, "updated_at": datetime.fromisoformat(record["updated_at"])}
