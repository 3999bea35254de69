"""Cooldowns: a source that wants to be left alone is left alone, by every process, until the moment that it named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from cooling import SHORTEST_BAN, Wait, wait_after_refusal, wait_for_weight
from definitions import Source, WeightLimit
from errors import SourceCooling, SourceRefused
from store import Database
from store.cooldowns import LONGEST, select_cooldown, upsert_cooldown
from store.pauses import pause, resume
from store.runs import select_runs
from sync import plan_data, sync_data, verify_data
from tests.exchange import IN_MAINTENANCE, PRICES_PATH, WEIGHT_LIMIT, Exchange, refusal
from undoing import undo_run

WEIGHT = WeightLimit(header="X-MBX-USED-WEIGHT-1M", limit=WEIGHT_LIMIT, window_seconds=60, stop_share=0.8)
WEIGHED = Source(name="rates", url="http://127.0.0.1", weight=WEIGHT)


class Clock:
    """The exchange's clock, which a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def exchange() -> AsyncIterator[Exchange]:
    async with Exchange(symbols=20, clock=Clock()) as exchange:
        yield exchange


@pytest.fixture
def source(exchange: Exchange) -> Source:
    return Source(name="rates", url=exchange.url, key=("symbol",), table="rates", types={"price": "numeric"},
                  attempts=2, weight=WEIGHT)  # fmt: skip


def refused(status: int, seconds: float | None) -> SourceRefused:
    return SourceRefused("x", status=status, retry_after_seconds=seconds)


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [
        (418, 300.0, 300.0), (418, None, SHORTEST_BAN.total_seconds()), (418, 0.0, SHORTEST_BAN.total_seconds()),
        (429, 60.0, 60.0), (503, 3600.0, 3600.0), (429, None, None), (429, 0.0, None), (503, None, None),
        (500, 60.0, None), (401, 60.0, None), (404, None, None),
    ],
)  # fmt: skip
def test_what_a_refusal_says(status: int, asked: float | None, seconds: float | None) -> None:
    """A ban counts whatever it says, 429 and 503 where they name a time, and nothing else is about asking too often."""
    wait = wait_after_refusal(refused(status, asked), WEIGHED)
    assert (wait.time.total_seconds() if wait else None) == seconds


@given(st.floats(0, 10.0**300))
def test_no_wait_is_too_long_to_be_told(seconds: float) -> None:
    """Whatever number a source sends, it is a length of time."""
    assert wait_after_refusal(refused(418, seconds), WEIGHED)


def test_a_teapot_is_no_ban() -> None:
    """Of a source that counts no weights, a bare 418 says nothing about asking too often."""
    assert wait_after_refusal(refused(418, None), replace(WEIGHED, weight=None)) is None


@pytest.mark.parametrize(
    ("told", "waits"),
    [("4799", False), ("4800", True), ("6001", True), ("9" * 500, True), ("", False), ("-1", False), ("many", False),
     ("٤٨٠٠", False)],
)  # fmt: skip
def test_what_a_weight_says(told: str, waits: bool) -> None:
    """From the share on at which it is to stop, a source is left alone for one window."""
    expected = timedelta(seconds=60) if waits else None
    wait = wait_for_weight(WEIGHT, {WEIGHT.header: told})
    assert (wait.time if wait else None) == expected
    assert wait_for_weight(WEIGHT, {}) is None


async def test_over_the_limit_the_source_is_left_alone(database: Database, source: Source, exchange: Exchange) -> None:
    """After a 429 nobody asks again before the time that it named: no attempt, no run, no plan, no verification."""
    await sync_data(database, source)
    exchange.weight_before = WEIGHT_LIMIT
    with pytest.raises(SourceRefused) as told:
        await sync_data(database, source)
    assert told.value.status == 429
    assert exchange.asked == [PRICES_PATH] * 2
    cooldown = await select_cooldown(database, source)
    assert cooldown is not None
    assert 0 < cooldown.seconds_left <= 60
    exchange.weight_before = 0
    for asking in (sync_data, plan_data, verify_data):
        with pytest.raises(
            SourceCooling, match=r"rates must not be asked again before .* UTC: it answered 429"
        ) as kept:
            await asking(database, source)
        assert kept.value.until == cooldown.until
        assert 0 < kept.value.retry_after_seconds <= 60
    assert exchange.asked == [PRICES_PATH] * 2
    assert len(await select_runs(database)) == 2


async def test_a_ban_is_minded_until_it_ends(database: Database, source: Source, exchange: Exchange) -> None:
    """418 stores the ban; others may be asked meanwhile; resuming ends it, and so does its moment."""
    banned = refusal(418, -1003, "Way too much request weight used; IP banned until 1.", retry_after=259_200)
    exchange.failure = banned
    with pytest.raises(SourceRefused):
        await sync_data(database, source)
    exchange.failure = None
    with pytest.raises(SourceCooling, match="418"):
        await sync_data(database, source)
    assert (await sync_data(database, replace(source, name="others", table="others"))).status == "succeeded"
    assert await resume(database, source)
    assert not await resume(database, source)
    assert (await sync_data(database, source)).status == "succeeded"
    assert await upsert_cooldown(database, source, wait=timedelta(0), reason="over at once") is None
    assert (await sync_data(database, source)).status == "unchanged"


async def test_who_goes_on_asking_is_banned(database: Database, source: Source, exchange: Exchange) -> None:
    """The stand-in escalates as the exchange does; whoever ends the wait by hand learns of the ban."""
    exchange.weight_before = WEIGHT_LIMIT
    for status in (429, 418, 418):
        with pytest.raises(SourceRefused) as told:
            await sync_data(database, source)
        assert told.value.status == status
        assert await resume(database, source)


async def test_near_the_limit_the_source_is_left_alone(database: Database, source: Source, exchange: Exchange) -> None:
    """What was fetched near the limit is recorded, and then nobody asks for a window."""
    exchange.weight_before = int(WEIGHT_LIMIT * 0.8)
    assert (await sync_data(database, source)).status == "succeeded"
    with pytest.raises(SourceCooling, match="4804 of the 6000 that it allows are used"):
        await sync_data(database, source)
    assert exchange.asked == [PRICES_PATH]


async def test_maintenance_without_a_time_is_tried_again(
    database: Database, source: Source, exchange: Exchange
) -> None:
    """A page of HTML with 503 fails the run, and the next one asks again."""
    await sync_data(database, source)
    exchange.failure = IN_MAINTENANCE
    with pytest.raises(SourceRefused, match="503"):
        await sync_data(database, replace(source, attempts=1))
    exchange.failure = None
    assert (await sync_data(database, source)).status == "unchanged"


async def test_a_wrong_key_is_no_reason_to_wait(database: Database, source: Source, exchange: Exchange) -> None:
    """401 is told as it is, at every attempt."""
    exchange.valid_keys = {"right"}
    with_key = replace(source, headers={"X-MBX-APIKEY": "wrong"})
    for _ in range(2):
        with pytest.raises(SourceRefused, match="401"):
            await sync_data(database, with_key)
    assert (await sync_data(database, replace(source, headers={"X-MBX-APIKEY": "right"}))).status == "succeeded"
    assert exchange.keys == ["wrong", "wrong", "right"]


async def test_undoing_needs_no_source(database: Database, source: Source, exchange: Exchange) -> None:
    """A run can be taken back while the source is cooling; a paused source is still paused when it has cooled."""
    await sync_data(database, source)
    exchange.move("BTCUSDT")
    run = (await sync_data(database, source)).run
    await upsert_cooldown(database, source, wait=timedelta(hours=1), reason="a test")
    assert (await undo_run(database, source, run)).counts.updated == 1
    assert not await pause(database, source, reason="again")
    assert await resume(database, source)
    assert await select_cooldown(database, source) is None
    assert (await sync_data(database, source)).counts.updated == 1


async def test_the_longer_wait_counts(database: Database, source: Source) -> None:
    """A shorter wait does not end a longer one, and none is longer than three days."""
    long = await upsert_cooldown(database, source, wait=timedelta(days=400), reason="long")
    assert long is not None
    assert LONGEST.total_seconds() - 60 < long.seconds_left <= LONGEST.total_seconds()
    after = await upsert_cooldown(database, source, wait=timedelta(seconds=5), reason="short")
    assert after is not None
    assert (after.until, after.reason) == (long.until, "long")


def test_waits_tell_why() -> None:
    """Both kinds of wait carry a reason that can stand in a sentence."""
    for wait in (wait_after_refusal(refused(429, 1.0), WEIGHED), wait_for_weight(WEIGHT, {WEIGHT.header: "6000"})):
        assert isinstance(wait, Wait)
        assert wait.reason
