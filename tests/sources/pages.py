"""A source in pages of four records that names the next one in every way there is."""

from __future__ import annotations

import json
from typing import Any

from definitions import (
    CursorPaging,
    LinkHeaderPaging,
    NextUrlPaging,
    OffsetPaging,
    PageNumberPaging,
    Paging,
    Source,
)
from tests.feed_server import Answer, Request
from tests.sources.support import source

ROWS = [{"id": number, "name": f"Name {number}"} for number in range(10)]
SIZE = 4
"""Ten records are two full pages and one that is not."""

LINK = LinkHeaderPaging()
NEXT_URL = NextUrlPaging(path=("paging", "next"))
CURSOR = CursorPaging(path=("paging", "cursor"), parameter="after")
NUMBER = PageNumberPaging(size=SIZE, size_parameter="per_page")
UNSIZED = PageNumberPaging(parameter="p", first=0)
OFFSET = OffsetPaging(limit=SIZE)
ALL: list[Paging] = [LINK, NEXT_URL, CURSOR, NUMBER, UNSIZED, OFFSET]

KEEP_ALIVE = {"Connection": "keep-alive"}


def start_of(request: Request) -> int:
    """Return where the page begins that is asked for, in any of the ways."""
    query = {name: values[0] for name, values in request.query.items()}
    if "offset" in query:
        return int(query["offset"])
    if "after" in query:
        return int(query["after"].removeprefix("from "))
    return int(query.get("page", 1)) * SIZE - SIZE if "page" in query else int(query.get("p", 0)) * SIZE


def page(request: Request, rows: list[Any] = ROWS, **details: Any) -> Answer:
    """Answer with one page that names the next one in every way."""
    start = start_of(request)
    end = start + SIZE
    beside: dict[str, Any] = {"next": None, "cursor": None, "total": len(rows)}
    headers = {**KEEP_ALIVE, "X-Total": str(len(rows)), "Link": '</feed.json>; rel="first"'}
    if end < len(rows):
        beside |= {"next": f"?p={end // SIZE}", "cursor": f"from {end}"}
        headers["Link"] += f', <?p={end // SIZE}>; title="a, b"; rel="last next"'
    body = json.dumps({"paging": beside, "rows": rows[start:end], "more": "\ud83d"}).encode()
    headers |= details.pop("headers", {})
    return Answer(**({"body": body, "headers": headers} | details))


def paged(url: str, paging: Paging, **details: Any) -> Source:
    """Return a source that is paged."""
    return source(url, **({"paging": paging, "records": ("rows",)} | details))
