"""Ticking: the schedules of this node's file kept as rows, and their ticks turned into jobs when they are due."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import telemetry
from schedules import Tick, longest_wait
from store import jobs
from store import schedules as rows
from store.database import Database
from store.job_engine import Patience
from store.jobs import Order

CLAIMED_AT_ONCE = 500
"""Ticks; more are claimed in further transactions, so that none takes long."""
SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 2.0
"""Between two looks for ticks; what is due may be changed by other nodes, and the clock by anybody."""
KEEP_SECONDS = 300.0
"""Between two looks after the rows of the schedules, the jobs, and what the job engine has logged."""
GIVE_WAY_EVERY = 50
"""How many moments are computed before others get their turn."""

log = telemetry.get_logger(__name__)


class Ticker:
    """Turns ticks into jobs until it is told to stop; any number of them may do so at once."""

    def __init__(self, database: Database, ticks: Sequence[Tick], *, patiently: Patience, wake: jobs.Wake) -> None:
        self._database = database
        self._ticks = {tick.identity: tick for tick in ticks}
        self._patiently = patiently
        self._wake = wake
        self._mine: dict[int, Tick] = {}
        self._foreign: set[int] = set()
        """Rows that were met and that this node's file does not have."""

    async def tick(self, stopping: asyncio.Event) -> None:
        """Turn ticks into jobs as they become due."""
        keep_at = time.monotonic()
        while not stopping.is_set():
            if time.monotonic() >= keep_at:
                await self._patiently(self.keep)
                keep_at = time.monotonic() + KEEP_SECONDS
            wait_seconds = await self._patiently(self.enqueue_due)
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), wait_seconds)

    async def keep(self) -> None:
        """Bring the rows in line with this node's file."""
        names = {tick.source.name for tick in self._ticks.values()}
        known = await rows.select_ids(self._database, names)
        new = [tick for identity, tick in self._ticks.items() if identity not in known]
        if new:
            await rows.insert_schedules(self._database, await self._planned(new))
            known = await rows.select_ids(self._database, names)
        self._mine = {known[identity]: tick for identity, tick in self._ticks.items()}
        self._foreign.clear()
        removed = await rows.keep_schedules(self._database, self._mine)
        await jobs.keep_jobs(self._database)
        if new or removed:
            log.info("schedules_changed", added=len(new), removed=removed)

    async def _planned(self, ticks: Sequence[Tick]) -> list[rows.Planned]:
        """Return the rows for schedules that are new."""
        due = await _next_ticks(dict(enumerate(ticks)), await rows.select_now(self._database))
        return [
            rows.Planned(identity=tick.identity, longest_wait=longest_wait(tick.schedule), due=due[number])
            for number, tick in enumerate(ticks)
        ]

    async def enqueue_due(self) -> float:
        """Turn what is due into jobs, in one transaction; return for how many seconds there is nothing more to do."""
        async with self._database.transaction() as session:
            claimed = await rows.claim_ticks(session, foreign=self._foreign, limit=CLAIMED_AT_ONCE)
            due = {id_: self._mine[id_] for id_ in claimed.ids if id_ in self._mine}
            self._foreign.update(id_ for id_ in claimed.ids if id_ not in self._mine)
            if due:
                await rows.update_ticks(session, await _next_ticks(due, claimed.moment))
            orders = [Order(source=tick.source.name, mode=tick.schedule.mode) for tick in due.values()]
            skipped = await jobs.insert_jobs(session, orders)
        for order in skipped:
            log.info("tick_skipped", source=order.source, mode=order.mode, reason="the one before is still under way")
        if len(skipped) < len(orders):
            await self._wake()
        if len(claimed.ids) == CLAIMED_AT_ONCE:
            return 0.0
        return min(max(claimed.wait_seconds, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS)


async def _next_ticks(ticks: dict[int, Tick], moment: datetime) -> dict[int, datetime]:
    """Return when each is due next, however many ticks were missed, a little later at random where that is wanted."""
    due = {}
    for number, (id_, tick) in enumerate(ticks.items()):
        late_seconds = random.uniform(0, tick.schedule.jitter_seconds)  # noqa: S311 (nothing secret)
        due[id_] = tick.next_after(moment) + timedelta(seconds=late_seconds)
        if number % GIVE_WAY_EVERY == GIVE_WAY_EVERY - 1:
            await asyncio.sleep(0)
    return due
