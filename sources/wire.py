"""Send requests one after another, with every address guarded and every request paced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from definitions import Source
from errors import AddressRefused, SourceIncomplete, SourceTimeout, SourceUnreachable
from sources.address import AddressGuard, may_be_private, redact, redact_all
from sources.hiding import secrets_of
from sources.pace import pace_of

READ_BUFFER_BYTES = 1 << 20


class ForeignError(Exception):
    """An error of aiohttp whose own text tells the whole URL: what it said, without the URL's secrets."""


class Wire:
    """The connections of one fetch; an answer is closed as soon as the next request is sent."""

    def __init__(self, source: Source) -> None:
        self.secrets = secrets_of(source)
        """What must not be told of this fetch; whoever obtains another secret for it adds that."""
        self.source = source
        self._pace = pace_of(source)
        self._stack = AsyncExitStack()
        self._sessions: dict[bool, tuple[aiohttp.ClientSession, AddressGuard]] = {}
        self._close_answer: Callable[[], None] = _nothing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_answer()
        await self._stack.aclose()

    async def send(
        self, method: str, url: URL, *, named: URL, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """Send one request, whatever its answer; only the host that the operator `named` may be a private one.

        Raises:
            SourceError: there is no answer.
        """
        self._close_answer()
        session, guard = await self._session(
            allow_private=may_be_private(url, named=named, allow_private=self.source.allow_private)
        )
        guard.forget()
        with translated(self.source, url, guard):
            response = await session.request(method, url, headers=headers, data=body, allow_redirects=False)
        unwatch = _fail_with_connection(response)

        def close() -> None:
            unwatch()
            # One that was read to its end leaves its connection to the next request, any other one takes it along.
            response.release() if response.content.is_eof() else response.close()

        self._close_answer = close
        return response

    async def _session(self, *, allow_private: bool) -> tuple[aiohttp.ClientSession, AddressGuard]:
        """Return the session for hosts that may, or may not, be private: they never share a connection."""
        if allow_private not in self._sessions:
            source = self.source
            guard = AddressGuard(allow_private=allow_private)
            session = await self._stack.enter_async_context(
                aiohttp.ClientSession(
                    # Where a kept connection turns out to be closed, aiohttp asks again, but not for a POST.
                    connector=aiohttp.TCPConnector(socket_factory=guard, limit=1, force_close=source.method == "POST"),
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
                    middlewares=(self._paced,),
                )
            )
            self._sessions[allow_private] = session, guard
        return self._sessions[allow_private]

    async def _paced(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Wait until the source's limit allows a request: here, so that those count too that aiohttp makes again."""
        if self._pace is None:
            return await handler(request)
        async with self._pace.turn():
            return await handler(request)


def _nothing() -> None:
    """Close nothing."""


@contextmanager
def translated(source: Source, url: URL, guard: AddressGuard | None = None) -> Iterator[None]:
    """Turn what aiohttp raises into errors of the house."""
    place = redact(str(url))
    try:
        yield
    except aiohttp.ConnectionTimeoutError as exc:
        raise SourceTimeout(
            f"No connection for {place} within {source.connect_timeout_seconds:g} s "
            "(SOURCE_CONNECT_TIMEOUT_SECONDS, or connect_timeout of the source)."
        ) from _muted(exc)
    except aiohttp.ServerTimeoutError as exc:
        raise SourceTimeout(
            f"{place} sent nothing for {source.read_timeout_seconds:g} s "
            "(SOURCE_READ_TIMEOUT_SECONDS, or read_timeout of the source)."
        ) from exc
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


def _fail_with_connection(response: aiohttp.ClientResponse) -> Callable[[], None]:
    """Make sure that the end of the connection ends the reading of the body; return what takes that back.

    Where the framing breaks in the middle of a body, aiohttp 3.14 closes the connection, stops its read timeout and
    tells the reader nothing, which then waits for ever.
    """

    def fail(_: asyncio.Future[None] | None) -> None:
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("The connection ended inside the body."))

    if response.connection is None or response.connection.protocol is None:
        return _nothing  # the body is here already
    closed = response.connection.protocol.closed
    if closed is None:
        fail(None)
        return _nothing
    closed.remove_done_callback(_see)
    closed.add_done_callback(_see)
    closed.add_done_callback(fail)

    def unwatch() -> None:
        closed.remove_done_callback(fail)  # a connection outlives the answers that it brings, and must not keep them

    return unwatch


def _see(closed: asyncio.Future[None]) -> None:
    """Take notice of how a connection ended, so that asyncio does not complain that nobody did."""
    if not closed.cancelled():
        closed.exception()
