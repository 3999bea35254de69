"""Another attempt is made where it may help, after a wait that the source cannot stretch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from definitions import Source
from errors import (
    AddressRefused,
    SourceError,
    SourceIncomplete,
    SourceInvalid,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
    SourceUnreachable,
)
from sources import attempts, is_retryable, retry_wait_seconds
from sources.asking import VERSION
from sources.statuses import parse_retry_after
from tests.feed_server import Answer, FeedServer, Reset
from tests.sources.support import fetch, source

ROWS = b'[{"id":1},{"id":2}]'


async def fetch_with_attempts(feed_source: Source) -> list[bytes]:
    async for attempt in attempts(feed_source):
        with attempt:
            _, records = await fetch(feed_source)
            return list(records.values())
    raise AssertionError


async def test_unavailable_twice() -> None:
    """503, 503, 200 is one success."""
    busy = Answer(status=503, headers={"Retry-After": "0"})
    async with FeedServer([busy, busy, Answer(body=ROWS)]) as server:
        assert await fetch_with_attempts(source(server.url, attempts=3)) == [b'{"id":1}', b'{"id":2}']
    assert len(server.requests) == 3


async def test_reset_in_the_body() -> None:
    """A reset in the middle of the body begins the whole fetch again, and the error comes out in the end."""
    broken = Answer(body=ROWS, fault=Reset(at=12))
    async with FeedServer([broken, Answer(body=ROWS)]) as server:
        assert len(await fetch_with_attempts(source(server.url, attempts=2))) == 2
        server.answers = broken
        with pytest.raises((SourceUnreachable, SourceIncomplete)):
            await fetch_with_attempts(source(server.url, attempts=2))
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [418, 400, 404, 204])
async def test_no_second_attempt(status: int) -> None:
    """What another attempt cannot mend is tried once."""
    async with FeedServer(Answer(status=status)) as server:
        with pytest.raises(SourceRefused):
            await fetch_with_attempts(source(server.url, attempts=3))
    assert len(server.requests) == 1


async def test_who_asks_for_a_long_wait_is_not_asked_again() -> None:
    """A far Retry-After ends the attempts, with what it said."""
    for retry_after in ("86400", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 400):
        busy = Answer(status=429, headers={"Retry-After": retry_after})
        async with FeedServer([busy, Answer(body=ROWS)]) as server:
            with pytest.raises(SourceRefused) as told:
                await fetch_with_attempts(source(server.url, attempts=2, max_retry_after_seconds=60))
        assert len(server.requests) == 1
        assert (told.value.retry_after_seconds or 0) > 60


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("7", 7.0), (" 7 ", 7.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("١", None),
    ("7 s", None),
     ("Mon, 99 Foo 2026", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 01 Jan 1970 00:00:00", 0.0)],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    """Retry-After is read as seconds or as a date; anything else is ignored."""
    assert parse_retry_after(text) == seconds


def test_retry_after_dates() -> None:
    """A date means the time until then."""
    assert 50 < (parse_retry_after(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) or 0) <= 60
    assert (parse_retry_after("Fri, 31 Dec 9999 23:59:59 GMT") or 0) > 1e9


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (SourceUnreachable("x"), True),
        (SourceIncomplete("x"), True),
        (SourceRefused("x", status=500), True),
        (SourceRefused("x", status=503), True),
        (SourceRefused("x", status=429), True),
        (SourceRefused("x", status=418), False),
        (SourceRefused("x", status=404), False),
        (SourceRefused("x", status=206), False),
        (SourceInvalid("x"), False),
        (SourceTooLarge("x"), False),
        (SourceTimeout("x"), False),
        (AddressRefused("x"), False),
        (ValueError("x"), False),
    ],
)
def test_verdicts(error: Exception, retryable: bool) -> None:
    """Lost connections, cut answers, 429 and 5xx are worth another attempt, nothing else is."""
    assert is_retryable(error) is retryable
    assert retry_wait_seconds(error, source()) is retryable


def test_wait() -> None:
    """What the source asks for is granted up to the cap; beyond it there is no further attempt."""
    for asked, granted in ((3.0, 3.0), (30.0, 30.0), (3000.0, False)):
        error: SourceError = SourceRefused("x", status=503, retry_after_seconds=asked)
        assert retry_wait_seconds(error, source()) is granted or retry_wait_seconds(error, source()) == granted


def test_version() -> None:
    """The version that requests name is the project's."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
