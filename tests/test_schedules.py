"""When ticks come, whatever the clocks of a country do."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from definitions import Schedule
from errors import SettingError
from schedules import next_tick

CHANGES = [
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
]
"""Days on which clocks are changed, and where."""


def ticks(schedule: Schedule, begin: datetime, end: datetime) -> list[datetime]:
    """Return all ticks between two moments."""
    found = [next_tick(schedule, "shop", begin)]
    while found[-1] < end:
        found.append(next_tick(schedule, "shop", found[-1]))
    return found[:-1]


def around(zone: str, day: date) -> tuple[datetime, datetime]:
    """Return midnight three days before a day, and three days after it."""
    noon = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    return (noon - timedelta(days=3)).astimezone(UTC), (noon + timedelta(days=3)).astimezone(UTC)


@pytest.mark.parametrize("minute", ["30 2", "30 1", "0 3"])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_fixed_time_comes_once_a_day(zone: str, day: date, minute: str) -> None:
    """A time of day comes exactly once on the day the clocks change, be it left out or repeated."""
    found = ticks(Schedule(cron=f"{minute} * * *", time_zone=zone), *around(zone, day))
    days = Counter(moment.astimezone(ZoneInfo(zone)).date() for moment in found)
    assert days == {day + timedelta(days=offset): 1 for offset in range(-3, 3)}


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_cron_every_few_minutes_goes_by_elapsed_time(zone: str, day: date) -> None:
    """An expression that fits any hour neither pauses nor doubles when the clocks change."""
    found = ticks(Schedule(cron="*/15 * * * *", time_zone=zone), *around(zone, day))
    assert {after - before for before, after in pairwise(found)} == {timedelta(minutes=15)}


@pytest.mark.parametrize("every_seconds", [0.7, 30, 3600, 86_400, 5400])
def test_intervals_are_of_one_length(every_seconds: float) -> None:
    """Intervals are counted in elapsed time, from whatever moment one asks, and no tick is skipped or comes twice."""
    schedule = Schedule(every_seconds=every_seconds)
    begin = datetime(2026, 3, 28, tzinfo=UTC)
    found = ticks(schedule, begin, begin + timedelta(seconds=every_seconds * 100))
    assert {after - before for before, after in pairwise(found)} == {timedelta(seconds=every_seconds)}
    for before, after in pairwise(found):
        assert next_tick(schedule, "shop", after - timedelta(microseconds=1)) == after
        assert next_tick(schedule, "shop", before + timedelta(microseconds=1)) == after


def test_sources_with_one_interval_do_not_begin_together() -> None:
    """The first ticks of many sources are spread over the interval, and each keeps its place."""
    begin = datetime(2026, 11, 22, tzinfo=UTC)
    schedule = Schedule(every_seconds=60)
    waits = [next_tick(schedule, f"source-{number}", begin) - begin for number in range(10_000)]
    seconds = Counter(wait // timedelta(seconds=1) for wait in waits)
    assert len(seconds) == 60
    assert max(seconds.values()) < 250
    assert next_tick(schedule, "source-7", begin + timedelta(days=3)) == begin + timedelta(days=3) + waits[7]


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        (Schedule(cron="61 * * * *"), "61"),
        (Schedule(cron="0 0 30 2 *"), "30 2"),
        (Schedule(cron="* * * * *", time_zone="Mars/Base"), "Mars/Base"),
        (Schedule(cron="* * * * *", time_zone="../etc"), "etc"),
        (Schedule(every_seconds=0), "interval"),
    ],
)
def test_a_schedule_that_cannot_be_is_named(schedule: Schedule, named: str) -> None:
    """What never comes or cannot be read is refused by name."""
    with pytest.raises(SettingError, match=named):
        next_tick(schedule, "shop", datetime(2026, 1, 1, tzinfo=UTC))
