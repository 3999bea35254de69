"""Which failures of a source are worth another attempt, and how long to wait before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

import stamina

from definitions import Source
from errors import SourceIncomplete, SourceRefused, SourceUnreachable

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 10.0


def attempts(source: Source) -> AsyncIterator[stamina.Attempt]:
    """Return the attempts at a whole fetch, its consumer included, for `async for attempt in …: with attempt:`.

    A connection that breaks in the middle of a body makes the whole fetch begin again.
    """
    return aiter(
        stamina.retry_context(
            on=lambda error: retry_wait_seconds(error, source),
            attempts=source.attempts,
            timeout=None,  # every attempt has its own total timeout
            wait_initial=_FIRST_WAIT_SECONDS,
            wait_max=_LONGEST_WAIT_SECONDS,
        )
    )


def is_retryable(error: Exception) -> bool:
    """Tell whether the same request may fare better soon: lost connections, cut answers, 429 and 5xx."""
    if isinstance(error, SourceRefused):
        return error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, SourceUnreachable | SourceIncomplete)


def retry_wait_seconds(error: Exception, source: Source) -> bool | float:
    """Return how long to wait before the next attempt, True for the usual back-off, False for no attempt at all.

    A source that wants to be left alone for longer than a run waits is not asked again in it.
    """
    if not is_retryable(error):
        return False
    if isinstance(error, SourceRefused) and error.retry_after_seconds is not None:
        # Asking sooner than it wants would only make it worse.
        return error.retry_after_seconds if error.retry_after_seconds <= source.max_retry_after_seconds else False
    return True
