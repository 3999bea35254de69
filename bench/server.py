"""A local HTTP server in a process of its own that serves one file as fast as the kernel can send it.

`FeedServer` starts and steers it. Over its control route the file is switched between runs, and validators (ETag,
Last-Modified) are switched on or left out; without them every fetch is a full one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

CONDITIONAL_HEADERS = ("If-None-Match", "If-Modified-Since")
VALIDATOR_HEADERS = ("ETag", "Last-Modified")


@dataclass(kw_only=True)
class ServedFile:
    """What the server answers with; mutable, because switching it is the server's purpose."""

    path: Path | None = None
    validators: bool = False
    not_modified_answers: int = 0


SERVED_FILE = web.AppKey("SERVED_FILE", ServedFile)


@dataclass(frozen=True, kw_only=True)
class FeedServer:
    """A running feed server, seen from the process that steers it."""

    url: str
    control_url: str
    http: aiohttp.ClientSession

    async def serve(self, path: Path, *, validators: bool = False) -> None:
        """Answer with `path` from now on."""
        wish = {"path": str(path), "validators": validators}
        async with self.http.post(self.control_url, json=wish) as response:
            response.raise_for_status()

    async def not_modified_answers(self) -> int:
        """Return how many requests were answered with 304 so far."""
        async with self.http.get(self.control_url) as response:
            return int((await response.json())["not_modified_answers"])


@asynccontextmanager
async def feed_server() -> AsyncIterator[FeedServer]:
    """Run the server in a process of its own for the length of the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None  # noqa: S101 - asked for as a pipe, two lines above
        address = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as http:
            yield FeedServer(url=f"{address}/feed.json", control_url=f"{address}/control", http=http)
    finally:
        process.terminate()
        await process.wait()


async def answer_feed(request: web.Request) -> web.StreamResponse:
    served = request.app[SERVED_FILE]
    if served.path is None:
        raise web.HTTPServiceUnavailable(text="no file is being served yet")
    return web.FileResponse(served.path, headers={"Content-Type": "application/json"})


@web.middleware
async def drop_conditions(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer in full where validators are switched off, whatever the client remembers."""
    if request.app[SERVED_FILE].validators:
        return await handler(request)
    headers = request.headers.copy()
    for name in CONDITIONAL_HEADERS:
        headers.popall(name, None)
    return await handler(request.clone(headers=headers))


async def prepare_headers(request: web.Request, response: web.StreamResponse) -> None:
    served = request.app[SERVED_FILE]
    served.not_modified_answers += response.status == HTTPStatus.NOT_MODIFIED
    if not served.validators:
        for name in VALIDATOR_HEADERS:
            response.headers.popall(name, None)


async def switch_file(request: web.Request) -> web.Response:
    wish = await request.json()
    served = request.app[SERVED_FILE]
    served.path = Path(wish["path"])
    served.validators = wish["validators"]
    return web.json_response(wish)


async def answer_count(request: web.Request) -> web.Response:
    return web.json_response({"not_modified_answers": request.app[SERVED_FILE].not_modified_answers})


async def serve_until_terminated() -> None:
    app = web.Application(middlewares=[drop_conditions])
    app[SERVED_FILE] = ServedFile()
    app.router.add_get("/feed.json", answer_feed)
    app.router.add_get("/control", answer_count)
    app.router.add_post("/control", switch_file)
    app.on_response_prepare.append(prepare_headers)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_until_terminated())
