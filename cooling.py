"""When a source is to be left alone: what its answers say about being asked again. Deciding is pure functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

import structlog

from definitions import Source, WeightLimit
from errors import DatabaseError, SourceRefused
from store.cooldowns import upsert_cooldown
from store.database import Database

log = structlog.get_logger()

ASKED_TOO_OFTEN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
SHORTEST_BAN = timedelta(minutes=2)
"""How long a source that bans is left alone if it does not say; exchanges ban for two minutes at first."""
LONGEST_WAIT_SECONDS = 10.0**9
"""More than anybody waits, and less than timedelta can hold."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """How long a source is to be left alone, and why."""

    time: timedelta
    reason: str


def wait_after_refusal(error: SourceRefused, source: Source) -> Wait | None:
    """Return how long to leave a source alone that has refused, or None if it may be asked again.

    418 is how exchanges, which count weights, tell who went on asking after a 429 that they are banned.
    """
    seconds = error.retry_after_seconds
    asked = timedelta(seconds=min(seconds, LONGEST_WAIT_SECONDS)) if seconds else None
    if error.status == HTTPStatus.IM_A_TEAPOT and (asked or source.weight):
        return Wait(time=asked or SHORTEST_BAN, reason="it answered 418, by which it bans who asks too often")
    if error.status in ASKED_TOO_OFTEN and asked:
        return Wait(time=asked, reason=f"it answered {error.status} and asked to be left alone until then")
    return None


def wait_for_weight(limit: WeightLimit, headers: Mapping[str, str]) -> Wait | None:
    """Return how long to leave a source alone so that its weight limit is not reached, or None if that is far."""
    told = headers.get(limit.header, "")
    if not (told.isascii() and told.isdigit()) or int(told[:18]) < limit.limit * limit.stop_share:
        return None
    return Wait(
        time=timedelta(seconds=limit.window_seconds),
        reason=f"{told[:18]} of the {limit.limit} that it allows are used, as its header {limit.header} tells",
    )


@asynccontextmanager
async def heeding_refusals(database: Database, source: Source) -> AsyncIterator[None]:
    """Write down for everybody what a refusal of the source says about being asked again."""
    try:
        yield
    except SourceRefused as error:
        await _leave_alone(database, source, wait_after_refusal(error, source))
        raise


async def heed_weight(database: Database, source: Source, headers: Mapping[str, str]) -> None:
    """Write down for everybody that a source's limit is near, if its answer's headers say so."""
    if source.weight is not None:
        await _leave_alone(database, source, wait_for_weight(source.weight, headers))


async def _leave_alone(database: Database, source: Source, wait: Wait | None) -> None:
    if wait is None:
        return
    try:
        cooldown = await upsert_cooldown(database, source, wait=wait.time, reason=wait.reason)
    except DatabaseError as error:
        # What the source said is reported all the same; this process alone knows it then.
        log.warning("cooldown_not_written", source=source.name, cause=error.cause)
    else:
        if cooldown is not None:
            log.warning("source_cooling", source=source.name, until=cooldown.until.isoformat(), reason=cooldown.reason)
