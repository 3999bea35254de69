"""Answers with rows: pages, exports and single rows, and when they need not be given again."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus

from quart import Response, request

from definitions import Source
from errors import BadRequest, NotFound, NotOneRow
from store.database import Database
from store.query import Query
from store.reading import Page, Reading, Snapshot, most_exports, open_snapshot
from web.exports import TOTAL_SECONDS, Exports
from web.formats import Format
from web.ranges import refuse_row_range, tell_range, wants_count

SHOWN, MOST_SHOWN = 1_000, 10_000


async def rows_answer(
    database: Database, sources: Sequence[Source], query: Query, form: Format, exports: Exports
) -> Response:
    """Return a page of rows; all of them, one after the other, where NDJSON or CSV is wanted without a limit."""
    if query.limit is not None and query.limit > MOST_SHOWN:
        raise BadRequest(
            f"The parameter limit must be a whole number from 1 to {MOST_SHOWN}.",
            remedy="Follow the pages by next, or ask for format=ndjson or format=csv without a limit for all rows.",
        )
    refuse_row_range()
    async with open_snapshot(database, sources[0]) as snapshot:
        etag = entity_tag(snapshot, sources, query, form)
        if is_known(etag):
            return not_modified(etag)
        reading = await snapshot.read(query)
        if form.in_pages or query.limit is not None:
            return await _page(reading, query, form, etag)
    return await _export(database, sources[0], query, form, exports, etag)


async def row_answer(
    database: Database, sources: Sequence[Source], key: Sequence[str] | None, query: Query, form: Format
) -> Response:
    """Return one row; NotFound names those that are near."""
    async with open_snapshot(database, sources[0]) as snapshot:
        etag = entity_tag(snapshot, sources, query, form)
        if is_known(etag):
            return not_modified(etag)
        found = await snapshot.select_row(key, query, json=form.json) if key else None
        if found is None:
            raise await _no_row(snapshot, key or [], query)
        reading, row = found
        return _answer(form.row(reading.names, row, reading.are_texts), form, etag)


async def _no_row(snapshot: Snapshot, key: Sequence[str], query: Query) -> NotFound:
    cause = f"There is no row {','.join(key)[:100]!r} in {snapshot.table}."
    if query.as_of is not None:
        return NotFound(
            f"{cause[:-1]} as run {query.as_of} left it.", remedy="Ask for another run, or for the present."
        )
    if query.deleted == "exclude":
        buried = await snapshot.select_row(key, Query(deleted="only"), json=True)
        if buried is not None:
            return NotFound(f"{cause[:-1]} any more: it was deleted.", remedy="Add deleted=include to see it.")
    near = [repr(value[:100]) for value in await snapshot.select_near(key)]
    return NotFound(cause, remedy=f"Near it are {', '.join(near)}." if near else "GET /tables tells the key.")


async def _export(
    database: Database, source: Source, query: Query, form: Format, exports: Exports, etag: str | None
) -> Response:
    """Return all rows, as they are read; the tag is from just before, so it never promises more than is given."""
    if request.http_version == "1.0":
        raise BadRequest(
            "With HTTP/1.0 nobody could tell an answer that is complete from one that was cut.",
            remedy="Use HTTP/1.1 (nginx: proxy_http_version 1.1), or pages with a limit.",
        )
    if request.method == "HEAD":
        return _answer(b"", form, etag)
    export = await exports.begin(_chunks(database, source, query, form), request.scope, most=most_exports(database))
    response = _with_headers(Response(export, content_type=form.content_type), etag)
    response.timeout = None  # Quart would end it after a minute; the export has limits of its own
    return response


async def _chunks(database: Database, source: Source, query: Query, form: Format) -> AsyncGenerator[bytes, None]:
    async with open_snapshot(database, source) as snapshot:
        reading = await snapshot.read(query)
        yield form.head(reading.names)
        async for rows in reading.stream(json=form.json):
            yield form.lines(rows, reading.are_texts)


async def _page(reading: Reading, query: Query, form: Format, etag: str | None) -> Response:
    extent = await reading.extent() if wants_count() else None
    if form.name == "object":
        page = await _only_row(reading, query.limit)
    else:
        page = await reading.page(query.limit or SHOWN, json=form.json)
    response = _answer(form.page(reading.names, page.rows, reading.are_texts), form, etag)
    tell_range(response, page, extent, is_first=query.after is None)
    return response


async def _only_row(reading: Reading, limit: int | None) -> Page:
    """Return the page that has one row; NotOneRow if it has none or several."""
    page = await reading.page(1, json=True)
    if not page.rows:
        raise NotOneRow("No row was found, so there is none to show as one object.")
    if page.next is not None and limit != 1:
        raise NotOneRow("Several rows were found, which cannot be shown as one object.")
    return page


def entity_tag(snapshot: Snapshot, sources: Sequence[Source], query: Query, form: Format) -> str | None:
    """Return the tag of an answer, which is another one as soon as the answer could be; None where nobody would tell.

    Old tombstones are removed without a word, so what shows them has none where that is done.
    """
    purged = query.deleted != "exclude" and any(source.purge_after_days is not None for source in sources)
    if snapshot.version is None or purged:
        return None
    counted = "counted" if wants_count() else ""
    asked = (snapshot.version, request.path, request.query_string.decode("latin-1"), form.name, counted)
    return hashlib.blake2s("\n".join(asked).encode(), digest_size=16).hexdigest()


def is_known(etag: str | None) -> bool:
    """Tell whether the client has this answer already; a star, which is for any answer, could also stand for none."""
    known = request.if_none_match
    return etag is not None and not known.star_tag and known.contains_weak(etag)


def not_modified(etag: str | None) -> Response:
    """Return that the client has the answer already."""
    response = Response(b"", status=HTTPStatus.NOT_MODIFIED)
    del response.headers["Content-Type"]
    return _with_headers(response, etag)


def _answer(body: bytes, form: Format, etag: str | None) -> Response:
    return _with_headers(Response(body, content_type=form.content_type), etag)


def _with_headers(response: Response, etag: str | None) -> Response:
    if etag is not None:
        response.set_etag(etag, weak=True)
    response.timeout = TOTAL_SECONDS  # the usual minute is short for large pages and slow clients
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Vary"] = "Accept, Authorization, Prefer"
    return response
