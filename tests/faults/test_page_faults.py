"""Pages that go wrong never make the mirror wrong: all of them are one snapshot, or there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine, dump
from tests.faults.support import AFTER, OUTCOME, faulty_service
from tests.feed_server import Answer, Request, Reset, Silence, Truncate, redirect

LINK = 'paging = { type = "link" }'
TOTAL = f'{LINK}\ntotal = {{ header = "X-Total" }}'
OFFSET = 'paging = { type = "offset", limit = 5 }'

PAGES = [AFTER[:5], AFTER[5:10], AFTER[10:]]


def number_of(request: Request) -> int:
    """Return which page is asked for."""
    return int(request.query["offset"][0]) // 5 if "offset" in request.query else int(request.query.get("n", ["0"])[0])


def page(request: Request, total: int = len(AFTER), **details: Any) -> Answer:
    """Answer with one page, which names the next one."""
    number = number_of(request)
    headers = {"X-Total": str(total)}
    if number + 1 < len(PAGES):
        headers["Link"] = f'<?n={number + 1}>; rel="next"'
    rows = PAGES[number] if number < len(PAGES) else []
    return Answer(**({"body": dump(rows), "headers": headers} | details))


def second(**details: Any) -> Callable[[Request], Answer]:
    """Answer with pages of which the second one is different."""
    return lambda request: page(request, **(details if number_of(request) == 1 else {}))


def broken(name: str, entry: str, answer: Any, code: str | tuple[str, ...], status: int = 502) -> Any:
    """One row of the table: how the source is asked, what it does, the code of the error, the HTTP status."""
    return pytest.param(entry, answer, code, status, id=name)


@pytest.mark.parametrize(
    ("entry", "answer", "code", "status"),
    [
        broken("refused", LINK, second(status=500), "source_refused"),
        broken("not there", OFFSET, second(status=404), "source_refused"),
        broken("not a page", LINK, second(body=b'{"error": "try later"}'), "source_invalid"),
        broken("cut", LINK, second(fault=Truncate(at=30)), "source_incomplete"),
        broken("reset", LINK, second(fault=Reset(at=30)), ("source_unreachable", "source_incomplete")),
        broken("silent", LINK, second(fault=Silence()), "source_timeout", 504),
        broken(
            "elsewhere", LINK, second(status=302, headers=redirect("http://localhost:1/").headers), "address_refused"
        ),
        broken("leads elsewhere", LINK, second(headers={"Link": "<http://10.0.0.1/>; rel=next"}), "address_refused"),
        broken("circle", LINK, second(headers={"Link": "</feed.json>; rel=next"}), "source_invalid"),
        broken("link unreadable", LINK, second(headers={"Link": "</feed.json; rel=next"}), "source_invalid"),
        broken("the same page", OFFSET, Answer(body=dump(PAGES[0])), "source_invalid"),
        broken("without end", f"{LINK}\nmax_pages = 2", page, "source_too_large"),
        broken("total missed", TOTAL, lambda request: page(request, total=13), "source_incomplete"),
        broken("total changed", TOTAL, second(headers={"X-Total": "10"}), "source_incomplete"),
        broken("last page missing", TOTAL, second(headers={"X-Total": str(len(AFTER))}), "source_incomplete"),
    ],
)
async def test_a_page_that_fails_changes_nothing(
    engine: Engine, database_url: str, tmp_path: Path, entry: str, answer: Any, code: str, status: int
) -> None:
    """The run fails by name after its first page was read, nothing was written, and all pages together converge."""
    file = tmp_path / "sources.toml"
    file.write_text(f'[sources.paged]\nurl = "{engine.feed.url}"\ntable = "my_data"\n{entry}\n')
    async with faulty_service(engine, database_url, tmp_path) as healthy:
        await healthy.load()
    given: dict[str, Any] = {"source_url": None, "sources_file": file, "source_read_timeout_seconds": 0.3}
    async with faulty_service(engine, database_url, tmp_path, **given) as service:
        service.answer(answer)
        engine.feed.requests.clear()
        body = await service.fail(status=status, code=code)
        assert "total" in entry or "max_pages" in entry or body["detail"].startswith("Page ")
        assert len(engine.feed.requests) > 1
        engine.feed.released.set()
        file.write_text(file.read_text().replace("max_pages = 2", ""))
    async with faulty_service(engine, database_url, tmp_path, **given) as service:
        service.answer(page)
        answered, report = await service.sync()
        assert answered == 200
        assert {name: report[name] for name in OUTCOME} == OUTCOME
        assert (await service.sync())[1]["status"] == "unchanged"
