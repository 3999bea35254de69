"""Ask a source for its body: one request, its redirects followed by hand, its status judged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from definitions import Source
from errors import (
    AddressRefused,
    SourceIncomplete,
    SourceInvalid,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from models import Validators
from sources.address import AddressGuard, may_be_private, origin, redact, redact_all
from sources.decompress import ACCEPTED

VERSION = "0.1.0"
MAX_REDIRECTS = 10
READ_BUFFER_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "Accept": "application/json, application/x-ndjson;q=0.9, */*;q=0.1",
    "Accept-Encoding": ACCEPTED,
    "User-Agent": f"Lockstep/{VERSION}",
}
_CREDENTIALS_REMEDY = "Nothing was written. Check the credentials in SOURCE_URL and the rights they have at the source."


class ForeignError(Exception):
    """An error of aiohttp whose own text tells the whole URL: what it said, without the URL's secrets."""


@asynccontextmanager
async def request(source: Source, validators: Validators | None) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the answer to one request for the source: status 200, or 304 where `validators` were sent."""
    async with AsyncExitStack() as stack:
        response = await _follow_redirects(stack, source, _conditions(validators))
        _judge_status(response, conditional=bool(validators))
        _fail_with_connection(response)
        yield response


async def _follow_redirects(
    stack: AsyncExitStack, source: Source, conditions: dict[str, str]
) -> aiohttp.ClientResponse:
    named = _parse(source.url)
    url, credentials = named, _credentials(named)
    for _ in range(MAX_REDIRECTS + 1):
        response = await _get(stack, source, url, headers={**_HEADERS, **conditions, **credentials})
        if response.status not in _REDIRECTS or "Location" not in response.headers:
            return response
        target = _target(url, response.headers["Location"])
        if origin(target) != origin(url):
            credentials = {}  # for good: a way back through somebody else is not the operator's way
        url = target
    raise SourceInvalid(
        f"{redact(source.url)} redirects more than {MAX_REDIRECTS} times, at last to {redact(str(url))}."
    )


async def _get(stack: AsyncExitStack, source: Source, url: URL, *, headers: dict[str, str]) -> aiohttp.ClientResponse:
    guard = AddressGuard(
        allow_private=may_be_private(url, named=_parse(source.url), allow_private=source.allow_private)
    )
    # A session for every hop: no connection that another hop was permitted to make is ever used again.
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=guard, limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=source.connect_timeout_seconds,
                sock_connect=source.connect_timeout_seconds,
                sock_read=source.read_timeout_seconds,
            ),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
        )
    )
    with translated(source, guard):
        return await stack.enter_async_context(
            session.get(url.with_user(None).with_fragment(None), headers=headers, allow_redirects=False)
        )


@contextmanager
def translated(source: Source, guard: AddressGuard | None = None) -> Iterator[None]:
    """Turn what aiohttp raises into errors of the house."""
    place = redact(source.url)
    try:
        yield
    except aiohttp.ConnectionTimeoutError as exc:
        seconds = source.connect_timeout_seconds
        raise SourceTimeout(
            f"No connection for {place} within {seconds:g} s (SOURCE_CONNECT_TIMEOUT_SECONDS)."
        ) from _muted(exc)
    except aiohttp.ServerTimeoutError as exc:
        seconds = source.read_timeout_seconds
        raise SourceTimeout(f"{place} sent nothing for {seconds:g} s (SOURCE_READ_TIMEOUT_SECONDS).") from exc
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as exc:
        raise SourceIncomplete(f"The answer of {place} ended early, or its HTTP framing is damaged.") from _muted(exc)
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as exc:
        raise SourceUnreachable(f"{place} offers no TLS that can be trusted: {_say_why(exc)}.") from exc
    except aiohttp.ClientConnectorError as exc:
        if guard and guard.refused and not guard.permitted:
            raise AddressRefused(
                f"{place} leads to {', '.join(guard.refused)}, which is not on the public Internet."
            ) from exc
        raise SourceUnreachable(f"No connection for {place}: {exc.os_error.strerror or exc.os_error}.") from exc
    except (aiohttp.ClientConnectionError, OSError) as exc:
        raise SourceUnreachable(f"The connection for {place} broke ({type(exc).__name__}).") from exc
    except (aiohttp.InvalidURL, UnicodeError) as exc:
        why = getattr(exc, "description", None) or type(exc).__name__
        raise AddressRefused(f"{place} leads to a host that is not written as one ({why}).") from _muted(exc)
    except aiohttp.ClientError as exc:
        raise SourceUnreachable(f"The request for {place} failed ({type(exc).__name__}).") from _muted(exc)


def _muted(error: Exception) -> ForeignError:
    muted = ForeignError(f"{type(error).__name__}: {redact_all(str(error))}")
    return muted.with_traceback(error.__traceback__)


def _say_why(error: BaseException) -> str:
    """Return what the TLS library says; aiohttp's own words name the whole connection."""
    cause = error.__cause__ or error
    return str(getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or type(cause).__name__)


def _parse(url: str) -> URL:
    try:
        parsed = URL(url)
    except ValueError:
        raise SourceInvalid(f"{redact(url)} is not a URL.") from None  # what it says repeats the URL
    return _checked(parsed)


def _target(base: URL, location: str) -> URL:
    try:
        target = base.join(URL(location))
    except ValueError:
        raise SourceInvalid(f"{redact(str(base))} redirects to something that is not a URL.") from None
    return _checked(target)


def _checked(url: URL) -> URL:
    if url.scheme not in {"http", "https"} or not url.host:
        raise AddressRefused(
            f"{redact(str(url))} is not an http or https address.",
            remedy="Nothing was fetched. Name an http or https address that leads to another such address only.",
        )
    return url


def _credentials(url: URL) -> dict[str, str]:
    if url.user is None and url.password is None:
        return {}
    try:
        return {"Authorization": aiohttp.encode_basic_auth(url.user or "", url.password or "")}
    except ValueError as exc:
        raise SourceInvalid("The user name in SOURCE_URL contains a colon, which HTTP cannot send.") from exc


def _conditions(validators: Validators | None) -> dict[str, str]:
    if not validators:
        return {}
    conditions = {"If-None-Match": validators.etag, "If-Modified-Since": validators.last_modified}
    return {name: value for name, value in conditions.items() if value}


def _fail_with_connection(response: aiohttp.ClientResponse) -> None:
    """Make sure that the end of the connection ends the reading of the body.

    Where the framing breaks in the middle of a body, aiohttp 3.14 closes the connection, stops its read timeout and
    tells the reader nothing, which then waits for ever.
    """

    def fail(closed: asyncio.Future[None] | None) -> None:
        if closed and not closed.cancelled():
            closed.exception()  # seen, so that asyncio does not complain
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("The connection ended inside the body."))

    if response.connection is None or response.connection.protocol is None:
        return  # the body is here already
    if closed := response.connection.protocol.closed:
        closed.add_done_callback(fail)
    else:
        fail(None)


def _judge_status(response: aiohttp.ClientResponse, *, conditional: bool) -> None:
    status = response.status
    place = redact(str(response.url))
    if status == HTTPStatus.OK or (status == HTTPStatus.NOT_MODIFIED and conditional):
        return
    if status == HTTPStatus.NOT_MODIFIED:
        raise SourceInvalid(f"{place} answered 304 Not Modified although it was not asked for changes.")
    raise SourceRefused(
        f"{place} answered {status}{_phrase(status)}, and only 200 carries a whole snapshot.",
        status=status,
        retry_after_seconds=parse_retry_after(response.headers.get("Retry-After", "")),
        remedy=_CREDENTIALS_REMEDY if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} else None,
    )


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def parse_retry_after(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None where it makes no sense."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])  # more digits than that are more than 30,000 years either way
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def read_validators(response: aiohttp.ClientResponse) -> Validators:
    """Return the validators of an answer, without those that could not be sent back."""
    return Validators(
        etag=_sendable(response.headers.get("ETag")), last_modified=_sendable(response.headers.get("Last-Modified"))
    )


def _sendable(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() else None


def is_end_marked(response: aiohttp.ClientResponse, *, is_compressed: bool) -> bool:
    """Tell whether the answer's framing shows where it ends, other than by a closed connection."""
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return chunked or is_compressed or "Content-Length" in response.headers
