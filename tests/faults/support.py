"""What the tests of faults share: a service whose source goes wrong, its log, and an account of what it left behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from app import create_app, set_up_logging
from config import Settings, load_settings
from tests.engine import Engine, assert_holds, dump
from tests.feed_server import Answer, Answers
from tests.logs import own_logging
from tests.service import get, served

BEFORE: Sequence[Mapping[str, Any]] = [
    {"id": number, "name": f"n{number}", "price": number / 4} for number in range(12)
]
AFTER: Sequence[Mapping[str, Any]] = [{**BEFORE[0], "name": "new"}, *BEFORE[1:10], {"id": 99, "name": "x", "price": 1}]
"""What BEFORE becomes: one record is updated, one created, and two are deleted."""

BODY = dump(AFTER)

OUTCOME = {"updated": 1, "created": 1, "deleted": 2, "unchanged": 9}


@dataclass(kw_only=True)
class FaultyService:
    """A service that mirrors a feed server, beside an engine that looks at what it did."""

    engine: Engine
    client: aiohttp.ClientSession
    log_file: Path

    def answer(self, answers: Answers) -> None:
        """Have the source answer like this from now on."""
        self.engine.feed.answers = answers

    async def sync(self, query: str = "") -> tuple[int, Any]:
        """Call for a run; return the HTTP status and the body."""
        return await get(self.client, f"/sync_data{query}")

    async def load(self, records: Sequence[Mapping[str, Any]] = BEFORE) -> None:
        """Mirror a first snapshot."""
        self.engine.serve(dump(records))
        status, _ = await self.sync()
        assert status == 200

    async def fail(self, *, status: int, code: str | tuple[str, ...], query: str = "") -> Any:
        """Call for a run that must fail and leave everything as it was; return its answer."""
        before, logged = await self.kept(), len(self.logged())
        answered, body = await self.sync(query)
        assert await self.kept() == before, "a run that failed has written"
        assert (answered, body["status"], body["http_status"]) == (status, "failed", status)
        assert body["code"] in ((code,) if isinstance(code, str) else code)
        assert body["detail"]
        assert body["remedy"]
        errors = [line for line in self.logged()[logged:] if line["level"] in ("error", "critical")]
        assert [(line["event"], line["run"], line["error"]) for line in errors] == [
            ("run_failed", body["run"], body["code"])
        ]
        assert errors[0]["cause"]
        assert errors[0]["exception"]
        _, run = await get(self.client, f"/runs/{body['run']}")
        assert (run["status"], run["error"]) == ("failed", body["code"])
        return body

    async def fail_to_approve(self, run: int) -> None:
        """Approve a hold that is there no more: nothing happens."""
        before = await self.kept()
        status, body = await self.sync(f"?approve={run}")
        assert (status, body["code"]) == (409, "approval_refused")
        assert await self.kept() == before

    async def recover(self, records: Sequence[Mapping[str, Any]] = AFTER) -> Any:
        """Let the source be well again: the next run converges, and the one after that writes nothing."""
        body = dump(records)
        self.engine.serve(body)
        status, answer = await self.sync()
        assert (status, answer["status"]) == (200, "succeeded")
        await self.holds(records)
        return answer

    async def holds(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Assert that the live rows are these records, and that another run over them writes nothing."""
        assert_holds(await self.engine.state(), {self.engine.key_of(record): record for record in records})
        before = await self.kept()
        self.answer(Answer(body=dump(records)))
        status, answer = await self.sync()
        assert (status, answer["status"]) == (200, "unchanged")
        assert (await self.kept())[:3] == before[:3], "a run over what is mirrored already has written"

    async def kept(self) -> tuple[Any, ...]:
        """Return all that a run that fails leaves alone: the mirror as it lies on disk, the journal, the books."""
        journal = await self.engine.sql.fetch("SELECT c::text FROM lockstep.changes c ORDER BY seq")
        return *(await self.engine.stored())[:2], journal, await self.engine.written()

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of the log."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


@asynccontextmanager
async def faulty_service(engine: Engine, database_url: str, home: Path, **given: Any) -> AsyncIterator[FaultyService]:
    """Serve a mirror of the engine's feed server; every fetch is attempted once unless `given` says otherwise."""
    usual = {"source_url": engine.feed.url, "database_url": database_url, "log_file": home / "app.log"}
    settings = make_settings(**({"log_format": "json"} | usual | given))
    engine.source = replace(settings.source(), attempts=1)
    with logging_as(settings):
        async with served(create_app(settings)) as client:
            yield FaultyService(engine=engine, client=client, log_file=settings.log_file)


def make_settings(**given: Any) -> Settings:
    """Return settings under which faults show at once."""
    return load_settings(**({"settle_seconds": 0, "source_attempts": 1, "_env_file": None} | given))


@contextmanager
def logging_as(settings: Settings) -> Iterator[None]:
    """Log as the settings say, and as before afterwards."""
    with own_logging():
        set_up_logging(settings, console=False)
        yield
