"""The sources: when each is due, what keeps it from being synced, and how its last runs ended."""

from __future__ import annotations

from quart import Blueprint, Response, request

from store.runs import select_runs
from store.schedules import select_all_parked
from store.states import select_states
from web import parameters
from web.answers import answer
from web.service import current_service
from web.source_answers import full_content, source_content

SHOWN, MOST_SHOWN, RUNS_SHOWN = 1_000, 10_000, 10

blueprint = Blueprint("sources", __name__)


@blueprint.get("/sources")
async def list_sources() -> Response:
    """Show the sources in the order of their file; `next` is the `after` of the next page, null on the last."""
    parameters.only("after", "limit")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    service = current_service()
    shown, more = service.sources.page(request.args.get("after"), limit)
    states = await select_states(service.database, shown)
    parked = await select_all_parked(service.database)
    contents = [source_content(source, states[source.name]) for source in shown]
    return answer({"sources": contents, "parked": parked, "next": shown[-1].name if more else None})


@blueprint.get("/sources/<name>")
async def show_source(name: str) -> Response:
    """Show one source in full."""
    parameters.only()
    service = current_service()
    source = service.sources.named(name)
    states = await select_states(service.database, [source])
    runs = await select_runs(service.database, source=name, limit=RUNS_SHOWN)
    return answer(full_content(source, states[name], runs))
