"""What an attacker puts into a name, a record or an address stays what it is: text."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine import Engine, dump
from tests.faults.support import FaultyService, faulty_service
from tests.feed_server import Answer, redirect

HOUSE = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""

MARKUP = "</script><img src=x onerror=alert(1)>"
CONTROLS = "x\r\n2026-01-01T00:00:00Z [error    ] forged   \x1b[31m\u2028\u202e"


@pytest.fixture
async def service(engine: Engine, database_url: str, tmp_path: Path) -> AsyncIterator[FaultyService]:
    async with faulty_service(engine, database_url, tmp_path) as running:
        yield running


async def test_a_table_that_cannot_be_named_stops_the_start(database_url: str, tmp_path: Path) -> None:
    """A table name that is no plain identifier is refused at the start, by the setting's name."""
    name = 't"; DROP SCHEMA lockstep CASCADE; --'
    environment = {**os.environ, "table_name": name, "DATABASE_URL": database_url, "SOURCE_URL": NOBODY}
    code, said = await run(HOUSE / "app.py", cwd=tmp_path, environment=environment)
    assert code == 2
    assert "table_name" in said
    assert "Traceback" not in said


async def run(script: Path, *, cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a script to its end; return its exit code and all that it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        cwd=cwd,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_markup_is_inert(service: FaultyService) -> None:
    """Markup in keys, values, field names and errors comes out as JSON, which no browser takes for a page."""
    await service.load([{"id": MARKUP, "v": "a"}])
    service.engine.serve(dump([{"id": MARKUP, "v": MARKUP, MARKUP: MARKUP}, {"id": {"x": MARKUP}}]))
    paths = ["/sync_data?dry_run=1", "/sync_data", "/changes", "/runs/2", f"/{MARKUP}", f"/sync_data?{MARKUP}=1"]
    for path in [*paths, "/sync_data"]:
        async with service.client.get(path) as response:
            text = await response.text()
            assert response.content_type in ("application/json", "application/problem+json"), path
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
            json.loads(text)
        if path == "/sync_data":
            service.answer(Answer(body=MARKUP.encode(), content_type="text/html"))
    assert (await service.engine.rows())[MARKUP][MARKUP] == MARKUP


async def test_no_record_forges_a_line(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """Line breaks and escape sequences in keys, names, values and headers stay inside one line of the log."""
    async with faulty_service(
        engine, database_url, tmp_path, log_format="console", source_types="price=bigint"
    ) as service:
        await service.load([{"id": "1", "price": 1}])
        for answer in (
            Answer(body=dump([{"id": CONTROLS, "price": 2}])),
            Answer(body=dump([{"id": f"{CONTROLS} ", "price": CONTROLS}])),
            Answer(body=dump([{CONTROLS: CONTROLS}])),
            Answer(body=CONTROLS.encode()),
            Answer(body=dump([{"id": "2"}])[:-1] + CONTROLS.encode()),
            Answer(headers={"Content-Encoding": "x\x1b[31m"}),
            redirect("ftp://x/\x1b[31m\x9b31m"),
        ):
            service.answer(answer)
            await service.sync()
        text = service.log_file.read_text()
    assert not any(character in text for character in "\r\x1b\x9b\u2028\u202e")
    assert not re.search(r"^\S+ \[error +\] forged", text, re.MULTILINE)


@pytest.mark.parametrize("path", ["/runs/..%2f..%2fetc", "/..%2fapp.log", "/static/..%2f..%2fapp.py", "/%2e%2e/.env"])
async def test_no_path_leads_to_a_file(service: FaultyService, path: str) -> None:
    """A path that climbs is answered 404, and no file of the service is ever sent."""
    reader, writer = await asyncio.open_connection(*address_of(service))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ", 2)[1] == b"404"
    assert b"application/problem+json" in answer


def address_of(service: FaultyService) -> tuple[str, int]:
    """Return where a service listens."""
    url = service.client._base_url
    assert url is not None
    return str(url.host), int(url.port or 0)


async def test_an_audit_that_could_not_ask_says_so(tmp_path: Path) -> None:
    """Where the list of known vulnerabilities is out of reach, scripts/audit calls nothing clean."""
    environment = {**os.environ, "HTTPS_PROXY": NOBODY, "https_proxy": NOBODY, "NO_PROXY": "", "no_proxy": ""}
    code, said = await run(HOUSE / "scripts" / "audit_requirements.py", cwd=tmp_path, environment=environment)
    assert code == 2
    assert "NOT AUDITED" in said
    assert "CLEAN" not in said
