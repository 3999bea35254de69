"""When a source is synced by itself: which moment comes next, told from what the file says and what time it is.

Nothing here asks for the time; whoever does takes the database's, which is the same for all workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from xxhash import xxh3_64_intdigest

from definitions import Schedule, Source, Sources
from errors import SettingError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPREAD = 2**64
"""How many places a name can have in an interval."""
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A source, and one of its schedules."""

    source: Source
    schedule: Schedule

    @property
    def identity(self) -> tuple[str, str, str]:
        """What tells it from others: the source, the mode and the schedule in words."""
        return self.source.name, self.schedule.mode, spell(self.schedule)

    def next_after(self, moment: datetime) -> datetime:
        """Return the first moment after another at which the source is to be synced."""
        return next_tick(self.schedule, self.source.name, moment)


def ticks_of(sources: Sources) -> list[Tick]:
    """Return every schedule of every source; SettingError names what cannot be read."""
    return [Tick(source=source, schedule=check(schedule)) for source in sources for schedule in source.schedules]


def check(schedule: Schedule) -> Schedule:
    """Return a schedule as it is; SettingError says what is wrong with it."""
    next_tick(schedule, "", EPOCH)
    return schedule


def spell(schedule: Schedule) -> str:
    """Return a schedule in words, without its mode."""
    when = (
        f"every {schedule.every_seconds:g} s"
        if schedule.every_seconds is not None
        else f"cron {schedule.cron} {schedule.time_zone}"
    )
    return f"{when}, up to {schedule.jitter_seconds:g} s later" if schedule.jitter_seconds else when


def next_tick(schedule: Schedule, name: str, after: datetime) -> datetime:
    """Return the first tick after a moment, in UTC.

    Intervals are counted in elapsed time from a place of their own for each name, so that sources with one interval do
    not begin together. Cron's expressions mean local time: what would fall into the hour that is left out in spring
    comes right after it, and a fixed time of the hour that is repeated in autumn comes once.
    """
    if schedule.every_seconds is not None:
        return _next_of_interval(schedule.every_seconds, name, after)
    try:
        local = after.astimezone(ZoneInfo(schedule.time_zone))
        return next(CronSim(schedule.cron or "", local)).astimezone(UTC)
    except CronSimError as exc:
        raise SettingError(f"The schedule {schedule.cron!r} cannot be read: {exc}.") from exc
    except (ZoneInfoNotFoundError, ValueError) as exc:
        raise SettingError(f"There is no time zone {schedule.time_zone!r}.") from exc
    except StopIteration as exc:
        raise SettingError(f"The schedule {schedule.cron!r} never comes.") from exc


def _next_of_interval(every_seconds: float, name: str, after: datetime) -> datetime:
    interval = timedelta(seconds=every_seconds) // MICROSECOND
    if interval < 1:
        raise SettingError("The interval of a schedule must be longer than nothing.")
    place = interval * xxh3_64_intdigest(name.encode()) // SPREAD
    passed = (after - EPOCH) // MICROSECOND
    return EPOCH + ((passed - place) // interval + 1) * interval * MICROSECOND + place * MICROSECOND


def longest_wait(schedule: Schedule) -> timedelta | None:
    """Return how far away the next tick can be at most; None where only the calendar knows.

    A tick that is farther away was set before somebody put the clock back.
    """
    if schedule.every_seconds is None:
        return None
    return timedelta(seconds=schedule.every_seconds + schedule.jitter_seconds)
