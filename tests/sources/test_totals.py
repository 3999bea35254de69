"""A source that says how many records there are is held to it."""

from __future__ import annotations

import pytest

from definitions import DeclaredTotal, Paging
from errors import SourceIncomplete, SourceInvalid
from tests.feed_server import Answer, FeedServer, Request
from tests.sources.pages import CURSOR, LINK, OFFSET, ROWS, SIZE, page, paged, start_of
from tests.sources.support import fetch, source

WHERE = (DeclaredTotal(header="x-total"), DeclaredTotal(path=("paging", "total")))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("paging", [None, LINK, OFFSET])
async def test_met(where: DeclaredTotal, paging: Paging | None) -> None:
    """As many records as declared are a snapshot, on one page or on several."""
    rows = ROWS if paging else ROWS[:SIZE]
    async with FeedServer(lambda request: page(request, rows)) as server:
        feed, _ = await fetch(source(server.url, paging=paging, records=("rows",), total=where))
    assert feed.records == len(rows)


@pytest.mark.parametrize("where", WHERE)
async def test_missed(where: DeclaredTotal) -> None:
    """One record more or less is none, and both numbers are told."""
    async with FeedServer(page) as server:
        with pytest.raises(SourceIncomplete, match=r"declares 10 records .* but 4 came"):
            await fetch(source(server.url, records=("rows",), total=where))


@pytest.mark.parametrize("where", WHERE)
async def test_changed(where: DeclaredTotal) -> None:
    """A total that changes from page to page shows that the pages are of different snapshots."""
    async with FeedServer(lambda request: page(request, ROWS[: 10 - start_of(request) // 4])) as server:
        with pytest.raises(SourceIncomplete, match="changed from 10 to 9"):
            await fetch(paged(server.url, OFFSET, total=where))


@pytest.mark.parametrize("said", [None, "", "many", "-1", "1.5", "[1]", "true", "9" * 30, '"x"'])
async def test_no_number(said: str | None) -> None:
    """A total that is missing or not a number is an error that says where it was looked for."""
    body = f'{{"rows": [], "total": {said or "null"}}}'.encode() if said != "many" else b'{"rows": [], "t": 1}'
    async with FeedServer(Answer(body=body, headers={} if said is None else {"X-Total": said})) as server:
        for where in (DeclaredTotal(header="X-Total"), DeclaredTotal(path=("total",))):
            with pytest.raises(SourceInvalid, match=r"(?i)total") as caught:
                await fetch(source(server.url, records=("rows",), total=where))
            assert "total.header or total.path" in caught.value.remedy


async def test_only_on_the_first_page() -> None:
    """Later pages need not repeat it; text that is a number will do."""

    def answer(request: Request) -> Answer:
        total = '"total":"2",' if "after" not in request.query else ""
        cursor = '"a"' if "after" not in request.query else "null"
        return Answer(body=f'{{{total}"paging":{{"cursor":{cursor}}},"rows":[{{"id":{cursor}}}]}}'.encode())

    async with FeedServer(answer) as server:
        feed, _ = await fetch(paged(server.url, CURSOR, total=DeclaredTotal(path=("total",))))
    assert feed.records == 2
