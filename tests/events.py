"""A client of event streams: it reads what a browser's EventSource would, and remembers where it was."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import sqlalchemy as sa

from store import Database
from tests.service import get


@dataclass(frozen=True, kw_only=True)
class Event:
    """What was dispatched; the last id counts for it even if it came alone."""

    seq: int
    name: str
    content: Any


@dataclass(kw_only=True)
class EventStream:
    """The stream's lines, parsed as the HTML standard says."""

    response: aiohttp.ClientResponse
    last_id: str = ""
    comments: int = 0
    lines: list[str] = field(default_factory=list)

    async def blocks(self) -> AsyncGenerator[dict[str, str], None]:
        """Yield what stands between two blank lines, until the stream ends."""
        block: dict[str, str] = {}
        async for raw in self.response.content:
            line = raw.decode().removesuffix("\n")
            self.lines.append(line)
            if not line:
                self.last_id = block.get("id", self.last_id)
                yield block
                block = {}
            elif line.startswith(":"):
                self.comments += 1
            else:
                name, _, value = line.partition(":")
                assert name not in block, "what is sent is on one line"
                block[name] = value.removeprefix(" ")

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events that have data."""
        async for block in self.blocks():
            if "data" in block:
                yield Event(seq=int(self.last_id), name=block["event"], content=json.loads(block["data"]))

    async def take(self, count: int) -> list[Event]:
        """Return the next events, as many as are wanted."""
        taken: list[Event] = []
        async with aclosing(self.events()) as events:
            async for event in events:
                taken.append(event)
                if len(taken) == count:
                    break
        return taken


@asynccontextmanager
async def follow(
    client: aiohttp.ClientSession, query: str = "", *, last_id: str | None = None, token: str | None = None
) -> AsyncIterator[EventStream]:
    """Open a stream of `/changes`, which has begun once this yields."""
    headers = {"Accept": "text/event-stream"}
    headers |= {} if last_id is None else {"Last-Event-ID": last_id}
    headers |= {} if token is None else {"Authorization": f"Bearer {token}"}
    no_limit = aiohttp.ClientTimeout(total=None, sock_read=30)
    async with client.get(f"/changes{query}", headers=headers, timeout=no_limit) as response:
        assert response.status == 200, await response.text()
        stream = EventStream(response=response)
        opening = await anext(stream.blocks())
        assert opening.keys() == {"retry", "id"}
        yield stream


async def all_pages(client: aiohttp.ClientSession, query: str = "", *, limit: int = 1000) -> list[Event]:
    """Read the journal to its end, page by page."""
    found: list[Event] = []
    after, before = 0, -1
    while after != before:
        before = after
        _, page = await get(client, f"/changes?after={after}&limit={limit}{query}")
        found += sorted(entries_of(page), key=lambda event: event.seq)
        after = page["next"]
    return found


def entries_of(page: Any) -> list[Event]:
    """Return the entries of a page, as the stream has them."""
    kinds = (("change", page["changes"]), ("first_load", page.get("first_loads", [])))
    return [Event(seq=content["seq"], name=name, content=content) for name, entries in kinds for content in entries]


async def journal(database: Database) -> list[tuple[int, str]]:
    """Return number and table of all that is in the journal, read otherwise than the service does."""
    loads = "SELECT last_seq, mirror FROM lockstep.runs WHERE first_load AND last_seq IS NOT NULL"
    async with database.transaction() as session:
        found = await session.execute(sa.text(f"SELECT seq, mirror FROM lockstep.changes UNION ALL {loads} ORDER BY 1"))
        return [(seq, table) for seq, table in found]
