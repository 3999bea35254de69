"""What was done: the runs, newest first, and the journal, in order."""

from __future__ import annotations

from quart import Blueprint, Response

from errors import NotFound
from store.journal import select_changes
from store.runs import select_run, select_runs
from web import parameters
from web.answers import answer, change_content, run_content
from web.service import current_service

RUNS_SHOWN, CHANGES_SHOWN, MOST_SHOWN = 50, 100, 1_000

blueprint = Blueprint("runs", __name__)


@blueprint.get("/runs")
async def list_runs() -> Response:
    """Show runs, newest first; `next` is the `before` of the next page, null on the last."""
    parameters.only("before", "limit")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or RUNS_SHOWN
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


@blueprint.get("/changes")
async def list_changes() -> Response:
    """Show the journal in order; `next` is the `after` to go on from, also once the end is reached."""
    parameters.only("after", "limit")
    after = parameters.whole_number("after", lowest=0) or 0
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or CHANGES_SHOWN
    found = await select_changes(current_service().database, after=after, limit=limit)
    return answer({"changes": [change_content(change) for change in found], "next": found[-1].seq if found else after})
