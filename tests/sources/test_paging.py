"""All pages of a source are one snapshot: complete, in order, each of them once, or there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import xxhash

from definitions import (
    ApiKeyAuth,
    CursorPaging,
    DeclaredTotal,
    Paging,
)
from errors import (
    AddressRefused,
    SourceError,
    SourceIncomplete,
    SourceInvalid,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
)
from models import Progress, Validators
from sources import attempts, open_feed
from sources.links import next_link
from tests.feed_server import Answer, Drip, FeedServer, Request, Reset, Truncate
from tests.sources.pages import ALL, CURSOR, LINK, NEXT_URL, NUMBER, OFFSET, ROWS, SIZE, UNSIZED, page, paged, start_of
from tests.sources.support import fetch, source


def values(records: dict[int, bytes]) -> list[Any]:
    return [json.loads(record) for record in records.values()]


@pytest.mark.parametrize("paging", ALL, ids=lambda paging: type(paging).__name__)
@pytest.mark.parametrize("encodings", [(), ("gzip",)])
async def test_all_pages(paging: Paging, encodings: tuple[str, ...]) -> None:
    """The pages are one snapshot: positions, digest, size and headers go over all of them, on one connection."""
    told: list[Progress] = []
    bodies = [page(Request(method="GET", path="", query={"p": [str(n)]}, headers={})).body for n in range(3)]
    async with FeedServer(lambda request: page(request, encodings=encodings)) as server:
        feed, records = await fetch(paged(server.url, paging))
        async with open_feed(paged(server.url, paging), on_progress=told.append) as again:
            assert sum([len(batch.records) async for batch in again.batches()]) == 10
    assert values(records) == ROWS
    assert list(records) == list(range(10))
    asked = 4 if paging is UNSIZED else 3
    bodies += [b'{"paging": {"next": null, "cursor": null, "total": 10}, "rows": [], "more": "\\ud83d"}'] * (asked - 3)
    assert (feed.records, feed.pages, len(server.requests)) == (10, asked, 2 * asked)
    assert feed.body_bytes == sum(map(len, bodies))
    assert feed.digest == xxhash.xxh3_128(b"".join(bodies)).hexdigest()
    assert feed.response_headers["link"] == '</feed.json>; rel="first"'
    assert told[-1] == Progress(body_bytes=feed.body_bytes, records=10, total_bytes=None)
    assert server.connections == 2


async def test_what_is_asked_for() -> None:
    """Pages are asked for with all that the source's settings name, a POST with its body each time."""
    async with FeedServer(page) as server:
        await fetch(paged(server.url + "?page=7", NUMBER, params={"per_page": "1", "x": "y"}))
        assert [request.query for request in server.requests] == [
            {"page": [str(number)], "per_page": ["4"], "x": ["y"]} for number in (1, 2, 3)
        ]
        server.requests.clear()
        await fetch(paged(server.url, OFFSET, method="POST", body="{}", headers={"X-Key": "k"}))
        assert [(request.method, request.body, request.headers["x-key"]) for request in server.requests] == [
            ("POST", b"{}", "k")
        ] * 3
        assert [request.query for request in server.requests] == [
            {"offset": [offset], "limit": ["4"]} for offset in ("0", "4", "8")
        ]


@pytest.mark.parametrize("paging", ALL, ids=lambda paging: type(paging).__name__)
async def test_a_page_that_fails(paging: Paging) -> None:
    """Where a page fails after others succeeded, the fetch fails, and names the page."""
    faults: list[tuple[Callable[[Request], Answer], type[SourceError]]] = [
        (lambda _: Answer(status=500), SourceRefused),
        (lambda _: Answer(status=404), SourceRefused),
        (lambda _: Answer(body=b""), SourceInvalid),
        (lambda _: Answer(body=b'{"error": "later"}'), SourceInvalid),
        (lambda request: page(request, fault=Truncate(at=30)), SourceIncomplete),
        (lambda request: page(request, fault=Reset(at=30)), SourceError),
    ]
    for fault, expected in faults:
        async with FeedServer(lambda request: page(request) if start_of(request) < 4 else fault(request)) as server:  # noqa: B023
            with pytest.raises(expected, match=r"^Page 2: "):
                await fetch(paged(server.url, paging))


@pytest.mark.parametrize("paging", ALL, ids=lambda paging: type(paging).__name__)
async def test_the_same_page_again(paging: Paging) -> None:
    """A source that answers with one page for ever is found out at the second one."""
    first = Request(method="GET", path="", query={}, headers={})
    async with FeedServer(page(first)) as server:
        with pytest.raises(SourceInvalid, match=r"read already|same page"):
            await fetch(paged(server.url, paging))
    assert len(server.requests) <= 2


async def test_the_same_records_in_another_envelope() -> None:
    """A page is the same if its records are, whatever stands around them."""
    counter = iter(range(100))

    def answer(_: Request) -> Answer:
        return Answer(body=json.dumps({"request": next(counter), "rows": ROWS[:4]}).encode())

    async with FeedServer(answer) as server:
        with pytest.raises(SourceInvalid, match="same page"):
            await fetch(paged(server.url, NUMBER))


async def test_a_circle() -> None:
    """Links that lead back to any page that was read are found out."""
    leads = {"1": "2", "2": "3", "3": "2"}

    def answer(request: Request) -> Answer:
        number = request.query.get("n", ["1"])[0]
        body = {"rows": [{"id": number}], "paging": {"next": f"?n={leads[number]}", "cursor": leads[number]}}
        return Answer(body=json.dumps(body).encode())

    both: tuple[Paging, ...] = NEXT_URL, CursorPaging(path=("paging", "cursor"), parameter="n")
    for paging in both:
        async with FeedServer(answer) as server:
            with pytest.raises(SourceInvalid, match="read already"):
                await fetch(paged(server.url, paging))
        assert len(server.requests) == 3


@pytest.mark.parametrize("paging", ALL, ids=lambda paging: type(paging).__name__)
async def test_limits_are_over_all_pages(paging: Paging) -> None:
    """Pages, bytes and time are limited over all pages together, by name."""
    async with FeedServer(page) as server:
        with pytest.raises(SourceTooLarge, match=r"max_pages \(2\)"):
            await fetch(paged(server.url, paging, max_pages=2))
        with pytest.raises(SourceTooLarge, match="MAX_BODY_BYTES"):
            await fetch(paged(server.url, paging, max_body_bytes=len(page(server.requests[0]).body) * 2 - 5))
        server.answers = lambda request: page(request, fault=Drip(size=1000, gap_seconds=0.1))
        with pytest.raises(SourceTimeout, match="SOURCE_TOTAL_TIMEOUT_SECONDS"):
            await fetch(paged(server.url, paging, total_timeout_seconds=0.15))


async def test_another_attempt_begins_anew() -> None:
    """Where a page fails in a way that may pass, all pages are asked for again."""
    failures = iter([Answer(status=503, headers={"Retry-After": "0"})])

    def answer(request: Request) -> Answer:
        return next(failures, page(request)) if start_of(request) == SIZE else page(request)

    async with FeedServer(answer) as server:
        async for attempt in attempts(flaky := paged(server.url, OFFSET, attempts=2)):
            with attempt:
                _, records = await fetch(flaky)
    assert values(records) == ROWS
    assert [start_of(request) for request in server.requests] == [0, 4, 0, 4, 8]


async def test_pages_are_never_conditional() -> None:
    """Validators are neither sent nor kept, and a 304 to one page is refused."""
    async with FeedServer(lambda request: page(request, etag='"v1"')) as server:
        feed, records = await fetch(paged(server.url, LINK), validators=Validators(etag='"v1"'))
    assert (feed.not_modified, feed.validators, len(records)) == (False, Validators(), 10)
    assert not any("if-none-match" in request.headers for request in server.requests)


async def test_no_records_in_the_middle() -> None:
    """A page without records ends nothing as long as it names another one; an empty first one is an empty snapshot."""
    pages = {
        "/feed.json": ([1], "/b"),
        "/b": ([], "/c"),
        "/c": ([], "/d"),
        "/d": ([2], ""),
    }

    def answer(request: Request) -> Answer:
        ids, link = pages[request.path]
        return Answer(
            body=json.dumps([{"id": number} for number in ids]).encode(),
            headers={"Link": f'<{link}>; rel="next"'} if link else {},
        )

    async with FeedServer(answer) as server:
        _, records = await fetch(paged(server.url, LINK, records=()))
        assert values(records) == [{"id": 1}, {"id": 2}]
    for paging in ALL:
        async with FeedServer(lambda request: page(request, [])) as server:
            feed, records = await fetch(paged(server.url, paging))
            assert (feed.records, feed.pages) == (0, 1)


class TestLeads:
    """What a source names as its next page."""

    async def test_another_origin(self) -> None:
        """A link to another origin is followed without anything that the operator gave, and does not come back."""
        async with FeedServer() as server, FeedServer() as other:
            there = {"Link": f'<{other.origin}/2>; rel="next"'}
            back = {"Link": f'<{server.origin}/3>; rel="next"'}
            last = Answer(body=b'[{"id":3}]')
            server.answers = lambda request: last if request.path == "/3" else Answer(body=b'[{"id":1}]', headers=there)
            other.answers = Answer(body=b'[{"id":2}]', headers=back)
            auth = ApiKeyAuth(header="X-Key", value="tw33t-key")
            details: Any = {"auth": auth, "headers": {"X-More": "tw33t-more"}, "params": {"api_key": "tw33t-param"}}
            _, records = await fetch(paged(server.url, LINK, records=(), **details))
            assert len(records) == 3
            assert "tw33t" not in f"{other.requests}{server.requests[1]}"
            with pytest.raises(SourceInvalid, match="must not go"):
                await fetch(paged(server.url, LINK, records=(), method="POST", body="{}"))

    async def test_credentials_in_the_query(self) -> None:
        """A link that does not repeat a parameter that is a credential by its name gets it; the others are its own."""
        async with FeedServer(page) as server:
            await fetch(paged(server.url, NEXT_URL, params={"apiKey": "k", "since": "x"}))
        assert [request.query.get("apiKey") for request in server.requests] == [["k"]] * 3
        assert [request.query.get("since") for request in server.requests] == [["x"], None, None]

    @pytest.mark.parametrize("link", ["http://localhost:{port}/", "file:///etc/passwd", "http://169.254.169.254/"])
    async def test_a_private_address(self, link: str) -> None:
        """A link leads no further than a redirect would."""
        async with FeedServer() as server:
            server.answers = Answer(
                body=b'[{"id":1}]', headers={"Link": f"<{link.format(port=server.port)}>; rel=next"}
            )
            with pytest.raises(AddressRefused):
                await fetch(paged(server.url, LINK, records=()))
        assert len(server.requests) == 1

    @pytest.mark.parametrize("value", [True, 1.5, [], {}, "\ud83d", 7])
    async def test_no_url(self, value: Any) -> None:
        """What is not text is no URL."""
        body = json.dumps({"rows": [{"id": 1}], "paging": {"next": value}}).encode()
        async with FeedServer(Answer(body=body)) as server:
            with pytest.raises(SourceInvalid, match=r"paging\.next"):
                await fetch(paged(server.url, NEXT_URL))

    @pytest.mark.parametrize("cursor", [0, -7, 10**30, "a b&c=d+é😀", "0"])
    async def test_cursors(self, cursor: Any) -> None:
        """A cursor is text or an integer, and travels as it is."""

        def answer(request: Request) -> Answer:
            following = None if "after" in request.query else cursor
            return Answer(body=json.dumps({"paging": {"cursor": following}, "rows": [{"id": 1}] * 2}).encode())

        async with FeedServer(answer) as server:
            with pytest.raises(SourceInvalid, match="same page"):
                await fetch(paged(server.url, CURSOR))
            assert server.requests[1].query["after"] == [str(cursor)]

    @pytest.mark.parametrize("end", ["null", '""', "false", None])
    async def test_ends(self, end: str | None) -> None:
        """Null, empty, false and absent are the end, and so is an absent parent."""
        for body in (f'{{"rows":[{{}}],"paging":{{"next":{end}}}}}', '{"rows":[{}],"paging":null}', '{"rows":[{}]}'):
            async with FeedServer(Answer(body=body.replace('"next":None', "").encode())) as server:
                feed, _ = await fetch(paged(server.url, NEXT_URL))
                assert feed.pages == 1

    async def test_nothing_stands_beside_a_bare_array(self) -> None:
        """What is to be read from beside the records needs records that have something beside them."""
        async with FeedServer(Answer(body=b"[]")) as server:
            for details in ({"paging": CURSOR}, {"total": DeclaredTotal(path=("total",))}):
                with pytest.raises(SourceInvalid, match="array of records itself"):
                    await fetch(source(server.url, **details))
        assert not server.requests


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        ([], None),
        (['<a>; rel="next"'], "a"),
        (["<a>;rel=next"], "a"),
        (['<a>; rel="prev", <b,c;d>; title="x; rel=\\"no\\", <y>"; REL = "start NEXT"'], "b,c;d"),
        (["<a>; rel=prev", "<b>; rel=next; rel=prev"], "b"),
        (['<a>; rel=prev; rel="next"'], None),
        (['<a>; rev="next"; title="next"', "<b>"], None),
        ([' , <a> ; foo ; rel="next" ,'], "a"),
        (["complete nonsense"], None),
    ],
)
def test_link_header(headers: list[str], target: str | None) -> None:
    """The first link whose relations include next counts, however it is written."""
    assert next_link(headers) == target


@pytest.mark.parametrize("header", ['<a; rel="next"', '<a>; rel="next', "a; rel=next", '<a> rel="next"'])
def test_damaged_link_header(header: str) -> None:
    """A header that cannot be read but speaks of a next page is not taken for the last page's."""
    with pytest.raises(SourceInvalid, match="Link"):
        next_link([header])


async def test_lines() -> None:
    """Lines may come in pages too, down to one of a single line."""

    def answer(request: Request) -> Answer:
        rows = ROWS[start_of(request) :][:SIZE]
        rows = rows[:1] if len(rows) < SIZE else rows
        return Answer(body=b"\n".join(json.dumps(row).encode() for row in rows))

    async with FeedServer(answer) as server:
        _, records = await fetch(paged(server.url, OFFSET, records=()))
    assert values(records) == ROWS[:9]


async def test_rejected_records_count() -> None:
    """A record that is rejected counts towards its page, and keeps its place."""
    async with FeedServer(lambda request: page(request, [*ROWS[:3], None, None, *ROWS[3:7]])) as server:
        feed, records = await fetch(paged(server.url, OFFSET))
    assert values(records) == ROWS[:7]
    assert (feed.records, feed.rejected, [problem.position for problem in feed.problems]) == (9, 2, [3, 4])
