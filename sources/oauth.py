"""Tokens of OAuth 2 for the client credentials of a source (RFC 6749, section 4.4), obtained once and used while valid.

A client is authenticated by HTTP Basic (section 2.3.1). The process keeps one token for each set of credentials until
shortly before it expires, or until the source refuses it.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_plus, urlencode
from weakref import WeakKeyDictionary

import aiohttp
import msgspec

from definitions import Auth, OAuth2Auth
from errors import SourceInvalid, SourceRefused, SourceTooLarge
from sources.address import redact
from sources.asking import VERSION, parse_url
from sources.decompress import Decompressor
from sources.statuses import parse_retry_after, phrase
from sources.wire import Wire, translated

MAX_BODY_BYTES = 1 << 18
"""Cap on the token endpoint's answer."""
_EARLIEST_SHARE, _EARLIEST_SECONDS = 0.1, 30.0
"""How long before it expires a token is not used any more: this share of its life, but at most so long."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
_ERRORS = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    }
)
"""The codes of RFC 6749, section 5.2; no other text of an answer is told, since it may repeat what was sent."""
_REMEDY = "Nothing was fetched. Check token_url, client_id, client_secret and scope in the source's auth."

_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token, and the moment of the monotonic clock from which it is not used any more; None: until it is refused."""

    value: str = field(repr=False)
    stale_at: float | None

    @property
    def is_fresh(self) -> bool:
        """Whether it may be used still."""
        return self.stale_at is None or time.monotonic() < self.stale_at


_tokens: dict[OAuth2Auth, Token] = {}
_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[OAuth2Auth, asyncio.Lock]] = WeakKeyDictionary()


async def obtain_token(auth: OAuth2Auth, wire: Wire) -> Token:
    """Return the token that the process has for these credentials; several callers at once make one request.

    Raises:
        SourceError: the token endpoint gives none.
    """
    locks = _locks.setdefault(asyncio.get_running_loop(), {})
    async with locks.setdefault(auth, asyncio.Lock()):
        token = _tokens.get(auth)
        if token is None or not token.is_fresh:
            token = _tokens[auth] = await _request_token(auth, wire)
        return token


def discard_token(auth: Auth | None, token: Token) -> None:
    """Use a token no more that the source refused; one that has taken its place meanwhile stays."""
    if isinstance(auth, OAuth2Auth) and _tokens.get(auth) is token:
        del _tokens[auth]


async def _request_token(auth: OAuth2Auth, wire: Wire) -> Token:
    url = parse_url(auth.token_url).with_user(None).with_fragment(None)
    form = {"grant_type": "client_credentials"} | ({"scope": auth.scope} if auth.scope else {})
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"Lockstep/{VERSION}",
        "Authorization": aiohttp.encode_basic_auth(quote_plus(auth.client_id), quote_plus(auth.client_secret)),
    }
    asked_at = time.monotonic()
    response = await wire.send("POST", url, named=url, headers=headers, body=urlencode(form).encode())
    with translated(wire.source, url):
        answer = await _read(response)
    if response.status != HTTPStatus.OK:
        raise _refusal(response, answer)
    return _token_of(answer, asked_at=asked_at, place=f"The token endpoint {redact(str(url))}")


async def _read(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the answer's object; an empty one where it is not an object of JSON."""
    decompressor = Decompressor(", ".join(response.headers.getall("Content-Encoding", [])))
    body = bytearray()
    async for chunk in response.content.iter_any():
        for piece in decompressor.feed(chunk):
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise SourceTooLarge(
                    f"The answer of the token endpoint {redact(str(response.url))} is larger than {MAX_BODY_BYTES:,} "
                    "bytes.",
                    remedy=_REMEDY,
                )
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}


def _refusal(response: aiohttp.ClientResponse, answer: dict[str, Any]) -> SourceRefused:
    code = answer.get("error")
    named = f" ({code})" if isinstance(code, str) and code in _ERRORS else ""
    return SourceRefused(
        f"The token endpoint {redact(str(response.url))} answered {response.status}{phrase(response.status)}{named}.",
        status=response.status,
        retry_after_seconds=parse_retry_after(response.headers.get("Retry-After", "")),
        remedy=_REMEDY,
    )


def _token_of(answer: dict[str, Any], *, asked_at: float, place: str) -> Token:
    value, kind = answer.get("access_token"), answer.get("token_type", "Bearer")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise SourceInvalid(f"{place} answered without an access_token that could be sent.", remedy=_REMEDY)
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise SourceInvalid(f"{place} gives tokens of another type than Bearer.", remedy=_REMEDY)
    seconds = _seconds(answer.get("expires_in"))
    if seconds is None:
        return Token(value=value, stale_at=None)
    return Token(value=value, stale_at=asked_at + seconds - min(seconds * _EARLIEST_SHARE, _EARLIEST_SECONDS))


def _seconds(life: object) -> float | None:
    """Return how long a token is valid, or None where that is not told; some servers write the number as text."""
    if isinstance(life, str) and life.isascii() and life.isdigit():
        return float(life[:12])
    return float(min(life, 10**12)) if isinstance(life, int | float) and not isinstance(life, bool) else None
