"""Whether the service lives, and whether it can work."""

from __future__ import annotations

from quart import Blueprint, Response

from web.answers import answer
from web.service import current_service

blueprint = Blueprint("health", __name__, url_prefix="/health")


@blueprint.get("/live")
async def live() -> Response:
    """Say that the process answers."""
    return answer({"status": "live"})


@blueprint.get("/ready")
async def ready() -> Response:
    """Say that the database answers; a problem with the reason and status 503 while it does not."""
    await current_service().check()
    return answer({"status": "ready"})
