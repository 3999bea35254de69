"""What the status of an answer and the header Retry-After say."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus


def phrase(status: int) -> str:
    """Return what a status is called, after a blank; nothing where it has no name."""
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
