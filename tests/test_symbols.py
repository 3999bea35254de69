"""Exchange rates: kept exactly, answered with their age, with their history, and never passed off as fresher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

import sync
from app import create_app
from config import Settings, load_settings
from definitions import Source
from store import Database, symbols
from store.symbols import select_price_changes
from tests.access import SECRET_KEY, guarded
from tests.exchange import IN_MAINTENANCE, PRICES_PATH, SYMBOLS, WEIGHT_LIMIT, Exchange, refusal
from tests.postgres import connect
from tests.service import Feed, free_port, get, served
from web import ping

PING_PATH = "/api/v3/ping"
PRICE_OF_BTC = "67123.45000000"


@dataclass
class Rates:
    """A service that mirrors an exchange."""

    client: aiohttp.ClientSession
    exchange: Exchange
    database: Database
    source: Source

    async def get(self, path: str, status: int = 200) -> Any:
        answered, body = await get(self.client, path)
        assert answered == status, body
        return body

    async def sync(self) -> Any:
        return await self.get("/sync_data")

    async def count(self, path: str) -> int:
        return self.exchange.asked.count(path)


def settings_for(exchange: Exchange, database_url: str, home: Path, **given: Any) -> Settings:
    """Return settings whose sources file says no more than where the exchange is."""
    file = home / "sources.toml"
    file.write_text(f'[sources.rates]\npreset = "binance"\nurl = "{exchange.url}"\nattempts = 1\n')
    usual = {"database_url": database_url, "settle_seconds": 0, "worker": False, "sources_file": file}
    return load_settings(**usual | given)


@asynccontextmanager
async def mirroring(exchange: Exchange, database_url: str, database: Database, home: Path) -> AsyncIterator[Rates]:
    settings = settings_for(exchange, database_url, home)
    async with served(create_app(settings)) as client:
        yield Rates(client, exchange, database, settings.sources().default)


@pytest_asyncio.fixture
async def rates(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rates]:
    monkeypatch.chdir(tmp_path)
    async with Exchange(symbols=20) as exchange, mirroring(exchange, database_url, database, tmp_path) as rates:
        exchange.prices["BTCUSDT"] = PRICE_OF_BTC
        yield rates


async def test_every_digit_is_kept(rates: Rates, database_url: str) -> None:
    """The mirror holds prices as numeric with just the digits that the exchange sent, and answers with those."""
    rates.exchange.prices |= {
        "BTCUSDT": PRICE_OF_BTC,
        "ETHBTC": "0.00000000",
        "LONGUSDT": "12345678901234.123456789012345678",
    }
    await rates.sync()
    listed = await rates.get("/symbols/get/all")
    assert {entry["symbol"]: entry["price"] for entry in listed["symbols"]} == rates.exchange.prices
    assert listed["count"] == len(rates.exchange.prices)
    sql = await connect(database_url)
    try:
        kept = await sql.fetchrow("SELECT price::text, pg_typeof(price)::text FROM rates WHERE symbol = 'BTCUSDT'")
    finally:
        await sql.close()
    assert tuple(kept or ()) == (PRICE_OF_BTC, "numeric")


async def test_other_zeros_are_no_change(rates: Rates) -> None:
    """Prices are compared by value: one that is only spelled otherwise is neither written nor journaled."""
    await rates.sync()
    rates.exchange.prices["BTCUSDT"] = "67123.45"
    report = await rates.sync()
    assert (report["status"], report["updated"]) == ("unchanged", 0)
    assert (await rates.get("/symbols/get/BTCUSDT"))["price"] == PRICE_OF_BTC


async def test_a_price_that_is_no_number_fails_the_run(rates: Rates) -> None:
    """Nothing is guessed and nothing is lost: the run fails, names the record, and the prices stay."""
    await rates.sync()
    rates.exchange.prices["ETHUSDT"] = "n/a"
    problem = await rates.get("/sync_data", 502)
    assert problem["code"] == "schema_conflict"
    assert "symbol='ETHUSDT'" in problem["detail"]
    assert "is a text that is not spelled as a number" in problem["detail"]
    assert (await rates.get("/symbols/get/BTCUSDT"))["price"] == PRICE_OF_BTC


async def test_one_price(rates: Rates) -> None:
    """A price comes with when it changed, when a run last confirmed it, and how long ago that is, in any case."""
    await rates.get("/symbols/get/BTCUSDT", 404)
    first = await rates.sync()
    found = await rates.get("/symbols/get/btcusdt")
    assert (found["symbol"], found["price"]) == ("BTCUSDT", PRICE_OF_BTC)
    assert (found["source"], found["run"]) == ("rates", first["run"])
    assert 0 <= found["age_seconds"] < 60
    assert datetime.fromisoformat(found["changed_at"]) >= datetime.fromisoformat(found["confirmed_at"])
    again = await rates.sync()
    later = await rates.get("/symbols/get/BTCUSDT")
    assert (again["status"], later["run"]) == ("unchanged", again["run"])
    assert later["changed_at"] == found["changed_at"]
    assert later["confirmed_at"] > found["confirmed_at"]


async def test_what_failed_or_was_held_or_undone_confirms_nothing(rates: Rates) -> None:
    """The age goes on growing while runs come to nothing; after an undo it is not known at all."""
    first = (await rates.sync())["run"]
    everything = dict(rates.exchange.prices)
    rates.exchange.failure = IN_MAINTENANCE
    await rates.get("/sync_data", 502)
    rates.exchange.failure = None
    rates.exchange.prices = {"BTCUSDT": "1.00000000"}
    assert (await rates.get("/sync_data", 422))["status"] == "held"
    found = await rates.get("/symbols/get/BTCUSDT")
    assert (found["price"], found["run"]) == ("1.00000000", first)
    rates.exchange.prices = everything
    changed = await rates.sync()
    assert (await rates.get("/symbols/get/BTCUSDT"))["run"] == changed["run"]
    async with rates.client.post(f"/runs/{changed['run']}/undo") as response:
        assert response.status == 200
    found = await rates.get("/symbols/get/BTCUSDT")
    assert (found["price"], found["run"], found["age_seconds"]) == ("1.00000000", None, None)


@pytest.mark.parametrize(
    ("asked", "near"), [("BTCUSD", "BTCUSDT"), ("btc-usdt", "BTCUSDT"), ("ETH", None), ("x" * 300, None)]
)
async def test_an_unknown_symbol(rates: Rates, asked: str, near: str | None) -> None:
    """404 names the symbols that are spelled alike, for the price and for the history."""
    await rates.sync()
    for path in (f"/symbols/get/{asked}", f"/symbols/{asked}/history"):
        problem = await rates.get(path, 404)
        assert problem["code"] == "symbol_unknown"
        if near:
            assert problem["near"][0] == near
            assert near in problem["remedy"]


async def test_a_delisted_symbol_has_its_history(rates: Rates) -> None:
    """A symbol that is gone has no price any more, and the history of those that it had."""
    await rates.sync()
    del rates.exchange.prices["BTCUSDT"]
    await rates.sync()
    assert "BTCUSDC" in (await rates.get("/symbols/get/BTCUSDT", 404))["near"]
    (gone,) = (await rates.get("/symbols/btcusdt/history"))["history"]
    assert (gone["op"], gone["old"], gone["new"]) == ("deleted", PRICE_OF_BTC, None)


async def test_words_of_the_routes_are_symbols_where_symbols_stand(rates: Rates) -> None:
    """What follows /symbols/get/ is always a symbol, but for `all`."""
    rates.exchange.prices |= {"HISTORY": "1.00000000", "GET": "2.00000000", "ALL": "3.00000000", "币安人生TRY": "4.0"}
    await rates.sync()
    assert (await rates.get("/symbols/get/history"))["price"] == "1.00000000"
    assert (await rates.get("/symbols/get/ALL"))["price"] == "3.00000000"
    assert "symbols" in await rates.get("/symbols/get/all")
    assert (await rates.get("/symbols/GET/history"))["history"] == []
    assert (await rates.get("/symbols/get/币安人生TRY"))["price"] == "4.0"


async def test_history_in_pages(rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol's changes come newest first, page by page, each once, wherever in the journal they lie."""
    monkeypatch.setattr(symbols, "RECENT", 30)  # so that all ways of looking are taken
    monkeypatch.setattr(symbols, "OFTEN", 1)
    await rates.sync()
    values = [PRICE_OF_BTC]
    for number in range(5):
        rates.exchange.move()
        values.append(rates.exchange.prices["BTCUSDT"])
        if number == 2:
            moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        await rates.sync()
    pairs = list(pairwise(values))[::-1]
    whole = await rates.get("/symbols/BTCUSDT/history")
    assert [(entry["old"], entry["new"]) for entry in whole["history"]] == pairs
    assert {entry["op"] for entry in whole["history"]} == {"updated"}
    assert whole["next"] is None
    seen, query = [], "?limit=2"
    while query:
        page = await rates.get(f"/symbols/BTCUSDT/history{query}")
        seen += page["history"]
        query = f"?limit=2&before={page['next']}" if page["next"] else ""
    assert seen == whole["history"]
    later = await rates.get(f"/symbols/BTCUSDT/history?from={moment}")
    earlier = await rates.get(f"/symbols/BTCUSDT/history?to={moment}")
    assert (later["history"], earlier["history"]) == (whole["history"][:3], whole["history"][3:])
    assert (await rates.get(f"/symbols/BTCUSDT/history?from={moment}&to={moment}"))["history"] == []
    await rates.get("/symbols/BTCUSDT/history?from=yesterday", 400)


async def test_a_refresh_fetches_and_records_first(rates: Rates) -> None:
    """With ?refresh=1 the answer is what the exchange says now, and it stays."""
    listed = await rates.get("/symbols/get/all?refresh=1")
    assert listed["count"] == 20
    rates.exchange.prices["BTCUSDT"] = "70000.00000001"
    found = await rates.get("/symbols/get/BTCUSDT?refresh=1")
    assert found["price"] == "70000.00000001"
    assert found["age_seconds"] < 10
    assert (await rates.get("/symbols/get/BTCUSDT"))["run"] == found["run"] == listed["run"] + 1


async def test_refreshes_share_one_run(rates: Rates) -> None:
    """Whoever asks while a run is under way waits for that run, and the exchange is asked once."""
    await rates.sync()
    rates.exchange.answering.clear()
    rates.exchange.may_answer.clear()
    rates.exchange.prices["BTCUSDT"] = "2.00000000"
    asking = [asyncio.create_task(rates.get("/symbols/get/BTCUSDT?refresh=1")) for _ in range(5)]
    await rates.exchange.answering.wait()
    rates.exchange.may_answer.set()
    answers = await asyncio.gather(*asking)
    assert {answer["price"] for answer in answers} == {"2.00000000"}
    assert len({answer["run"] for answer in answers}) == 1
    assert await rates.count(PRICES_PATH) == 2


async def test_a_refresh_that_fails_is_an_error(rates: Rates) -> None:
    """Old prices are not passed off as fresh: all who wait are told why, and without refresh they are there."""
    await rates.sync()
    rates.exchange.answering.clear()
    rates.exchange.may_answer.clear()
    rates.exchange.failure = refusal(429, -1003, "Too much request weight used.", retry_after=30)
    asking = [asyncio.create_task(get(rates.client, "/symbols/get/BTCUSDT?refresh=1")) for _ in range(3)]
    await rates.exchange.answering.wait()
    rates.exchange.may_answer.set()
    told = [(status, body["code"]) for status, body in await asyncio.gather(*asking)]
    assert (502, "source_refused") in told
    assert set(told) <= {(502, "source_refused"), (502, "refresh_failed"), (503, "cooling")}
    async with rates.client.get("/symbols/get/all?refresh=1") as response:
        assert (response.status, (await response.json())["code"]) == (503, "cooling")
        assert 0 < int(response.headers["Retry-After"]) <= 30
    assert await rates.count(PRICES_PATH) == 2
    assert (await rates.get("/symbols/get/BTCUSDT"))["price"] == PRICE_OF_BTC


async def test_ping(rates: Rates) -> None:
    """Both latencies are told, and the exchange is asked once a second at most, however many ask."""
    answers = await asyncio.gather(*(rates.get("/ping") for _ in range(5)))
    assert rates.exchange.asked == [PING_PATH]
    for answer in answers:
        assert answer["status"] == answer["service"]["status"] == answer["exchange"]["status"] == "ok"
        assert answer["exchange"]["url"].endswith(PING_PATH)
        assert 0 < answer["exchange"]["latency_ms"] < 3_000
        assert 0 < answer["service"]["latency_ms"] < 3_000


@pytest.mark.parametrize(
    ("failure", "code"),
    [(IN_MAINTENANCE, "source_refused"), (refusal(418, -1003, "IP banned", retry_after=120), "source_refused")],
)
async def test_ping_while_the_exchange_is_down(rates: Rates, failure: Any, code: str) -> None:
    """503 says which of them is down and why; the service itself is there."""
    rates.exchange.failure = failure
    problem = await rates.get("/ping", 503)
    assert (problem["code"], problem["exchange"]["code"]) == (code, code)
    assert problem["service"]["status"] == "ok"
    if failure.status == 418:
        assert (await rates.get("/sync_data", 503))["status"] == "cooling"
        assert rates.exchange.asked == [PING_PATH]


async def test_ping_leaves_a_cooling_exchange_alone(rates: Rates) -> None:
    """While nobody is to ask, nobody pings either."""
    rates.exchange.weight_before = WEIGHT_LIMIT - 10
    await rates.sync()
    async with rates.client.get("/ping") as response:
        problem = await response.json()
        assert (response.status, problem["exchange"]["code"]) == (503, "cooling")
        assert 0 < int(response.headers["Retry-After"]) <= 60
    assert rates.exchange.asked == [PRICES_PATH]


async def test_ping_while_the_exchange_is_slow(rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that does not answer in time is down."""
    monkeypatch.setattr(ping, "PING_SECONDS", 0.05)
    rates.exchange.may_answer.clear()
    assert (await rates.get("/ping", 503))["exchange"] == {
        "url": rates.exchange.url.replace(PRICES_PATH, PING_PATH),
        "status": "down",
        "latency_ms": None,
        "code": "source_timeout",
    }


async def test_ping_without_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is away nobody knows whether the exchange may be asked, so it is not."""
    monkeypatch.chdir(tmp_path)
    async with Exchange(symbols=1) as exchange:
        nowhere = f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/nowhere"
        async with served(create_app(settings_for(exchange, nowhere, tmp_path)), ready=False) as client:
            status, problem = await get(client, "/ping")
        assert (status, problem["code"]) == (503, "database_unavailable")
        assert (problem["service"]["status"], problem["exchange"]["status"]) == ("down", "unknown")
        assert exchange.asked == []


async def test_looking_refreshes_nothing(rates: Rates) -> None:
    """HEAD shows that there is an answer, and never begins a run."""
    await rates.sync()
    for path, status in (("/symbols/get/all", 200), ("/symbols/get/all?refresh=1", 405)):
        async with rates.client.head(path) as response:
            assert response.status == status
    assert await rates.count(PRICES_PATH) == 1


async def test_without_the_preset_there_are_no_rates(feed: Feed, tmp_path: Path, database_url: str) -> None:
    """Who mirrors something else is told what rates need."""
    settings = load_settings(source_url=feed.url, database_url=database_url, settle_seconds=0)
    async with served(create_app(settings)) as client:
        for path in ("/symbols/get/all", "/symbols/get/BTCUSDT", "/symbols/BTCUSDT/history", "/ping"):
            status, problem = await get(client, path)
            assert status == 404
            assert 'preset = "binance"' in problem["remedy"]


async def test_reading_prices_does_not_let_one_refresh_them(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token for reading sees prices and history; ?refresh=1 needs one for syncing."""
    monkeypatch.chdir(tmp_path)
    async with Exchange(symbols=20) as exchange:
        settings = settings_for(exchange, database_url, tmp_path)
        given = {"sources_file": settings.sources_file, "worker": False, "source_url": None}
        async with guarded(Feed(), database_url, database, **given) as service:
            _, reader = await service.add_token("read")
            _, syncer = await service.add_token("read", "sync")
            assert await service.call(reader, "/symbols/get/all?refresh=1") == 403
            assert exchange.asked == []
            assert await service.call(syncer, "/symbols/get/all?refresh=1") == 200
            for path in ("/symbols/get/all", "/symbols/get/BTCUSDT", "/symbols/BTCUSDT/history", "/ping"):
                assert await service.call(reader, path) == 200
                assert await service.call(None, path) == 401
            assert SECRET_KEY not in str(exchange.keys)


async def test_the_key_is_sent_if_there_is_one(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BINANCE_API_KEY goes along as X-MBX-APIKEY; a key that is wrong is told, and shown to nobody."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BINANCE_API_KEY", "canary-api-key-123")
    async with Exchange(symbols=20) as exchange, mirroring(exchange, database_url, database, tmp_path) as rates:
        await rates.sync()
        assert exchange.keys == ["canary-api-key-123"]
        exchange.valid_keys = {"another"}
        problem = await rates.get("/sync_data", 502)
        assert "401" in problem["detail"]
        assert "canary" not in str(problem)
        assert "canary-api-key-123" in settings_for(exchange, database_url, tmp_path).secrets()


async def test_a_full_update_is_recorded_whole(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many pairs as the exchange has, one run records every price that moved, in the mirror and the journal."""
    monkeypatch.chdir(tmp_path)
    async with Exchange() as exchange:
        source = settings_for(exchange, "postgresql://u@127.0.0.1/x", tmp_path).sources().default
        await sync.sync_data(database, source)
        before = dict(exchange.prices)
        exchange.move()
        report = await sync.sync_data(database, source)
        assert (report.counts.updated, report.counts.unchanged) == (SYMBOLS, 0)
        found = await symbols.select_prices(database, source)
        assert found is not None
        assert {price.symbol: price.price for price in found.prices} == exchange.prices
        (change,) = await select_price_changes(database, source, "SOLEUR", limit=2)
        assert (change.old, change.new) == (before["SOLEUR"], exchange.prices["SOLEUR"])
        assert report.started_at - timedelta(minutes=1) < change.at
