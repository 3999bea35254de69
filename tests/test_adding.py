"""An entry of the sources file is proposed from what a feed shows, says what it relies on, and syncs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from definitions import (
    CursorPaging,
    DeclaredTotal,
    LinkHeaderPaging,
    NextUrlPaging,
    OffsetPaging,
    PageNumberPaging,
    Paging,
    Source,
)
from errors import SettingError, SourceInvalid
from sources.looking import look_at
from sources_file.proposing import Proposal, propose
from sources_file.reading import read_sources_file
from sources_file.samples import closed, read_sample
from sources_file.writing import appended, demand_new, entry, name_of, without_secrets
from tests.engine import Engine
from tests.feed_server import Answer, FeedServer, Request
from tests.test_cli import Shell, shell

__all__ = ["shell"]

URL = "https://shop.example/v1/orders"


def look(document: Any, url: str = URL, *, next_link: str | None = None, **headers: str) -> Proposal:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    sample = read_sample(body, content_type="application/json", is_whole=True)
    return propose(
        sample, url=url, headers={name.replace("_", "-"): v for name, v in headers.items()}, next_link=next_link
    )


def rows(count: int = 25, **fields: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{name: make(number) for name, make in fields.items()} for number in range(count)]


ORDERS = rows(id=lambda n: n, customer_id=lambda n: n % 3)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (ORDERS, ()),
        ({"data": {"items": ORDERS, "tags": ["a"] * 99}, "errors": []}, ("data", "items")),
        ({"facets": [{"n": 1}], "results": ORDERS}, ("results",)),
        ({"a.b": ORDERS, "few": ORDERS[:2]}, ("few",)),
    ],
)
def test_the_largest_array_of_objects_holds_the_records(document: Any, path: tuple[str, ...]) -> None:
    """Of all arrays that a path can lead to, the one with most objects is taken."""
    assert look(document).sample.path == path


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "empty"),
        (b"<html>", "not JSON"),
        (b"7", "neither an array nor an object"),
        (b'{"id":1}', "no array"),
        (b'{"BTC":{"p":1},"ETH":{"p":2}}', "BTC, ETH, are objects themselves"),
        (b"[]", "is empty"),
        (b'{"items":[1,2]}', "holds no objects"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_holds_no_records_is_told(document: bytes, words: str) -> None:
    """Where nothing can be proposed, the message says what was found instead of records, and what to do."""
    with pytest.raises(SourceInvalid, match=words) as caught:
        look(document)
    assert caught.value.remedy.startswith("Nothing was written.")


def test_a_part_of_a_large_answer_is_enough() -> None:
    """What ends early is read up to the last element that is sure to be complete."""
    body = json.dumps({"meta": {"n": 1}, "data": [{"id": n, "text": ',]}"'} for n in range(9)], "next": "x"}).encode()
    for length in range(body.index(b"{", 40) + 40, len(body)):
        sample = read_sample(body[:length], content_type="", is_whole=False)
        assert sample.path == ("data",)
        assert list(sample.records) == [{"id": n, "text": ',]}"'} for n in range(len(sample.records))]
    assert closed('{"a":[1,{"b":[2,') == '{"a":[1,{"b":[2]}]}'


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "text/plain"])
def test_lines_are_recognised(content_type: str) -> None:
    """Records that stand one to a line are known by their type, or by how they look."""
    body = b'{"id":1}\n{"id":2}\n'
    sample = read_sample(body, content_type=content_type, is_whole=True)
    assert (sample.format, sample.path, len(sample.records)) == ("ndjson", (), 2)
    assert len(read_sample(body + b'{"id":', content_type=content_type, is_whole=False).records) == 2


KEYS: list[tuple[list[dict[str, Any]], tuple[str, ...] | None]] = [
    (rows(name=lambda n: f"n{n}", id=lambda n: n), ("id",)),
    (rows(name=lambda n: f"n{n}", id=lambda n: n % 5), ("name",)),
    (rows(price=lambda n: f"{n}.5", symbol=lambda n: f"s{n}"), ("symbol",)),
    (rows(stock=lambda n: n, orderId=lambda n: n), ("orderId",)),
    (rows(n=lambda n: n, title=lambda n: f"t{n}"), ("title",)),
    (rows(id=lambda n: n or None, isin=lambda n: f"i{n}"), ("isin",)),
    (rows(id=lambda n: n or "0", isin=lambda n: f"i{n}"), ("isin",)),
    (rows(id=lambda n: {"a": n}, isin=lambda n: f"i{n}"), ("isin",)),
    (rows(shop_id=lambda n: n // 5, line=lambda n: n % 5, ok=lambda _: True), ("shop_id", "line")),
    (rows(at=lambda n: f"2026-01-01T00:00:{n:02}Z", name=lambda n: f"{n % 2}"), ("name", "at")),
    (rows(at=lambda n: f"2026-01-01T00:00:{n:02}Z", rate=lambda n: n / 3), ("at",)),
    (rows(rate=lambda n: n / 3, same=lambda _: 1), None),
]


@pytest.mark.parametrize(("records", "key"), KEYS)
def test_keys(records: list[dict[str, Any]], key: tuple[str, ...] | None) -> None:
    """A key has a value of its own in every record; usual names come first, and two fields are better than none."""
    proposal = look(records)
    assert (proposal.key.fields if proposal.key else None) == key
    if key is None:
        assert any("No field" in warning for warning in proposal.warnings)


def test_a_key_of_few_records_is_called_into_question() -> None:
    """A handful of records proves nothing, and that is said."""
    assert any("Only 3 records" in warning for warning in look(ORDERS[:3]).warnings)
    assert look(ORDERS).warnings == ()


NEXT = "https://shop.example/v1/orders?page=2"


@pytest.mark.parametrize(
    ("around", "paging"),
    [
        ({"next": NEXT}, NextUrlPaging(path=("next",))),
        ({"links": {"next": "/v1/orders?page=2"}}, NextUrlPaging(path=("links", "next"))),
        ({"_links": {"self": {"href": URL}, "next": {"href": NEXT}}}, NextUrlPaging(path=("_links", "next", "href"))),
        ({"paging": {"cursors": {"after": "x"}, "next": NEXT}}, NextUrlPaging(path=("paging", "next"))),
        ({"paging": {"cursors": {"after": "x"}}}, CursorPaging(path=("paging", "cursors", "after"), parameter="after")),
        ({"nextPageToken": "x"}, CursorPaging(path=("nextPageToken",), parameter="pageToken")),
        ({"meta": {"next_cursor": "x"}}, CursorPaging(path=("meta", "next_cursor"), parameter="cursor")),
        ({"token": "x", "prev": NEXT, "self": URL}, None),
    ],
)
def test_paging_in_the_body(around: dict[str, Any], paging: Paging | None) -> None:
    """Links and cursors that stand beside the records lead to the next page."""
    assert look({"items": ORDERS, **around}).paging == paging


@pytest.mark.parametrize(
    ("query", "paging"),
    [
        ("page=1&per_page=25", PageNumberPaging(parameter="page", first=1, size=25, size_parameter="per_page")),
        ("page=0", PageNumberPaging(parameter="page", first=0)),
        ("offset=0&limit=25", OffsetPaging(limit=25, parameter="offset", limit_parameter="limit")),
        ("limit=25&sort=page", None),
    ],
)
def test_paging_in_the_url(query: str, paging: Paging | None) -> None:
    """Parameters that count pages or records are taken over."""
    assert look(ORDERS, f"{URL}?{query}").paging == paging


def test_a_link_header_wins() -> None:
    """The header that exists for this purpose is believed before anything in body or URL."""
    assert look({"items": ORDERS, "next": NEXT}, f"{URL}?page=1", next_link=NEXT).paging == LinkHeaderPaging()


@pytest.mark.parametrize(
    ("around", "headers", "total", "warned"),
    [
        ({"total": 25}, {}, DeclaredTotal(path=("total",)), False),
        ({"meta": {"total_count": 25}}, {}, DeclaredTotal(path=("meta", "total_count")), False),
        ({}, {"X_Total_Count": "25"}, DeclaredTotal(header="X-Total-Count"), False),
        ({"total": 90}, {}, None, True),
        ({"count": 90}, {}, None, True),
        ({}, {"X_Total_Count": "90"}, None, True),
        ({"total": 90, "next": NEXT}, {}, DeclaredTotal(path=("total",)), False),
        ({"count": 25, "next": NEXT}, {}, None, False),
        ({"total": True, "total_pages": 90}, {}, None, False),
    ],
)
def test_totals(around: dict[str, Any], headers: dict[str, str], total: DeclaredTotal | None, warned: bool) -> None:
    """A number is taken for the total only if it agrees with what was seen; that pages must be missing is said."""
    proposal = look({"items": ORDERS, **around}, **headers)
    assert proposal.total == total
    assert any("will never be seen" in warning for warning in proposal.warnings) == warned


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.shop.example/v1/Orders.json?x=1", "orders"),
        ("https://www.shop.example/", "shop"),
        ("https://shop.example/export/2026", "shop"),
        ("https://shop.example/big%20feed.ndjson.gz", "big-20feed"),
        ("https://shop.example/all", "shop"),
    ],
)
def test_names(url: str, name: str) -> None:
    """A source is called as the last part of its URL, or as its host."""
    assert name_of(url) == name


def test_secrets_become_variables() -> None:
    """What is secret in a URL or a header is put into a variable; what is one already, and all else, stays."""
    request = without_secrets(
        "my-shop",
        "https://joe:pa%24s@shop.example/o?api_key=k%2B1&q=a+b&access_token=${MINE}&author=x",
        {"X-Api-Key": "abc", "Authorization": "Bearer ${T}", "Accept-Language": "de"},
    )
    assert request.url == "https://shop.example/o?q=a+b&author=x"
    assert request.params == {"api_key": "${MY_SHOP_API_KEY}", "access_token": "${MINE}"}
    assert request.headers == {
        "X-Api-Key": "${MY_SHOP_X_API_KEY}",
        "Authorization": "Bearer ${T}",
        "Accept-Language": "de",
    }
    assert request.auth == {"type": "basic", "username": "${MY_SHOP_USERNAME}", "password": "${MY_SHOP_PASSWORD}"}
    assert request.variables == {
        "MY_SHOP_USERNAME": "joe",
        "MY_SHOP_PASSWORD": "pa$s",
        "MY_SHOP_API_KEY": "k+1",
        "MY_SHOP_X_API_KEY": "abc",
    }


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_entry_is_put_behind_what_is_there(newline: str) -> None:
    """The text of the file stays as it is to the byte, comments and all; a name that is taken is refused."""
    before = newline.join(["# mine", "[sources.a]  # first", 'url = "https://a.example"', "key = 'x' # why"])
    after = appended(before, entry("b", None, without_secrets("b", URL, {})))
    assert after == before + newline * 2 + newline.join(["[sources.b]", f'url = "{URL}"', ""])
    demand_new("b", before, Path("sources.toml"))
    with pytest.raises(SettingError, match="has a source b already"):
        demand_new("b", after, Path("sources.toml"))


SHOP = rows(
    45,
    id=lambda n: n,
    price=lambda n: f"{n}.50",
    owner=lambda n: {"id": n % 3},
    updated_at=lambda n: f"2026-01-01T00:00:{n:02}Z",
    **{'odd "name"': lambda n: n},
)
PAGE = 20


def pages(request: Request) -> Answer:
    """Serve the shop by pages, in the way that the path says."""
    number = int(request.query.get("page", ["1"])[0])
    start = int(request.query.get("cursor", [(number - 1) * PAGE])[0])
    part, is_last = SHOP[start : start + PAGE], start + PAGE >= len(SHOP)
    documents: dict[str, Any] = {
        "/array": SHOP,
        "/link": part,
        "/count": part,
        "/next": {
            "meta": {"total": 45},
            "data": {"items": part},
            "next": None if is_last else f"/next?page={number + 1}",
        },
        "/cursor": {"results": part, "next_cursor": None if is_last else str(start + PAGE)},
    }
    headers = {"Link": f'</link?page={number + 1}>; rel="next"'} if request.path == "/link" and not is_last else {}
    if request.path == "/lines":
        return Answer(body="\n".join(map(json.dumps, SHOP)).encode(), content_type="text/plain")
    return Answer(body=json.dumps(documents[request.path]).encode(), headers=headers)


@pytest.mark.parametrize("path", ["/array", "/lines", "/link", "/next", "/cursor", "/count?page=1&per_page=20"])
async def test_what_is_proposed_syncs(engine: Engine, feed: FeedServer, tmp_path: Path, path: str) -> None:
    """Every layout and way of paging is found out, and the entry mirrors all of the feed without being touched."""
    feed.answers = pages
    url = feed.origin + path
    seen = await look_at(Source(name="shop", url=url), max_bytes=1 << 20)
    sample = read_sample(seen.body, content_type=seen.content_type, is_whole=seen.is_whole)
    proposal = propose(sample, url=url, headers=seen.headers, next_link=seen.next_link)
    file = tmp_path / "sources.toml"
    file.write_text(appended("", entry("shop", None, without_secrets("shop", url, {}), proposal)))
    (engine.source,) = read_sources_file(file, otherwise=Source(name="", url=""), variables={}).sources
    report = await engine.sync()
    assert (report.counts.created, report.counts.rejected) == (45, 0)
    stored = [{**record, "updated_at": record["updated_at"].replace("Z", "+00:00")} for record in SHOP]
    assert await engine.rows() == {record["id"]: record for record in stored}


async def test_only_the_beginning_of_a_large_answer_is_read(feed: FeedServer) -> None:
    """The look ends after as many bytes as it was told, whatever the answer unpacks to."""
    feed.respond(json.dumps(SHOP * 2_000).encode(), encodings=("gzip",))
    seen = await look_at(Source(name="shop", url=feed.url), max_bytes=10_000)
    assert not seen.is_whole
    assert 10_000 < len(seen.body) < 2_000_000
    assert look_of(seen.body).warnings[-1].startswith("The answer is large")


def look_of(body: bytes) -> Proposal:
    return propose(read_sample(body, content_type="", is_whole=False), url=URL, headers={}, next_link=None)


async def test_the_command(shell: Shell, feed: FeedServer) -> None:
    """A feed is added by its URL alone, its secret goes into a variable, and check and sync take it from there."""
    feed.answers = lambda request: pages(request) if request.query.get("token") == ["s3cr3t-1"] else Answer(status=401)
    url = f"{feed.origin}/next?token=s3cr3t-1"
    file = shell.directory / "mine.toml"
    shell.environment["SOURCES_FILE"] = file.name
    code, shown, _ = await shell.run("add", url, "--name", "shop", "--dry-run")
    assert (code, file.exists()) == (0, False)
    assert 'records = "data.items"' in shown
    code, shown, errors = await shell.run("add", url, "--name", "shop", "--table", "orders")
    assert (code, errors) == (0, "")
    assert "export SHOP_TOKEN=…" in shown
    assert "s3cr3t" not in shown + file.read_text()
    shell.environment["SHOP_TOKEN"] = "s3cr3t-1"  # noqa: S105
    code, shown, errors = await shell.run("sync", "--source", "shop")
    assert (code, errors) == (0, "")
    assert "45" in shown
    before = file.read_bytes()
    code, _, errors = await shell.run("add", url, "--name", "shop")
    assert (code, file.read_bytes()) == (2, before)
    assert "--name" in errors
