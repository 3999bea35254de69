"""What single settings of a source may be: every function takes what somebody wrote and returns what is meant.

All of them raise ValueError, whose message is the rest of a sentence that begins with the setting's name. A message
never repeats a value, which may hold a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from definitions import RateLimit

MAX_NAME_BYTES = 63
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
RESERVED_SCHEMAS = frozenset({"information_schema", "lockstep"})

SECRET_PARAMETER = re.compile(r"key|token|secret|pass|pwd|auth|sig|credential", re.IGNORECASE)
"""Names of query parameters whose values are taken for secrets."""
SHORTEST_TOKEN = 8
"""A shorter value of such a parameter is an ordinary word, as in ?key=name, and stays readable."""

SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
DURATION = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(SECONDS)})")
SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(BYTES)})")
RATE = re.compile(r"([1-9][0-9]{0,5}) ?/ ?([0-9.]*)(s|m|h|d)")
LONGEST_RATE_SECONDS = 366 * 86_400
LONGEST_SECONDS = 10**12
"""A longer duration counts as one without end, which no setting takes."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""
RESERVED_HEADERS = frozenset(
    {
        *("accept-encoding", "connection", "content-encoding", "content-length", "expect", "host"),
        *("if-modified-since", "if-none-match", "keep-alive", "proxy-authorization", "proxy-connection", "range"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Headers that belong to the connection, or by which the service itself asks whether anything is new."""

CRON_FIELDS = 5
TICKS_LOOKED_AT = 100
"""How many ticks of a cron expression are looked at to find out how close they can come."""


def check_identifier(name: str) -> str:
    """Return the name of a table or schema."""
    if not IDENTIFIER.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError("must be 1 to 63 letters, digits, _ or $, and must not begin with a digit or $")
    return name


def check_table(name: str) -> str:
    """Return the name of a table that a mirror may have."""
    if check_identifier(name).lower().startswith("_lockstep"):
        raise ValueError("must not begin with _lockstep, which the service keeps for itself")
    return name


def check_schema(name: str) -> str:
    """Return the name of a schema that may hold mirrors."""
    if check_identifier(name).lower() in RESERVED_SCHEMAS or name.lower().startswith("pg_"):
        raise ValueError("must not be lockstep, information_schema or a name that begins with pg_")
    return name


def check_url(url: str) -> str:
    """Return the URL of a feed."""
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and " " not in parts.netloc
        )
    except ValueError:
        usable = False
    if not usable or CONTROL.search(url):
        raise ValueError("must be a URL that begins with http:// or https:// and names a host")
    return url


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield what is secret in a URL: its password, or a user name alone, and parameters that are named like secrets."""
    parts = urlsplit(url)
    userinfo = parts.password or parts.username or ""
    yield from {userinfo, unquote(userinfo)}
    for name, value in parse_qsl(parts.query):
        if SECRET_PARAMETER.search(name) and len(value) >= SHORTEST_TOKEN:
            yield value


def check_text(text: str) -> str:
    """Return a text of one line that is not empty."""
    if not text or CONTROL.search(text):
        raise ValueError("must be a text of one line that is not empty")
    return text


def check_header_name(name: str) -> str:
    """Return the name of a header that a source may set."""
    if not HEADER_NAME.fullmatch(name):
        raise ValueError("is no name of a header")
    if name.lower() in RESERVED_HEADERS:
        raise ValueError("is a header that the service sets itself")
    return name


def check_header_value(value: str) -> str:
    """Return the value of a header."""
    if CONTROL.search(value.replace("\t", "")) or value != value.strip():
        raise ValueError("must be one line without blanks around it")
    return value


def check_user_name(name: str) -> str:
    """Return a user name that the header Authorization can carry."""
    if ":" in name or CONTROL.search(name):
        raise ValueError("must have no colon, which HTTP cannot send in a user name")
    return name


def split_path(value: Any) -> Any:
    """Return the names of a path that is written with dots, as in `data.items`."""
    if not isinstance(value, str):
        return value
    path = tuple(value.split(".")) if value else ()
    if not all(path):
        raise ValueError("must be field names separated by dots")
    return path


def seconds(value: Any) -> Any:
    """Return a duration in seconds: a number of them, or a text as in "30s", "1.5h" or "90d"."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a duration as in "30s", "5m", "12h" or "90d", or a number of seconds')  # noqa: TRY004
    if not isinstance(value, str):
        return float(value) if abs(value) <= LONGEST_SECONDS else math.inf
    match = DURATION.fullmatch(value)
    if match is None:
        raise ValueError('must be a duration as in "500ms", "30s", "5m", "12h", "90d" or "2w", or a number of seconds')
    return float(match[1]) * SECONDS[match[2]]


def days(value: Any) -> Any:
    """Return a duration in days; it is written with its unit, since a bare number could be meant either way."""
    if not isinstance(value, str):
        raise ValueError('must be a duration with its unit, as in "90d"')  # noqa: TRY004 (a message for people)
    return seconds(value) / SECONDS["d"]


def size(value: Any) -> Any:
    """Return a number of bytes: itself, or a text as in "16MiB" or "1.5GB"."""
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value)
    number = float(match[1]) * BYTES[match[2]] if match else math.inf
    if number == math.inf:
        raise ValueError(f'must be a number of bytes, or a size as in "16MiB", with one of {", ".join(BYTES)}')
    return int(number)


def rate_limit(value: Any) -> RateLimit:
    """Return how many requests may be made within how long, as in "10/s", "100/m", "5000/h" or "20/10s"."""
    match = RATE.fullmatch(value) if isinstance(value, str) else None
    try:
        span = float(match[2] or 1) * SECONDS[match[3]] if match else 0
    except ValueError:
        span = 0
    if match is None or not 0 < span <= LONGEST_RATE_SECONDS:
        raise ValueError('must be requests per time, as in "10/s", "100/m", "5000/h" or "20/10s"')
    return RateLimit(requests=int(match[1]), seconds=span)


def check_cron(expression: str) -> str:
    """Return a cron expression that has ticks to come."""
    try:
        is_right = len(expression.split()) == CRON_FIELDS and bool(next(CronSim(expression, datetime.now(UTC))))
    except (CronSimError, StopIteration):
        is_right = False
    if not is_right:
        raise ValueError('must be a cron expression with five fields and a time to come, as in "*/5 * * * *"')
    return expression


def closest_ticks_seconds(expression: str) -> float:
    """Return how close two ticks of a valid cron expression come, in seconds, as far as some of them tell."""
    ticks = CronSim(expression, datetime.now(UTC))
    gap, last = timedelta.max, next(ticks)
    for tick, _ in zip(ticks, range(TICKS_LOOKED_AT), strict=False):
        gap, last = min(gap, tick - last), tick
    return gap.total_seconds()


def check_time_zone(name: str) -> str:
    """Return the name of a time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError('must be the name of a time zone, as in "Europe/Berlin"') from None
    return name
