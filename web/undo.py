"""Taking runs back, and pausing what would only do the same again."""

from __future__ import annotations

from quart import Blueprint, Response

from errors import LockstepError, NotFound
from store import pauses
from web import parameters
from web.answers import answer, error_answer, undo_content
from web.service import current_service

PAUSED_BY_HAND = "somebody paused it"

blueprint = Blueprint("undo", __name__)


@blueprint.post("/runs/<int:run>/undo")
async def undo_run(run: int) -> Response:
    """Take back what a run changed, all of it or nothing, and pause the source."""
    parameters.only()
    if run > parameters.LARGEST_ID:
        raise NotFound(f"There is no run {str(run)[:20]}.")
    try:
        return answer(undo_content(await current_service().undo(run)))
    except LockstepError as exc:
        return error_answer(exc, of_run=True)


@blueprint.post("/sources/<name>/pause")
async def pause_source(name: str) -> Response:
    """Have the source not synced until it is resumed."""
    parameters.only()
    service = current_service()
    changed = await pauses.pause(service.database, service.sources.named(name), reason=PAUSED_BY_HAND)
    return answer({"source": name, "status": "paused", "changed": changed})


@blueprint.post("/sources/<name>/resume")
async def resume_source(name: str) -> Response:
    """Have a paused source synced again from the next call on."""
    parameters.only()
    service = current_service()
    changed = await pauses.resume(service.database, service.sources.named(name))
    return answer({"source": name, "status": "active", "changed": changed})
