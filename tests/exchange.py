"""A stand-in for an exchange's market data: the shapes, weights, limits and errors of its real API, on this machine.

    async with Exchange() as exchange:
        ... sync exchange.url ...
        exchange.move("BTCUSDT")

As a program, `python -m tests.exchange`, it moves a few prices every second until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, product
from types import TracebackType
from typing import Any, Self

from aiohttp import web

SYMBOLS = 2_438
PRICES_PATH = "/api/v3/ticker/price"
WEIGHT_LIMIT = 6_000
WINDOW_SECONDS = 60
FIRST_BAN_SECONDS = 120
WELL_KNOWN = ("BTC", "ETH", "BNB", "SOL", "XRP", "ADA", "DOGE", "LTC", "1000SATS", "币安人生")
QUOTES = ("USDT", "USDC", "BTC", "EUR", "TRY")
STEP = Decimal("0.00000001")
MAINTENANCE = "<html><head><title>503</title></head><body><h1>System under maintenance</h1></body></html>"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is answered instead of data."""

    status: int
    body: str
    content_type: str = "application/json"
    retry_after: str | None = None


def refusal(status: int, code: int, message: str, *, retry_after: int | None = None) -> Failure:
    """Return an error as the exchange words them."""
    told = None if retry_after is None else str(retry_after)
    return Failure(status=status, body=json.dumps({"code": code, "msg": message}), retry_after=told)


IN_MAINTENANCE = Failure(status=503, body=MAINTENANCE, content_type="text/html")


class Exchange:
    """The server; its clock, its prices and what it refuses are in the hands of whoever started it."""

    def __init__(self, *, symbols: int = SYMBOLS, clock: Callable[[], float] = time.time, port: int = 0) -> None:
        self.clock = clock
        self.prices = {name: f"{1 + place * 37 % 90_000}.45000000" for place, name in enumerate(names(symbols))}
        self.valid_keys: set[str] | None = None
        """Keys that are known; None takes any, as public data does."""
        self.failure: Failure | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked: list[str] = []
        """Every path that was asked for, in order."""
        self.keys: list[str | None] = []
        """The key that came with each request."""
        self.answering = asyncio.Event()
        self.weight_before = 0
        """What others have used at this address in every minute."""
        self._used: dict[int, int] = {}
        self._limited_in: int | None = None
        self._banned_until = 0.0
        self._port = port
        application = web.Application()
        application.router.add_get(PRICES_PATH, self._answer_prices)
        application.router.add_get("/api/v3/ping", self._answer_ping)
        application.router.add_get("/api/v3/time", self._answer_time)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.may_answer.set()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where all prices are."""
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}{PRICES_PATH}"

    def move(self, *symbols: str) -> None:
        """Change prices, all of them unless some are named, by their last digit or more."""
        for symbol in symbols or self.prices:
            self.prices[symbol] = f"{Decimal(self.prices[symbol]) + STEP * random.randint(1, 10**6):.8f}"

    def list_of_prices(self) -> list[dict[str, str]]:
        """Return what all prices are answered with."""
        return [{"symbol": symbol, "price": price} for symbol, price in self.prices.items()]

    async def _answer_prices(self, request: web.Request) -> web.Response:
        symbol = request.query.get("symbol")
        refused = await self._admit(request, weight=4 if symbol is None else 2)
        if refused is not None:
            return refused
        if symbol is None:
            return self._respond(self.list_of_prices())
        if symbol not in self.prices:
            return self._fail(refusal(400, -1121, "Invalid symbol."))
        return self._respond({"symbol": symbol, "price": self.prices[symbol]})

    async def _answer_ping(self, request: web.Request) -> web.Response:
        return await self._admit(request, weight=1) or self._respond({})

    async def _answer_time(self, request: web.Request) -> web.Response:
        return await self._admit(request, weight=1) or self._respond({"serverTime": int(self.clock() * 1000)})

    async def _admit(self, request: web.Request, *, weight: int) -> web.Response | None:
        """Count a request; return why it is refused, or None if it is served."""
        self.asked.append(request.path)
        key = request.headers.get("X-MBX-APIKEY")
        self.keys.append(key)
        self.answering.set()
        await self.may_answer.wait()
        self._used[self._minute] = self._used.get(self._minute, 0) + weight
        failure = self.failure or self._limit() or self._judge_key(key)
        return None if failure is None else self._fail(failure)

    def _limit(self) -> Failure | None:
        """Refuse who is over the limit with 429, and ban with 418 who goes on asking, as the exchange does."""
        moment = self.clock()
        if moment < self._banned_until:
            return self._ban()
        if self.used_weight <= WEIGHT_LIMIT:
            return None
        if self._limited_in == self._minute:
            self._banned_until = moment + FIRST_BAN_SECONDS
            return self._ban()
        self._limited_in = self._minute
        left = max(WINDOW_SECONDS - int(moment % WINDOW_SECONDS), 1)
        message = (
            f"Too much request weight used; current limit is {WEIGHT_LIMIT} request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API."
        )
        return refusal(429, -1003, message, retry_after=left)

    def _ban(self) -> Failure:
        until = int(self._banned_until * 1000)
        message = (
            f"Way too much request weight used; IP banned until {until}. "
            "Please use WebSocket Streams for live updates to avoid bans."
        )
        return refusal(418, -1003, message, retry_after=int(self._banned_until - self.clock()))

    def _judge_key(self, key: str | None) -> Failure | None:
        if key is None or self.valid_keys is None or key in self.valid_keys:
            return None
        return refusal(401, -2015, "Invalid API-key, IP, or permissions for action.")

    @property
    def _minute(self) -> int:
        return int(self.clock() // WINDOW_SECONDS)

    @property
    def used_weight(self) -> int:
        """What was used in the present minute, that of others included."""
        return self.weight_before + self._used.get(self._minute, 0)

    def _respond(self, content: Any) -> web.Response:
        return web.json_response(content, headers=self._weights())

    def _fail(self, failure: Failure) -> web.Response:
        headers = self._weights() if failure.content_type == "application/json" else {}
        if failure.retry_after is not None:
            headers["Retry-After"] = failure.retry_after
        return web.Response(
            text=failure.body, status=failure.status, content_type=failure.content_type, headers=headers
        )

    def _weights(self) -> dict[str, str]:
        return {"X-MBX-USED-WEIGHT": str(self.used_weight), "X-MBX-USED-WEIGHT-1M": str(self.used_weight)}


def names(count: int) -> list[str]:
    """Return so many different pairs, those that everybody knows among the first."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    others = ("".join(letter) for letter in product(letters, repeat=3))
    bases = (*WELL_KNOWN, *(base for base in others if base not in WELL_KNOWN))
    return list(islice((base + quote for base in bases for quote in QUOTES if base != quote), count))


async def serve(port: int, moving: int) -> None:
    """Serve until stopped, moving some prices every second."""
    async with Exchange(port=port) as exchange:
        sys.stdout.write(f"Prices at {exchange.url}\n")
        sys.stdout.flush()
        while True:
            await asyncio.sleep(1)
            exchange.move(*random.sample(list(exchange.prices), moving))


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A stand-in for an exchange's market data.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--moving", type=int, default=300, help="how many prices move every second")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(given.port, given.moving))


if __name__ == "__main__":
    main()
