"""Who may call: everybody on this machine, and from elsewhere whoever knows the secret key."""

from __future__ import annotations

import hmac

from quart import Quart, request

from errors import CrossSiteRefused, NotAuthorized

OPEN_ENDPOINTS = frozenset({"hello_world", "health.live", "health.ready", "sample.serve_catalogue"})
"""Endpoints that need no secret: they change nothing and show nothing of the mirror."""

OWN_SITES = frozenset({"same-origin", "none"})
"""What a browser says in Sec-Fetch-Site when no page of another site is behind a request."""


def guard(app: Quart, *, secret_key: str | None) -> None:
    """Have endpoints that are not open refuse pages of other sites and, if there is a `secret_key`, who lacks it."""

    @app.before_request
    async def refuse_strangers() -> None:
        # An unknown address is answered 404 by the routing, which comes after this.
        if request.url_rule is None or request.endpoint in OPEN_ENDPOINTS:
            return
        if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES:
            raise CrossSiteRefused("The request comes from a page of another site.")
        if secret_key is not None and not knows(secret_key, request.headers.get("Authorization", "")):
            raise NotAuthorized("The secret key is missing or wrong.")


def knows(secret_key: str, authorization: str) -> bool:
    """Tell, in the same time for every wrong key, whether the header Authorization carries the secret key."""
    scheme, _, given = authorization.partition(" ")
    matches = hmac.compare_digest(given.strip().encode(), secret_key.encode())
    return matches and scheme.lower() == "bearer"
