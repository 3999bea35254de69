"""What was done: the runs, newest first."""

from __future__ import annotations

from quart import Blueprint, Response

from errors import NotFound
from store.runs import select_run, select_runs
from web import parameters
from web.answers import answer, run_content
from web.service import current_service

SHOWN, MOST_SHOWN = 50, 1_000

blueprint = Blueprint("runs", __name__)


@blueprint.get("/runs")
async def list_runs() -> Response:
    """Show runs, newest first; `next` is the `before` of the next page, null on the last."""
    parameters.only("before", "limit")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    before = parameters.whole_number("before")
    # One more than is shown tells whether there is a next page.
    found = await select_runs(current_service().database, before=before, limit=limit + 1)
    shown = [run_content(report, with_problems=False) for report in found[:limit]]
    return answer({"runs": shown, "next": found[limit - 1].run if len(found) > limit else None})


@blueprint.get("/runs/<int:run>")
async def show_run(run: int) -> Response:
    """Show one run with the records that it rejected."""
    parameters.only()
    report = await select_run(current_service().database, run) if run <= parameters.LARGEST_ID else None
    if report is None:
        raise NotFound(f"There is no run {str(run)[:20]}.")
    return answer(run_content(report, with_problems=True))
