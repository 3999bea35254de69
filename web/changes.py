"""The journal as a feed: pages of JSON, in the order of commits."""

from __future__ import annotations

from quart import Blueprint, Response, request

from errors import NotFound
from models import Change
from store.journal import Page, select_newest, select_page
from web import parameters
from web.answers import answer, change_content, first_load_content
from web.service import Service, current_service

SHOWN, MOST_SHOWN = 100, 1_000
LATEST = "latest"

blueprint = Blueprint("changes", __name__)


@blueprint.get("/changes")
async def list_changes() -> Response:
    """Show the journal in order; `next` is the `after` to go on from, also once the end is reached."""
    parameters.only("after", "limit", "source", "table")
    service = current_service()
    wanted = _filter(service)
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    if request.args.get("after") == LATEST:
        return answer({"changes": [], "next": await select_newest(service.database)})
    after = parameters.whole_number("after", lowest=0) or 0
    return answer(_page_content(await select_page(service.database, after=after, limit=limit, **wanted)))


def _filter(service: Service) -> dict[str, str | None]:
    """Return the source and the table that are asked for; raise NotFound if there are none of that name."""
    source, table = request.args.get("source"), request.args.get("table")
    if source is not None:
        source = service.sources.named(source).name
    if table is not None:
        found = service.sources.of_table(table)
        if not found:
            raise NotFound(f"There is no table {table[:63]!r} that a source is mirrored to.")
        table = f"{found[0].db_schema}.{found[0].table}"
    return {"source": source, "table": table}


def _page_content(page: Page) -> dict[str, object]:
    changes = [change_content(entry) for entry in page.entries if isinstance(entry, Change)]
    loads = [first_load_content(entry) for entry in page.entries if not isinstance(entry, Change)]
    return {"changes": changes, "next": page.upto} | ({"first_loads": loads} if loads else {})
