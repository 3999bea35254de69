"""Read the header Link (RFC 8288)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from errors import SourceInvalid
from sources.verdict import excerpt

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r'"(?:[^"\\]|\\.)*+"|[^\s;,"]*+'
_PARAMETER = re.compile(rf";\s*({_NAME})(?:\s*=\s*({_VALUE}))?\s*|;\s*")
_LINK = re.compile(rf"[\s,]*<([^>]*)>\s*((?:;\s*(?:{_NAME}(?:\s*=\s*(?:{_VALUE}))?\s*)?)*+)(?:,|$)")
_ESCAPED = re.compile(r"\\(.)")


def next_link(headers: Iterable[str]) -> str | None:
    """Return the target of the first link whose relation is `next`, as it is written, or None where there is none.

    Raises:
        SourceInvalid: a header that speaks of a next page cannot be read: taking it for the last would lose rows.
    """
    for header in headers:
        place = 0
        while match := _LINK.match(header, place):
            if "next" in _relations(match[2]):
                return match[1]
            place = match.end()
        if header[place:].strip(" \t,") and "next" in header[place:].lower():
            raise SourceInvalid(f"The header Link cannot be read: {excerpt(header.encode())}")
    return None


def _relations(parameters: str) -> list[str]:
    """Return what the first `rel` says; RFC 8288 has any further one ignored."""
    for parameter in _PARAMETER.finditer(parameters):
        if (parameter[1] or "").lower() == "rel":
            return _ESCAPED.sub(r"\1", (parameter[2] or "").strip('"')).lower().split()
    return []
