"""A source that goes wrong never makes the mirror wrong: the run fails and says why, and the next one converges."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from errors import LockstepError
from sync import sync_data
from tests.engine import Engine, dump
from tests.faults.support import AFTER, BEFORE, BODY, OUTCOME, FaultyService, faulty_service
from tests.feed_server import (
    Answer,
    BadChunk,
    Drip,
    FeedServer,
    HangUp,
    Request,
    Reset,
    Silence,
    Stall,
    Truncate,
    bomb,
    compress,
    redirect,
)
from tests.service import free_port, get

BROKEN = "source_unreachable", "source_incomplete"
"""Which of both it is depends on what the operating system says first."""
MALFORMED = "source_invalid", "source_incomplete"
"""What is left open at its end may be taken for something that was cut."""

BETWEEN_RECORDS = BODY.rindex(b", {")
ENCODINGS = ["gzip", "deflate", "deflate-raw", "br", "zstd"]


class MakeService(Protocol):
    """Makes the service of one test, under settings of its own."""

    def __call__(self, **given: Any) -> AbstractAsyncContextManager[FaultyService]: ...


@pytest.fixture
def make_service(engine: Engine, database_url: str, tmp_path: Path) -> MakeService:
    return partial(faulty_service, engine, database_url, tmp_path)


@pytest.fixture
async def service(make_service: MakeService) -> AsyncIterator[FaultyService]:
    async with make_service() as running:
        yield running


def broken(name: str, answer: Answer, code: str | tuple[str, ...], status: int = 502, **settings: Any) -> Any:
    """One row of the table: what the source does, the code of the error, the HTTP status, settings that matter."""
    return pytest.param(answer, code, status, settings, id=name)


@pytest.mark.parametrize(
    ("answer", "code", "status", "settings"),
    [
        broken("longer Content-Length", Answer(body=BODY, headers={"Content-Length": str(len(BODY) + 10)}), BROKEN),
        broken("cut between records", Answer(body=BODY, framing="close", fault=Truncate(at=BETWEEN_RECORDS)), BROKEN),
        broken("cut inside a record", Answer(body=BODY, framing="close", fault=Truncate(at=30)), BROKEN),
        broken("cut by length", Answer(body=BODY, fault=Truncate(at=BETWEEN_RECORDS)), BROKEN),
        broken("no final chunk", Answer(body=BODY, framing="chunked", fault=Truncate(at=len(BODY))), BROKEN),
        broken("bad chunk size", Answer(body=BODY, framing="chunked", fault=BadChunk(at=len(BODY))), BROKEN),
        *(
            broken(
                f"truncated {encoding}",
                Answer(body=compress(BODY, encoding)[:-1], headers={"Content-Encoding": encoding.removesuffix("-raw")}),
                "source_incomplete",
            )
            for encoding in ENCODINGS
        ),
        broken("damaged gzip", Answer(body=BODY, headers={"Content-Encoding": "gzip"}), "source_invalid"),
        broken("compression unasked for", Answer(body=BODY, headers={"Content-Encoding": "lzma"}), "source_invalid"),
        broken("lines of unknown length", Answer(body=b'{"id":1}\n{"id":2}\n', framing="close"), "source_incomplete"),
        broken("HTML", Answer(body=b"<html><h1>Maintenance</h1></html>", content_type="text/html"), "source_invalid"),
        broken("empty body", Answer(), "source_invalid"),
        broken("blank body", Answer(body=b" \n"), "source_invalid"),
        broken("null", Answer(body=b"null"), "source_invalid"),
        broken("empty object", Answer(body=b"{}"), "source_invalid"),
        broken("error object", Answer(body=b'{"error": "try later", "data": []}'), "source_invalid"),
        broken("string", Answer(body=b'"[]"'), "source_invalid"),
        broken("number", Answer(body=b"0"), "source_invalid"),
        broken("something after the array", Answer(body=BODY + b"x"), "source_invalid"),
        broken("two arrays", Answer(body=BODY + BODY), "source_invalid"),
        broken("100,000 levels deep", Answer(body=b'[{"id":1,"v":%b}]' % (b"[" * 100_000)), MALFORMED),
        broken(
            "100,000 levels deep, and closed",
            Answer(body=b'[{"id":1,"v":%b%b}]' % (b"[" * 100_000, b"]" * 100_000)),
            "source_invalid",
        ),
        broken("record over the cap", Answer(body=BODY), "source_too_large", max_record_bytes=30),
        broken("body over the cap", Answer(body=BODY), "source_too_large", max_body_bytes=len(BODY) - 1),
        broken(
            "decompression bomb",
            Answer(body=bomb(32 << 20), headers={"Content-Encoding": "gzip"}),
            "source_too_large",
            max_body_bytes=1 << 20,
        ),
        broken("silence", Answer(fault=Silence()), "source_timeout", 504, source_read_timeout_seconds=0.1),
        broken(
            "stall after the headers",
            Answer(body=BODY, fault=Stall()),
            "source_timeout",
            504,
            source_read_timeout_seconds=0.1,
        ),
        broken(
            "stall in the body",
            Answer(body=BODY, fault=Stall(at=BETWEEN_RECORDS)),
            "source_timeout",
            504,
            source_read_timeout_seconds=0.1,
        ),
        broken(
            "slow drip",
            Answer(body=BODY, fault=Drip(size=20, gap_seconds=0.05)),
            "source_timeout",
            504,
            source_total_timeout_seconds=0.2,
        ),
        broken("no answer", Answer(fault=HangUp()), "source_unreachable"),
        broken("reset", Answer(body=BODY, fault=Reset(at=BETWEEN_RECORDS)), BROKEN),
        *(
            broken(f"status {status}", Answer(status=status, body=b"" if status == 204 else BODY), "source_refused")
            for status in (201, 204, 206, 401, 404, 418, 429, 500, 503, 599)
        ),
        broken("304 unasked for", Answer(status=304), "source_invalid"),
        broken("redirect without end", redirect("/feed.json"), "source_invalid"),
        broken("redirect to nowhere", Answer(status=302), "source_refused"),
        broken("redirect into a file", redirect("file:///etc/passwd"), "address_refused"),
        *(
            broken(f"redirect to {host}", redirect(f"http://{host}/"), "address_refused")
            for host in ("169.254.169.254", "localhost:1", "[::ffff:127.0.0.1]:1", "10.0.0.1", "0x7f000001:1")
        ),
    ],
)
async def test_a_failure_changes_nothing(
    make_service: MakeService, answer: Answer, code: str | tuple[str, ...], status: int, settings: dict[str, Any]
) -> None:
    """The run fails by name, mirror and journal stay as they are, the log says so once, and the next run converges."""
    async with make_service() as healthy:
        await healthy.load()
    async with make_service(**settings) as service:
        service.answer(answer)
        await service.fail(status=status, code=code)
        service.engine.feed.released.set()
    async with make_service() as healthy:
        answered = await healthy.recover()
        assert {name: answered[name] for name in OUTCOME} == OUTCOME


async def test_nobody_listens(make_service: MakeService, service: FaultyService) -> None:
    """A source that is down changes nothing."""
    await service.load()
    url = f"http://127.0.0.1:{free_port()}/"
    async with make_service(source_url=url) as elsewhere:
        await elsewhere.fail(status=502, code="source_unreachable")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encodings", [(), *((each,) for each in ENCODINGS), ("gzip", "br")])
async def test_whole_answers_are_taken(service: FaultyService, framing: Any, encodings: tuple[str, ...]) -> None:
    """Any framing and any compression that was asked for will do, and JSON is JSON whatever it is served as."""
    service.answer(Answer(body=BODY, framing=framing, encodings=encodings, content_type="text/plain"))
    status, answer = await service.sync()
    assert (status, answer["created"]) == (200, len(AFTER))
    await service.holds(AFTER)


async def test_a_slow_source_is_waited_for(make_service: MakeService) -> None:
    """A body that drips in is mirrored as long as no pause exceeds the read timeout."""
    async with make_service(source_read_timeout_seconds=5) as service:
        service.answer(Answer(body=BODY, fault=Drip(size=50, gap_seconds=0.01)))
        assert (await service.sync())[0] == 200
        await service.holds(AFTER)


async def test_a_long_string_stops_at_the_cap(make_service: MakeService) -> None:
    """A string of 200 MB fails the run at MAX_RECORD_BYTES, and takes memory in proportion to that."""
    body = compress(b'[{"id": 1, "name": "' + b"x" * (200 << 20) + b'"}]', "gzip")
    async with make_service(max_record_bytes=1 << 20) as service:
        await service.load()
        service.answer(Answer(body=body, headers={"Content-Encoding": "gzip"}))
        forget_peak_memory()
        began = peak_memory()
        await service.fail(status=502, code="source_too_large")
        assert peak_memory() - began < 32 << 20
        await service.recover()


def forget_peak_memory() -> None:
    """Have the kernel measure the peak from here on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not tell how much memory a moment took")


def peak_memory() -> int:
    """Return the largest resident size since it was last forgotten, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class TestAttempts:
    async def test_a_source_that_recovers_costs_one_run(self, make_service: MakeService) -> None:
        """503, 503, 200 is one run, which is applied once."""
        busy = Answer(status=503, headers={"Retry-After": "0"})
        async with make_service(source_attempts=3) as service:
            await service.load()
            service.answer([busy, busy, Answer(body=BODY)])
            status, answer = await service.sync()
            assert status == 200
            assert {name: answer[name] for name in OUTCOME} == OUTCOME
            assert len(service.engine.feed.requests) == 1 + 3
            _, runs = await get(service.client, "/runs")
            assert [run["status"] for run in runs["runs"]] == ["succeeded", "succeeded"]
            await service.holds(AFTER)

    async def test_a_reset_begins_the_whole_fetch_again(self, make_service: MakeService) -> None:
        """After a reset in the middle of the body everything is fetched anew, and in the end the run gives up."""
        reset = Answer(body=BODY, fault=Reset(at=BETWEEN_RECORDS))
        async with make_service(source_attempts=2) as service:
            await service.load()
            service.answer(reset)
            await service.fail(status=502, code=BROKEN)
            assert len(service.engine.feed.requests) == 1 + 2
            service.answer([reset, Answer(body=BODY)])
            assert (await service.sync())[0] == 200
            await service.holds(AFTER)

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        "retry_after", ["86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"]
    )
    async def test_a_source_cannot_stretch_the_wait(
        self, make_service: MakeService, status: int, retry_after: str
    ) -> None:
        """However long Retry-After is, no run waits for it, and resuming ends what it asks for."""
        async with make_service(source_attempts=3, max_retry_after_seconds=0.01) as service:
            await service.load()
            service.answer(Answer(status=status, headers={"Retry-After": retry_after}))
            began = time.monotonic()
            await service.fail(status=502, code="source_refused")
            assert time.monotonic() - began < 5
            is_past = "1970" in retry_after
            assert len(service.engine.feed.requests) == 1 + (3 if is_past else 1)
            if not is_past:
                status_now, answer = await service.sync()
                assert (status_now, answer["status"]) == (503, "cooling")
            async with service.client.post("/sources/my_data/resume") as response:
                assert (await response.json())["changed"] is not is_past
            await service.recover()

    @pytest.mark.parametrize("retry_after", ["soon", "-1", "", "\u0661".encode().decode("latin-1")])
    async def test_a_senseless_wait_is_ignored(self, make_service: MakeService, retry_after: str) -> None:
        """A Retry-After that makes no sense leaves the usual back-off."""
        async with make_service(source_attempts=2) as service:
            busy = Answer(status=503, headers={"Retry-After": retry_after})
            service.answer([busy, Answer(body=BODY)])
            assert (await service.sync())[0] == 200
            await service.holds(AFTER)

    @pytest.mark.parametrize(
        "answer", [Answer(status=418), Answer(status=404), Answer(body=b"{}"), redirect("http://localhost/")]
    )
    async def test_what_will_not_get_better_is_asked_once(self, make_service: MakeService, answer: Answer) -> None:
        """No second attempt is made where it could not help."""
        async with make_service(source_attempts=3) as service:
            await service.load()
            service.answer(answer)
            await service.fail(status=502, code=("source_refused", "source_invalid", "address_refused"))
            assert len(service.engine.feed.requests) == 1 + 1
            await service.recover()


class TestRedirects:
    async def test_credentials_stay_with_their_origin(self, make_service: MakeService, engine: Engine) -> None:
        """A redirect to another origin is followed without the credentials, and what it brings is mirrored."""
        url = engine.feed.url.replace("//", "//ada:secret@")
        async with FeedServer(Answer(body=BODY)) as other, make_service(source_url=url) as service:
            service.answer(redirect(other.url))
            assert (await service.sync())[0] == 200
            assert [request.headers.get("authorization") for request in engine.feed.requests] != [None]
            assert [request.headers.get("authorization") for request in other.requests] == [None]
            assert (await service.engine.rows())[99]["name"] == "x"

    async def test_a_private_address_is_never_asked(self, make_service: MakeService) -> None:
        """A redirect into a private network ends before a connection, unless ALLOW_PRIVATE says otherwise."""
        async with FeedServer(Answer(body=BODY)) as hidden:
            leads_there = redirect(hidden.url.replace("127.0.0.1", "localhost"))
            async with make_service() as service:
                await service.load()
                service.answer(leads_there)
                await service.fail(status=502, code="address_refused")
                assert not hidden.requests
            async with make_service(allow_private=True) as service:
                assert (await service.sync())[0] == 200
                assert hidden.requests
                await service.holds(AFTER)

    async def test_a_redirect_within_the_origin_is_followed(self, service: FaultyService) -> None:
        """A relative redirect leads to the records."""

        def answer(request: Request) -> Answer:
            return redirect("v2/all.json") if request.path == "/feed.json" else Answer(body=BODY)

        service.answer(answer)
        assert (await service.sync())[0] == 200
        await service.holds(AFTER)


class TestVanishing:
    async def test_no_records_are_held_against_a_full_mirror(self, make_service: MakeService) -> None:
        """An empty array deletes nothing and is answered 422, unless ALLOW_EMPTY says that it may be right."""
        async with make_service(max_delete_rows=1000) as service:
            await service.load()
            before = await service.engine.rows()
            service.answer(Answer(body=b"[]"))
            status, answer = await service.sync()
            assert (status, answer["status"], answer["held"], answer["deleted"]) == (422, "held", len(BEFORE), 0)
            assert await service.engine.rows() == before
        async with make_service(allow_empty=True) as service:
            assert (await service.sync())[1]["deleted"] == len(BEFORE)
            await service.holds([])

    @pytest.mark.parametrize("kept", [0, len(BEFORE) - 1], ids=["alone", "among others"])
    async def test_records_without_a_key_delete_nothing(self, service: FaultyService, kept: int) -> None:
        """As long as a record could be anybody's, every row stays, and the answer is 422."""
        await service.load()
        before = await service.engine.rows()
        service.answer(Answer(body=dump([*BEFORE[:kept], {"name": "no key"}])))
        status, answer = await service.sync()
        assert (status, answer["rejected"], answer["held"], answer["deleted"]) == (422, 1, len(BEFORE) - kept, 0)
        assert await service.engine.rows() == before
        await service.recover()

    async def test_many_deletions_are_held_and_approved_once(self, make_service: MakeService) -> None:
        """Over the guard upserts are applied and deletions wait; an approval covers as many as were shown, once."""
        many = [{"id": number, "name": "a"} for number in range(40)]
        fewer = [{"id": 0, "name": "b"}, *many[1:20]]
        async with make_service() as service:
            await service.load(many)
            service.answer(Answer(body=dump(fewer)))
            status, held = await service.sync()
            assert (status, held["held"], held["updated"], held["deleted"]) == (422, 20, 1, 0)
            assert len(await service.engine.rows()) == 40
            service.answer(Answer(body=dump(fewer[:19])))
            status, more = await service.sync(f"?approve={held['run']}")
            assert (status, more["held"], more["deleted"]) == (422, 21, 0)
            status, done = await service.sync(f"?approve={more['run']}")
            assert (status, done["deleted"]) == (200, 21)
            await service.fail_to_approve(more["run"])
            await service.holds(fewer[:19])


async def test_a_defect_is_logged_with_its_traceback(service: FaultyService) -> None:
    """What nobody thought of fails the run too, and the log tells where it came from."""

    def stumble(_progress: object) -> None:
        raise ZeroDivisionError

    await service.load()
    before = await service.kept()
    service.answer(Answer(body=BODY))
    with pytest.raises(LockstepError, match="ZeroDivisionError"):
        await sync_data(service.engine.database, service.engine.source, on_progress=stumble)
    assert await service.kept() == before
    (line,) = [line for line in service.logged() if line["event"] == "run_failed"]
    assert "in stumble" in line["exception"]
    await service.recover()
