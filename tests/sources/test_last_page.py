"""Where pages are counted, the last one has to prove itself: a page gone wrong must not pass for the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from definitions import DeclaredTotal, OffsetPaging, PageNumberPaging, Paging
from errors import SourceIncomplete, SourceInvalid, SourceRefused
from tests.feed_server import Answer, FeedServer, Request
from tests.sources.pages import NUMBER, OFFSET, ROWS, SIZE, UNSIZED, page, paged, start_of
from tests.sources.support import fetch

TOTAL = DeclaredTotal(header="X-Total")
ASKING_FOR_MORE: list[Paging] = [PageNumberPaging(size=1000), OffsetPaging(limit=1000)]
REFUSED = [Answer(status=404), Answer(status=422)]
UNREADABLE = [
    Answer(body=b""),
    Answer(body=b"null"),
    Answer(body=b"<html>"),
    Answer(body=b'{"error":"later"}'),
    Answer(body=b'[{"id":11},{"id" 12}]'),
]
REPEATED = Answer(body=json.dumps([None, *ROWS]).encode())


def ids(records: dict[int, bytes]) -> list[Any]:
    return [json.loads(record)["id"] for record in records.values()]


@pytest.mark.parametrize("paging", ASKING_FOR_MORE)
async def test_a_source_that_serves_smaller_pages(paging: Paging) -> None:
    """Pages smaller than asked for lose nothing."""
    async with FeedServer(page) as server:
        _, records = await fetch(paged(server.url, paging))
        assert ids(records) == list(range(10))
        assert len(server.requests) == 3


@pytest.mark.parametrize("beyond", [*REFUSED, Answer(body=b"[]"), REPEATED])
@pytest.mark.parametrize("paging", ASKING_FOR_MORE)
async def test_one_page_is_all(paging: Paging, beyond: Answer) -> None:
    """Where a second page is empty, refused or the first again, the short first one was all."""
    async with FeedServer([REPEATED, beyond]) as server:
        feed, records = await fetch(paged(server.url, paging, records=()))
    assert (ids(records), feed.records, feed.rejected, feed.pages) == (list(range(10)), 11, 1, 1)


@pytest.mark.parametrize("unreadable", UNREADABLE)
@pytest.mark.parametrize("paging", [*ASKING_FOR_MORE, UNSIZED])
async def test_a_page_that_cannot_be_read(paging: Paging, unreadable: Answer) -> None:
    """What cannot be read may be a page gone wrong, so it is not the end, and the error says what would prove it."""
    async with FeedServer([Answer(body=json.dumps(ROWS).encode()), unreadable]) as server:
        with pytest.raises(SourceInvalid, match=r"^Page 2: ") as invalid:
            await fetch(paged(server.url, paging, records=()))
    assert "set total" in invalid.value.remedy


@pytest.mark.parametrize("beyond", [*REFUSED, *UNREADABLE, REPEATED])
@pytest.mark.parametrize("paging", [*ASKING_FOR_MORE, PageNumberPaging(size=11), PageNumberPaging()])
async def test_a_total_that_was_reached(paging: Paging, beyond: Answer) -> None:
    """Once all records are there that were declared, any answer that is no further page is the end."""
    first = Answer(body=REPEATED.body, headers={"X-Total": "11"})
    async with FeedServer([first, beyond]) as server:
        feed, records = await fetch(paged(server.url, paging, records=(), total=TOTAL))
    assert (ids(records), feed.records, feed.rejected, feed.pages) == (list(range(10)), 11, 1, 1)


async def test_a_total_that_was_reached_too_early() -> None:
    """A total that is only that of the first page ends nothing: the next page is read, and shows the lie."""
    async with FeedServer(lambda request: page(request, headers={"X-Total": str(SIZE)})) as server:
        with pytest.raises(SourceIncomplete, match="declares 4 records"):
            await fetch(paged(server.url, UNSIZED, total=TOTAL))
    assert len(server.requests) == 4


@pytest.mark.parametrize("paging", [NUMBER, OFFSET, UNSIZED])
async def test_a_refusal_after_full_pages(paging: Paging) -> None:
    """Without a total, a refusal after full pages is a failure, and the error says what would prove it the end."""
    rows = ROWS[: 2 * SIZE]

    def answer(request: Request) -> Answer:
        return page(request, rows) if start_of(request) < len(rows) else Answer(status=404)

    async with FeedServer(answer) as server:
        with pytest.raises(SourceRefused, match=r"^Page 3: .*404") as refused:
            await fetch(paged(server.url, paging))
        assert "set total" in refused.value.remedy
        _, records = await fetch(paged(server.url, paging, total=TOTAL))
    assert ids(records) == list(range(8))


async def test_rejected_records_of_the_second_page() -> None:
    """What was held back until it proved to be a page counts like the rest."""
    pages = [b'[{"id":1},null]', b'[null,{"id":2}]', b"[]"]
    async with FeedServer([Answer(body=body) for body in pages]) as server:
        feed, records = await fetch(paged(server.url, OFFSET, records=()))
    assert list(records) == [0, 3]
    assert (feed.records, feed.rejected, [problem.position for problem in feed.problems]) == (4, 2, [1, 2])


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_another_refusal_is_one(status: int) -> None:
    """A refusal that does not speak of the page proves nothing, even where a total was reached."""
    first = Answer(body=b'[{"id":1}]', headers={"X-Total": "1"})
    async with FeedServer([first, Answer(status=status)]) as server:
        with pytest.raises(SourceRefused):
            await fetch(paged(server.url, OFFSET, records=(), total=TOTAL))


@pytest.mark.parametrize("paging", [UNSIZED, NUMBER, OFFSET])
async def test_no_more_lines(paging: Paging) -> None:
    """An empty answer of the type of lines is an empty page after others; of any other type it is none."""
    for kind, ends in (("application/x-ndjson", True), ("text/html", False), (None, False)):
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[:SIZE])
        pages = [Answer(body=lines, content_type="application/x-ndjson"), Answer(content_type=kind)]
        async with FeedServer(pages) as server:
            if ends:
                _, records = await fetch(paged(server.url, paging, records=()))
                assert ids(records) == list(range(SIZE))
                continue
            with pytest.raises(SourceInvalid, match="Page 2: The answer is empty"):
                await fetch(paged(server.url, paging, records=()))
    async with FeedServer(Answer(content_type="application/x-ndjson")) as server:
        with pytest.raises(SourceInvalid, match="does not say that there are no records"):
            await fetch(paged(server.url, paging, records=(), format="ndjson"))
