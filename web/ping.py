"""Whether the service answers, and the exchange behind its prices, and how fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from quart import Blueprint, Response, current_app
from quart.blueprints import BlueprintSetupState

import sources
from cooling import heed_weight, heeding_refusals
from definitions import EMPTY, Source
from errors import DatabaseError, LockstepError, SourceTimeout
from presets import PING_PATHS
from store.cooldowns import demand_cooled
from web import parameters
from web.answers import ping_answer
from web.service import Service, current_service
from web.symbols import rates_source

PING_SECONDS = 3.0
"""How long an exchange may take; what takes longer is no use to whoever asks."""
KEPT_SECONDS = 1.0
"""How long an answer is good for, so that nobody can make the service hammer the exchange."""
PINGS = "lockstep.pings"

blueprint = Blueprint("ping", __name__)


@dataclass(frozen=True, kw_only=True)
class Pinged:
    """How one of them answered."""

    latency_ms: float | None = None
    error: LockstepError | None = None


class Pings:
    """The exchange's last answer, which all who ask at the same time share."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last = Pinged()
        self._good_until = 0.0

    async def exchange(self, service: Service, source: Source) -> Pinged:
        """Ask the exchange, unless that was done just now."""
        async with self._lock:
            if time.monotonic() >= self._good_until:
                self._last = await timed(lambda: ask_exchange(service, source))
                self._good_until = time.monotonic() + KEPT_SECONDS
            return self._last


@blueprint.record_once
def keep_pings(state: BlueprintSetupState) -> None:
    """Have every application keep its own."""
    state.app.extensions[PINGS] = Pings()


@blueprint.get("/ping")
async def ping() -> Response:
    """Say how fast the database and the exchange answer; 503 if one of them does not."""
    parameters.only()
    service, source = current_service(), rates_source(current_service())
    pings: Pings = current_app.extensions[PINGS]
    own = await timed(service.check)
    exchange = await pings.exchange(service, source)
    parts: dict[str, Any] = {
        "service": part_content(own),
        "exchange": {"url": sources.redact(pinged(source).url), **part_content(exchange, unasked=True)},
    }
    return ping_answer(own.error or exchange.error, parts)


async def timed(ask: Callable[[], Awaitable[None]]) -> Pinged:
    """Ask, and return how long that took or why it failed."""
    began = time.perf_counter()
    try:
        await ask()
    except LockstepError as error:
        return Pinged(error=error)
    return Pinged(latency_ms=round((time.perf_counter() - began) * 1000, 1))


async def ask_exchange(service: Service, source: Source) -> None:
    """Make one small request at the exchange, unless it is to be left alone; heed what it says about that."""
    database = service.database
    async with database.transaction() as session:
        await demand_cooled(session, source.name)
    try:
        async with (
            heeding_refusals(database, source),
            asyncio.timeout(PING_SECONDS),
            sources.open_feed(pinged(source)) as feed,
        ):
            await heed_weight(database, source, feed.response_headers)
    except TimeoutError as exc:
        raise SourceTimeout(f"The exchange did not answer within {PING_SECONDS:g} s.") from exc


def pinged(source: Source) -> Source:
    """Return where a source says that it is there, as a source."""
    parts = urlsplit(source.url)
    url = urlunsplit((parts.scheme, parts.netloc, PING_PATHS[source.preset or ""], "", ""))
    return replace(source, url=url, method="GET", body=None, params=EMPTY, paging=None, total=None, rate_limit=None)


def part_content(part: Pinged, *, unasked: bool = False) -> dict[str, Any]:
    """Return how one of them answered; `unasked` says that it is not asked while the database is away."""
    if part.error is None:
        return {"status": "ok", "latency_ms": part.latency_ms}
    # Without the database nobody knows whether the exchange may be asked.
    status = "unknown" if unasked and isinstance(part.error, DatabaseError) else "down"
    return {"status": status, "latency_ms": None, "code": part.error.code}
