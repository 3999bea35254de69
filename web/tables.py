"""The mirrors: which there are, their rows, one row, and what was done to it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import unquote, unquote_to_bytes

from quart import Blueprint, Response, current_app, request
from quart.blueprints import BlueprintSetupState
from werkzeug.routing import BaseConverter

from definitions import Source
from errors import BadRequest, NotFound
from store.history import select_row_history
from store.mirrors import mirror_name
from store.tables import TableSummary, select_tables
from web import parameters
from web.answers import answer, change_content
from web.exports import Exports, ending_exports
from web.filters import read_query
from web.formats import wanted_format
from web.rows import row_answer, rows_answer
from web.service import current_service

SHOWN, MOST_SHOWN = 100, 1_000
KEY_IN_PATH = re.compile(rb"/tables/[^/]+/rows/(.*)/history")
ROW_IN_PATH = re.compile(rb"/tables/[^/]+/rows/(.*)")
EXPORTS = "lockstep.exports"

blueprint = Blueprint("tables", __name__)


class AnyText(BaseConverter):
    """A part of a path that may hold anything, line breaks and slashes too, or nothing at all."""

    regex = r"[\s\S]*?"
    part_isolating = False
    weight = 200


@blueprint.record_once
def set_up(state: BlueprintSetupState) -> None:
    """Have every application count and end its own exports, and know keys in paths."""
    state.app.extensions[EXPORTS] = Exports()
    app: Any = state.app  # typed as what Quart shares with Flask
    app.asgi_app = ending_exports(app.asgi_app)
    state.app.url_map.converters["any_text"] = AnyText


@blueprint.get("/tables")
async def list_tables() -> Response:
    """Show the mirrors of all sources."""
    parameters.only()
    service = current_service()
    tables = await select_tables(service.database, service.sources)
    return answer({"tables": [table_content(table) for table in tables]})


@blueprint.get("/tables/<table>")
async def list_rows(table: str) -> Response:
    """Show rows of a mirror: those that the parameters ask for, in the format that is wanted."""
    sources, form = sources_of(table), wanted_format()
    query = read_query(parameters_sent())
    exports = cast("Exports", current_app.extensions[EXPORTS])
    return await rows_answer(current_service().database, sources, query, form, exports)


@blueprint.get("/tables/<table>/rows/<any_text:key>", merge_slashes=False)
async def show_row(table: str, key: str) -> Response:  # noqa: ARG001 # read from the path as it was sent
    """Show one row of a mirror."""
    parameters.only("select", "deleted", "as_of", "format", "raw")
    sources, form = sources_of(table), wanted_format()
    query = read_query(parameters_sent())
    parts = key_parts(request.scope["raw_path"], ROW_IN_PATH)
    return await row_answer(current_service().database, sources, parts, query, form)


@blueprint.get("/tables/<table>/rows/<any_text:key>/history", merge_slashes=False)
async def show_history(table: str, key: str) -> Response:
    """Show what runs did to a row, newest first; `next` is the `before` of the next page, null on the last."""
    if not request.scope["raw_path"].endswith(b"/history"):
        return await show_row(table, key)  # the key itself ends like this, with a slash that was encoded
    parameters.only("before", "limit")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    before = parameters.whole_number("before")
    service = current_service()
    found_sources, parts = service.sources.of_table(table), key_parts(request.scope["raw_path"], KEY_IN_PATH)
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


def parameters_sent() -> list[tuple[str, str]]:
    """Return the parameters; BadRequest if they are no UTF-8, for then some would be read as other ones."""
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeDecodeError as exc:
        raise BadRequest("The parameters are not UTF-8.", remedy="Percent-encode the bytes of UTF-8.") from exc
    return list(request.args.items(multi=True))


def sources_of(table: str) -> Sequence[Source]:
    """Return the sources of a table, named with or without its schema; NotFound tells those that are alike."""
    sources = current_service().sources
    found = sources.of_table(table)
    names = sorted({mirror_name(source) for source in found})
    if len(names) > 1:
        raise BadRequest(f"There are several tables {table!r}.", remedy=f"Name one of them: {', '.join(names)}.")
    if not found:
        known = {name: None for source in sources for name in (source.table, mirror_name(source))}
        near = difflib.get_close_matches(table, known, n=3)
        remedy = f"Did you mean {' or '.join(near)}?" if near else "GET /tables lists them."
        raise NotFound(f"There is no table {table[:63]!r}.", remedy=remedy)
    return found


def table_content(table: TableSummary) -> dict[str, Any]:
    """Return a mirror as `/tables` shows it."""
    last = table.last_run
    return {
        "name": table.name,
        "schema": table.db_schema,
        "table": table.table,
        "sources": table.sources,
        "key": table.key,
        "columns": [
            {"name": column.name, "type": column.type, "field": column.field, "key": column.is_key}
            for column in table.columns
        ],
        "live_rows": table.live_rows,
        "last_run": None
        if last is None
        else {
            "run": last.run,
            "source": last.source,
            "status": last.status,
            "started_at": last.started_at,
            "finished_at": last.finished_at,
        },
    }


def key_parts(raw_path: bytes, pattern: re.Pattern[bytes] = KEY_IN_PATH) -> list[str] | None:
    """Return the values of a key from the path as it was sent: only there is `,` not yet the same as `%2C`."""
    match = pattern.search(raw_path)
    try:
        return [unquote(part, errors="strict") for part in match[1].decode("ascii").split(",")] if match else None
    except UnicodeDecodeError:
        return None
