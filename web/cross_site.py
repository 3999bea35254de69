"""Requests that a page of another site makes through its visitor's browser; they are refused."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from quart import Request

from errors import CrossSiteRefused

OWN_SITES = frozenset({"same-origin", "none"})
"""What a browser says in Sec-Fetch-Site when no page of another site is behind a request."""


def refuse_other_sites(request: Request) -> None:
    """Raise CrossSiteRefused if the request comes from a page of another site.

    Browsers say so in Sec-Fetch-Site, or, where they are old, at least in Origin; programs send neither.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        foreign = site not in OWN_SITES
    else:
        origin = request.headers.get("Origin")
        foreign = origin is not None and not _is_same(origin, request.headers.get("Host", ""))
    if foreign:
        raise CrossSiteRefused("The request comes from a page of another site.")


def refuse_other_names(request: Request, is_loopback: Callable[[str], bool]) -> None:
    """Raise CrossSiteRefused if the request was meant for another host than this machine.

    A site can have its name lead to 127.0.0.1 (DNS rebinding), and then its pages are of the same origin.
    """
    host = _hostname(request.headers.get("Host", ""))
    if host and not is_loopback(host) and not host.endswith(".localhost"):
        raise CrossSiteRefused(
            f"The request is for {host[:100]!r}, but without a SECRET_KEY only this machine may call.",
            remedy="Call it as 127.0.0.1 or localhost, or set SECRET_KEY.",
        )


def _is_same(origin: str, host: str) -> bool:
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host
