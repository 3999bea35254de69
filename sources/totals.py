"""Check a fetch against the number of records that the source itself declares."""

from __future__ import annotations

import re
from collections.abc import Mapping

from definitions import DeclaredTotal
from errors import SourceIncomplete, SourceInvalid
from sources.frame import describe
from sources.verdict import excerpt

_NUMBER = re.compile(r"\d{1,18}")
_REMEDY = (
    "Nothing was written. Look at what the URL answers; total.header or total.path of the source says where it "
    "declares how many records there are in all."
)


class TotalCheck:
    """Note what every page declares, and compare it in the end with what was cut.

    The first page has to declare the total. Later ones may leave it out, but not declare another one.
    """

    def __init__(self, where: DeclaredTotal) -> None:
        self.declared: int | None = None
        self._where = where

    def note(self, headers: Mapping[str, str], value: bytes | None) -> None:
        """Take what a page declares: in its headers, or as the JSON under `total.path`.

        Raises:
            SourceInvalid: it is missing, or is not a number.
            SourceIncomplete: it is not that of the pages before.
        """
        text = headers.get(self._where.header) if self._where.header else _text(value)
        if text is None and self.declared is not None:
            return
        if text is None:
            raise SourceInvalid(
                f"The answer has no {self._place}, which should say how many records there are.", remedy=_REMEDY
            )
        if not _NUMBER.fullmatch(text.strip()):
            raise SourceInvalid(
                f"The {self._place} is not a number of records: {excerpt(text.encode())}", remedy=_REMEDY
            )
        total = int(text)
        if self.declared not in (None, total):
            raise SourceIncomplete(
                f"The number of records that the {self._place} declares changed from {self.declared:,} to {total:,} "
                "between two pages."
            )
        self.declared = total

    def finish(self, records: int) -> None:
        """Raise SourceIncomplete unless as many records were cut as were declared."""
        if records != self.declared:
            raise SourceIncomplete(
                f"The source declares {self.declared:,} records in the {self._place}, but {records:,} came."
            )

    @property
    def _place(self) -> str:
        return f"header {self._where.header}" if self._where.header else f"field {describe(self._where.path)}"


def _text(value: bytes | None) -> str | None:
    """Return a JSON number, or the text of a string that holds one; None where there is nothing."""
    if value is None or value == b"null":
        return None
    return value.decode("utf-8", "replace").strip('"')
