"""What was done to one row of the mirror."""

from __future__ import annotations

import re
from urllib.parse import unquote

from quart import Blueprint, Response, request

from errors import NotFound
from store.history import select_row_history
from web import parameters
from web.answers import answer, change_content
from web.service import current_service

SHOWN, MOST_SHOWN = 100, 1_000
KEY_IN_PATH = re.compile(rb"/tables/[^/]+/rows/(.+)/history")

blueprint = Blueprint("tables", __name__)


@blueprint.get("/tables/<table>/rows/<path:key>/history", merge_slashes=False)
async def show_history(table: str, key: str) -> Response:
    """Show what runs did to a row, newest first; `next` is the `before` of the next page, null on the last."""
    parameters.only("before", "limit")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    before = parameters.whole_number("before")
    service = current_service()
    found_sources, parts = service.sources.of_table(table), key_parts(request.scope["raw_path"])
    if not found_sources or parts is None:
        raise NotFound(f"There is no table {table[:63]!r} with such rows.")
    source = found_sources[0]  # those that share a table have the same key
    # One more than is shown tells whether there is a next page.
    found = await select_row_history(service.database, source, parts, before=before, limit=limit + 1)
    if found is None:
        raise NotFound(f"There is no row {key[:100]!r} in {table}, and there never was one.")
    return answer(
        {
            "table": f"{source.db_schema}.{source.table}",
            "key": found.key,
            "created_at": found.created_at,
            "deleted_at": found.deleted_at,
            "history": [change_content(change) for change in found.changes[:limit]],
            "next": found.changes[limit - 1].seq if len(found.changes) > limit else None,
        }
    )


def key_parts(raw_path: bytes) -> list[str] | None:
    """Return the values of a key from the path as it was sent: only there is `,` not yet the same as `%2C`."""
    match = KEY_IN_PATH.search(raw_path)
    try:
        return [unquote(part, errors="strict") for part in match[1].decode("ascii").split(",")] if match else None
    except UnicodeDecodeError:
        return None
