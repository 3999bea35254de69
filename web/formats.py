"""How rows are written: as a JSON array, as one JSON object, as NDJSON, or as CSV; and what a request wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quart import request
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import NotAcceptable

from errors import BadRequest
from store.reading import Row

FormatName = Literal["json", "object", "ndjson", "csv"]

CONTENT_TYPES: dict[FormatName, str] = {
    "json": "application/json",
    "object": "application/vnd.pgrst.object+json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
}
ACCEPTED: dict[str, FormatName] = {
    "application/json": "json",
    "application/vnd.pgrst.object+json": "object",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "text/csv": "csv",
}

FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")
"""What a cell begins with that a spreadsheet takes for a formula (OWASP, "CSV Injection")."""
IN_QUOTES = re.compile(r'[",\r\n]|^(\\\.)?$')
"""Cells that are written in quotes: also the empty one, which would be a null, and the end mark of COPY."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How rows are to be written; `raw` cells of CSV are written as they are, even if they look like formulas."""

    name: FormatName
    raw: bool = False

    @property
    def json(self) -> bool:
        """Whether rows are JSON texts."""
        return self.name != "csv"

    @property
    def content_type(self) -> str:
        """The header Content-Type."""
        return CONTENT_TYPES[self.name]

    def head(self, names: Sequence[str]) -> bytes:
        """Return what stands before the first row of a stream."""
        return b"" if self.json else self._line(names, [True] * len(names)).encode()

    def lines(self, rows: Sequence[Row], are_texts: Sequence[bool]) -> bytes:
        """Return rows as lines of NDJSON or CSV; `are_texts` tells which fields may look like formulas."""
        if self.json:
            return "".join(one_line(row[0] or "") + "\n" for row in rows).encode()
        return "".join(self._line(row, are_texts) for row in rows).encode()

    @property
    def in_pages(self) -> bool:
        """Whether rows come in pages even where no limit is given."""
        return self.name in ("json", "object")

    def page(self, names: Sequence[str], rows: Sequence[Row], are_texts: Sequence[bool]) -> bytes:
        """Return rows as a whole."""
        if self.name == "object":
            return self.row(names, rows[0], are_texts)
        if self.name == "json":
            return b"[" + ",".join(row[0] or "" for row in rows).encode() + b"]"
        return self.head(names) + self.lines(rows, are_texts)

    def row(self, names: Sequence[str], row: Row, are_texts: Sequence[bool]) -> bytes:
        """Return one row alone."""
        return (row[0] or "").encode() if self.in_pages else self.head(names) + self.lines([row], are_texts)

    def _line(self, row: Row, are_texts: Sequence[bool]) -> str:
        return ",".join(map(self._cell, row, are_texts)) + "\r\n"

    def _cell(self, value: str | None, is_text: bool) -> str:
        if value is None:
            return ""
        if is_text and not self.raw and FORMULA.match(value):
            value = "'" + value
        return '"' + value.replace('"', '""') + '"' if IN_QUOTES.search(value) else value


def one_line(text: str) -> str:
    """Return JSON on one line; only columns of the type json keep line breaks, which stand between values."""
    return text.replace("\n", " ").replace("\r", " ") if "\n" in text or "\r" in text else text


def wanted_format() -> Format:
    """Return the format that the current request names, or else the one that it accepts most."""
    name, raw = request.args.get("format"), request.args.get("raw", "0")
    if raw not in ("0", "1"):
        raise BadRequest("The parameter raw must be 1 or 0.")
    if name is None:
        return Format(name=_accepted(), raw=raw == "1")
    match name:
        case "json" | "ndjson" | "csv":
            return Format(name=name, raw=raw == "1")
    raise BadRequest("The parameter format must be json, ndjson or csv.")


def _accepted() -> FormatName:
    if not request.accept_mimetypes:
        return "json"
    # What parameters say, such as a charset, makes no other format of it.
    bare = MIMEAccept([(name.partition(";")[0].strip(), quality) for name, quality in request.accept_mimetypes])
    best = bare.best_match(list(ACCEPTED))
    if best is None:
        raise NotAcceptable("Rows are given as application/json, application/x-ndjson or text/csv.")
    return ACCEPTED[best]
