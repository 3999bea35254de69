"""Keep what a source was sent out of what is told about it, even where the source repeats it in its answer."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from definitions import ApiKeyAuth, BasicAuth, BearerAuth, OAuth2Auth, Source
from errors import SourceError
from telemetry import hide

_SECRET_NAME = re.compile(r"key|token|secret|pass|pwd|auth|sig|credential", re.IGNORECASE)
_SHORTEST_UNNAMED = 8
"""Shorter values of headers and parameters whose name does not say that they are secret are left to be read."""


def names_secret(name: str) -> bool:
    """Tell whether a header or parameter, by its name, carries a secret."""
    return _SECRET_NAME.search(name) is not None


def secrets_of(source: Source) -> set[str]:
    """Return what of a source must not be told: its credentials, and the values of its headers and parameters."""
    given = {*source.headers.items(), *source.params.items()}
    named = {value for name, value in given if len(value) >= _SHORTEST_UNNAMED or names_secret(name)}
    match source.auth:
        case BearerAuth(token=secret) | ApiKeyAuth(value=secret) | OAuth2Auth(client_secret=secret):
            named.add(secret)
        case BasicAuth(username=user, password=secret):
            named.update((secret, _basic(user, secret)))
    parts = urlsplit(source.url) if "@" in source.url else None
    if parts and parts.password:
        user, secret = unquote(parts.username or ""), unquote(parts.password)
        named.update((secret, _basic(user, secret)))
    return named


def _basic(user: str, password: str) -> str:
    """Return both as they stand in a header."""
    return b64encode(f"{user}:{password}".encode()).decode()


@contextmanager
def hidden(secrets: Collection[str]) -> Iterator[None]:
    """Mask these values in any error of the source that passes."""
    try:
        yield
    except SourceError as exc:
        # Changed in place, so that the traceback and whatever it was raised from stay with it.
        exc.cause = hide(exc.cause, secrets)
        exc.args = (exc.cause,)
        raise
