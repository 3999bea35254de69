"""The journal as a feed, in the order of commits: pages of JSON, or a stream of events that goes on and on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from quart import Blueprint, Response, request

from errors import DatabaseError, NotAuthorized, NotFound, ScopeMissing
from models import Change
from store.journal import Entry, Page, select_newest, select_page
from web import auth, parameters
from web.answers import answer, change_content, encode, first_load_content
from web.service import Service, current_service
from web.streams import Place

SHOWN, MOST_SHOWN = 100, 1_000
LATEST = "latest"
EVENT_STREAM = "text/event-stream"
RECONNECT_MILLISECONDS = 2_000
ENTRIES_AT_ONCE = 200
"""How many entries a stream holds in memory; the next ones are read when the client has taken these."""

SILENCE = b":\n\n"

blueprint = Blueprint("changes", __name__)


@blueprint.get("/changes")
async def list_changes() -> Response:
    """Show the journal in order, as a page whose `next` is the `after` to go on from, or as a stream."""
    if request.accept_mimetypes.best_match(("application/json", EVENT_STREAM)) == EVENT_STREAM:
        return await _stream()
    parameters.only("after", "limit", "source", "table")
    service = current_service()
    wanted = _wanted(service)
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    if request.args.get("after") == LATEST:
        return answer({"changes": [], "next": await select_newest(service.database)}, Vary="Accept")
    after = parameters.whole_number("after", lowest=0) or 0
    page = await select_page(service.database, after=after, limit=limit, **wanted)
    return answer(_page_content(page), Vary="Accept")


async def _stream() -> Response:
    parameters.only("after", "source", "table")
    service = current_service()
    wanted, after = _wanted(service), await _beginning(service)
    place = service.streams.take_place()
    events = _events(service, place, after, wanted, auth.confirmation("read"))
    response = Response(b"" if request.method == "HEAD" else events, content_type=EVENT_STREAM)
    response.timeout = None
    response.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"})
    return response


async def _beginning(service: Service) -> int:
    """Return after which number a stream begins: what the client has seen, what it asks for, or else the newest."""
    last_seen = request.headers.get("Last-Event-ID")
    if last_seen:
        return parameters.number(last_seen, "The header Last-Event-ID", lowest=0)
    if request.args.get("after", LATEST) == LATEST:
        return await select_newest(service.database)
    return parameters.whole_number("after", lowest=0) or 0


def _wanted(service: Service) -> dict[str, str | None]:
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


async def _events(
    service: Service,
    place: Place,
    seen: int,
    wanted: dict[str, str | None],
    confirm: Callable[[], Awaitable[None]],
) -> AsyncIterator[bytes]:
    """Yield what follows `seen` for as long as the caller may see it, and a sign of life where there is nothing new."""
    streams, clock = service.streams, asyncio.get_running_loop().time
    told, beat_at = seen, clock() + streams.beat_seconds
    async with streams.following(place, service.database) as watch:
        yield b"retry: %d\nid: %d\n\n" % (RECONNECT_MILLISECONDS, seen)
        while not streams.ending:
            try:
                if clock() >= beat_at:
                    await confirm()
                    # Others' changes move the place too, so that a client that reconnects need not go through them.
                    yield SILENCE if told == seen else b"id: %d\n\n" % seen
                    told, beat_at = seen, clock() + streams.beat_seconds
                page = await select_page(service.database, after=seen, limit=ENTRIES_AT_ONCE, **wanted)
            except DatabaseError:
                yield SILENCE
                await streams.pause()
                continue
            except (NotAuthorized, ScopeMissing):
                return
            seen = page.upto
            if page.entries:
                yield b"".join(map(_event, page.entries))
                told = page.entries[-1].seq
            if len(page.entries) < ENTRIES_AT_ONCE:
                await watch.wait_beyond(seen, beat_at - clock())


def _event(entry: Entry) -> bytes:
    name, content = (
        (b"change", change_content(entry)) if isinstance(entry, Change) else (b"first_load", first_load_content(entry))
    )
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, name, encode(content))


def _page_content(page: Page) -> dict[str, object]:
    changes = [change_content(entry) for entry in page.entries if isinstance(entry, Change)]
    loads = [first_load_content(entry) for entry in page.entries if not isinstance(entry, Change)]
    return {"changes": changes, "next": page.upto} | ({"first_loads": loads} if loads else {})
