"""What the tests of the running service share: a source that a test holds in its hands, and a way to call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from quart import Quart

from web.service import Service
from web.serving import bind, serve_for_now


@dataclass
class Feed:
    """A source on a real socket, whose answer a test decides and can hold back."""

    url: str = ""
    records: Any = field(default_factory=lambda: [{"id": number, "name": f"n{number}"} for number in range(40)])
    status: int = 200
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked.set()
        await self.may_answer.wait()
        return web.json_response(self.records, status=self.status)


@asynccontextmanager
async def serve_feed() -> AsyncIterator[Feed]:
    served = Feed()
    served.may_answer.set()
    application = web.Application()
    application.router.add_get("/feed", served.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/feed"
    yield served
    served.may_answer.set()
    await runner.cleanup()


async def get(client: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, Any]:
    async with client.get(path, **options) as response:
        return response.status, await response.json(content_type=None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def served(app: Quart, *, ready: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the application by hypercorn on a free port, for as long as the block lasts."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    service: Service = app.extensions["lockstep"]
    async with serve_for_now(app, listener), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        if ready:
            await service.wait_until_ready()
        yield client
