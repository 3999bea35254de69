"""What is sent to a source: where to, with which body, and which headers may go along there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from urllib.parse import unquote_plus, urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from definitions import ApiKeyAuth, Auth, BasicAuth, BearerAuth, Source
from errors import AddressRefused, SourceInvalid
from models import Validators
from sources.address import origin, redact
from sources.decompress import ACCEPTED
from sources.hiding import names_secret

VERSION = "0.1.0"
_HEADERS = {
    "Accept": "application/json, application/x-ndjson;q=0.9, */*;q=0.1",
    "Accept-Encoding": ACCEPTED,
    "User-Agent": f"Lockstep/{VERSION}",
}
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TURN_INTO_GET = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER})


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request."""

    url: URL = field(repr=False)
    method: str = "GET"
    body: bytes | None = field(default=None, repr=False)
    trusted: bool = True
    """Whether it goes where the operator said; otherwise nothing that he gave goes along."""


def first_ask(source: Source) -> Ask:
    """Return the request that the source's settings name."""
    url = parse_url(source.url).with_user(None).with_fragment(None)
    body = source.body.encode() if source.method == "POST" and source.body is not None else None
    return Ask(url=with_params(url, source.params), method=source.method, body=body)


def redirected(ask: Ask, status: int, location: str) -> Ask:
    """Return the request that a redirect asks for.

    301, 302 and 303 turn a POST into a GET, as browsers do. Another origin gets neither credentials nor headers nor a
    body, and a way back through it gets them no more.

    Raises:
        AddressRefused: it leads to something else than http and https.
        SourceInvalid: it leads to no URL, or asks for a body that must not go there.
    """
    target = _joined(ask.url, location, "redirects to")
    if ask.method == "POST" and status in _TURN_INTO_GET:
        ask = replace(ask, method="GET", body=None)
    return _led(ask, target, "redirects")


def linked(ask: Ask, link: str) -> Ask:
    """Return the request for a page that another one names; see `redirected` for where it may lead.

    A parameter that is a credential by its name goes along within the origin: many sources do not repeat it.
    """
    target = _joined(ask.url, link, "names as its next page")
    following = _led(ask, target, "leads for its next page")
    if not following.trusted:
        return following
    credentials = {
        name: value for name, value in ask.url.query.items() if names_secret(name) and name not in target.query
    }
    return replace(following, url=with_params(following.url, credentials))


def with_params(url: URL, params: Mapping[str, str]) -> URL:
    """Return `url` with parameters in its query, in place of those of the same names; the others stay as written."""
    if not params:
        return url
    pairs = [pair for pair in url.raw_query_string.split("&") if pair]
    kept = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]) not in params]
    return URL(f"{url.with_query(None)}?{'&'.join([*kept, urlencode(params)])}", encoded=True)


def headers_of(
    ask: Ask, source: Source, *, conditions: Mapping[str, str], token: str | None = None
) -> CIMultiDict[str]:
    """Return the headers of a request; those that the operator gave only where the request is trusted with them."""
    headers = CIMultiDict(_HEADERS)
    if ask.body is not None:
        headers["Content-Type"] = "application/json"
    if ask.trusted:
        headers.update(source.headers)
        headers.update(_credentials(parse_url(source.url), source.auth, token))
    if ask.method != source.method:
        headers.popall("Content-Type", None)  # it spoke of a body that a redirect has taken away
    headers.update(conditions)
    for name, value in headers.items():
        if _UNSENDABLE.search(value):
            raise SourceInvalid(
                f"The value of the header {name} holds a character that HTTP cannot send.",
                remedy="Nothing was fetched. Look for a line break at the end of the value, and take it away.",
            )
    return headers


def _credentials(url: URL, auth: Auth | None, token: str | None) -> dict[str, str]:
    if token is not None:
        return {"Authorization": f"Bearer {token}"}
    match auth:
        case BearerAuth(token=value):
            return {"Authorization": f"Bearer {value}"}
        case ApiKeyAuth(header=name, value=value):
            return {name: value}
        case BasicAuth(username=user, password=password):
            return {"Authorization": _basic(user, password, "the source's auth")}
    if url.user is None and url.password is None:
        return {}
    return {"Authorization": _basic(url.user or "", url.password or "", "SOURCE_URL or url")}


def _basic(user: str, password: str, place: str) -> str:
    try:
        return aiohttp.encode_basic_auth(user, password)
    except ValueError as exc:
        raise SourceInvalid(f"The user name in {place} contains a colon, which HTTP cannot send.") from exc


def conditions_of(validators: Validators | None) -> dict[str, str]:
    """Return the headers that ask for an answer only if it is not the one of before."""
    if not validators:
        return {}
    conditions = {"If-None-Match": validators.etag, "If-Modified-Since": validators.last_modified}
    return {name: value for name, value in conditions.items() if value}


def parse_url(url: str) -> URL:
    """Return a URL of http or https; raise SourceInvalid or AddressRefused."""
    try:
        parsed = URL(url)
    except ValueError:
        raise SourceInvalid(f"{redact(url)} is not a URL.") from None  # what it says repeats the URL
    return _checked(parsed)


def _joined(base: URL, link: str, what: str) -> URL:
    try:
        target = base.join(URL(link))
    except ValueError:
        raise SourceInvalid(f"{redact(str(base))} {what} something that is not a URL.") from None
    return _checked(target).with_user(None).with_fragment(None)


def _led(ask: Ask, target: URL, how: str) -> Ask:
    trusted = ask.trusted and origin(target) == origin(ask.url)
    if ask.body is not None and not trusted:
        raise SourceInvalid(
            f"{redact(str(ask.url))} {how} to {redact(str(target))}, where the body of the request must not go.",
            remedy="Nothing was written. Name the URL that it leads to as the source's own, if it is to be trusted.",
        )
    return replace(ask, url=target, trusted=trusted)


def _checked(url: URL) -> URL:
    if url.scheme not in {"http", "https"} or not url.host:
        raise AddressRefused(
            f"{redact(str(url))} is not an http or https address.",
            remedy="Nothing was fetched. Name an http or https address that leads to another such address only.",
        )
    return url
