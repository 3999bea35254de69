"""Ask a source for a page: with its credentials, its redirects followed by hand, its status judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp

from definitions import OAuth2Auth, Source
from errors import SourceInvalid, SourceRefused
from models import Validators
from sources.address import redact
from sources.asking import Ask, conditions_of, headers_of, parse_url, redirected
from sources.oauth import Token, discard_token, obtain_token
from sources.statuses import parse_retry_after, phrase
from sources.wire import Wire

MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CREDENTIALS_REMEDY = (
    "Nothing was written. Check the credentials in SOURCE_URL, or in url, auth, headers and params of the source, and "
    "the rights they have at the source."
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request, and the request that led to it in the end."""

    ask: Ask
    response: aiohttp.ClientResponse


async def request(source: Source, wire: Wire, ask: Ask, *, validators: Validators | None = None) -> Answer:
    """Return the answer to a request: status 200, or 304 where `validators` were sent.

    A 401 to a token of OAuth 2 makes a new one be obtained, once.

    Raises:
        SourceError: there is no answer, or its status is another one.
    """
    conditions = conditions_of(validators)
    token = await _token(source, wire) if ask.trusted else None
    answer = await _follow_redirects(source, wire, ask, conditions, token)
    if answer.response.status == HTTPStatus.UNAUTHORIZED and answer.ask.trusted and token is not None:
        discard_token(source.auth, token)
        answer = await _follow_redirects(source, wire, ask, conditions, await _token(source, wire))
    _judge_status(answer.response, conditional=bool(validators))
    return answer


async def _token(source: Source, wire: Wire) -> Token | None:
    if not isinstance(source.auth, OAuth2Auth):
        return None
    token = await obtain_token(source.auth, wire)
    wire.secrets.add(token.value)
    return token


async def _follow_redirects(
    source: Source, wire: Wire, first: Ask, conditions: Mapping[str, str], token: Token | None
) -> Answer:
    named = parse_url(source.url)
    ask = first
    for _ in range(MAX_REDIRECTS + 1):
        headers = headers_of(ask, source, conditions=conditions, token=token.value if token else None)
        response = await wire.send(ask.method, ask.url, named=named, headers=headers, body=ask.body)
        if response.status not in _REDIRECTS or "Location" not in response.headers:
            return Answer(ask=ask, response=response)
        ask = redirected(ask, response.status, response.headers["Location"])
    raise SourceInvalid(
        f"{redact(str(first.url))} redirects more than {MAX_REDIRECTS} times, at last to {redact(str(ask.url))}."
    )


def _judge_status(response: aiohttp.ClientResponse, *, conditional: bool) -> None:
    status = response.status
    place = redact(str(response.url))
    if status == HTTPStatus.OK or (status == HTTPStatus.NOT_MODIFIED and conditional):
        return
    if status == HTTPStatus.NOT_MODIFIED:
        raise SourceInvalid(f"{place} answered 304 Not Modified although it was not asked for changes.")
    raise SourceRefused(
        f"{place} answered {status}{phrase(status)}, and only 200 carries a whole snapshot.",
        status=status,
        retry_after_seconds=parse_retry_after(response.headers.get("Retry-After", "")),
        remedy=_CREDENTIALS_REMEDY if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} else None,
    )


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
