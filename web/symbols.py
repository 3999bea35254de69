"""Exchange rates: the prices of a source that was made from an exchange's preset."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from typing import Any

from quart import Blueprint, Response, request
from werkzeug.exceptions import MethodNotAllowed

from definitions import Source
from errors import MirrorBusy, NotFound, RefreshFailed, SymbolUnknown
from presets import PING_PATHS
from store.runs import select_run
from store.symbols import Confirmation, Price, PriceChange, Prices, select_price_changes, select_prices, select_symbols
from web import auth, parameters
from web.answers import answer
from web.service import Service, current_service

SHOWN, MOST_SHOWN = 100, 1_000
JOIN_SECONDS = 60.0
"""How long to wait for a run that somebody else has begun."""
LOOK_SECONDS = 0.05
NEAR = 5
"""How many symbols are told to who asked for one that does not exist."""
LONGEST_SYMBOL = 50

blueprint = Blueprint("symbols", __name__)


@blueprint.get("/symbols/get/all")
async def show_all() -> Response:
    """Show all prices with their age; with `?refresh=1`, fetch and record them first."""
    parameters.only("refresh")
    service, source = current_service(), rates_source(current_service())
    await refresh_if_wanted(service, source)
    prices = await select_prices(service.database, source)
    if prices is None:
        raise nothing_yet(source)
    listed = [price_content(price) for price in prices.prices]
    return answer({**origin_content(source, prices.confirmed), "count": len(listed), "symbols": listed})


@blueprint.get("/symbols/get/<symbol>")
async def show_symbol(symbol: str) -> Response:
    """Show one price with its age; with `?refresh=1`, fetch and record all of them first."""
    parameters.only("refresh")
    service, source = current_service(), rates_source(current_service())
    await refresh_if_wanted(service, source)
    prices = await select_prices(service.database, source, spellings(symbol))
    if prices is None:
        raise nothing_yet(source)
    if not prices.prices:
        raise await unknown(service, source, symbol)
    return answer({**price_content(best(prices, symbol)), **origin_content(source, prices.confirmed)})


@blueprint.get("/symbols/<symbol>/history")
async def show_history(symbol: str) -> Response:
    """Show what became of a price, newest first; `next` is the `before` of the next page, null on the last."""
    parameters.only("before", "limit", "from", "to")
    limit = parameters.whole_number("limit", highest=MOST_SHOWN) or SHOWN
    before, since, until = parameters.whole_number("before"), parameters.moment("from"), parameters.moment("to")
    service, source = current_service(), rates_source(current_service())
    name = await known_name(service, source, symbol)
    # One more than is shown tells whether there is a next page.
    found = await select_price_changes(
        service.database, source, name, before=before, since=since, until=until, limit=limit + 1
    )
    following = found[limit - 1].seq if len(found) > limit else None
    changes = [change_content(change) for change in found[:limit]]
    return answer({"symbol": name, "source": source.name, "history": changes, "next": following})


def rates_source(service: Service) -> Source:
    """Return the first source that was made from an exchange's preset; raise NotFound if there is none."""
    for source in service.sources:
        if source.preset in PING_PATHS:
            return source
    raise NotFound(
        "No source has exchange rates.",
        remedy='Give a source of the sources file preset = "binance"; docs/exchange-rates.md says more.',
    )


async def refresh_if_wanted(service: Service, source: Source) -> None:
    """With `?refresh=1`, have a run fetch and record the prices; whoever wants that too waits for the same run."""
    if not parameters.flag("refresh"):
        return
    if request.method == "HEAD":
        raise MethodNotAllowed(valid_methods=["GET"])
    auth.require("sync")
    try:
        await service.run(source)
    except MirrorBusy as busy:
        if busy.run is not None:
            await join(service, busy.run)


async def join(service: Service, run: int) -> None:
    """Wait for a run that somebody else has begun; raise RefreshFailed if it comes to nothing."""
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            report = await select_run(service.database, run)
            while report is not None and report.status == "running":
                await asyncio.sleep(LOOK_SECONDS)
                report = await select_run(service.database, run)
    except TimeoutError as exc:
        raise RefreshFailed(f"Run {run} takes longer than {JOIN_SECONDS:g} s.", run=run, remedy=None) from exc
    if report is None or report.status in ("failed", "interrupted"):
        cause = report.cause if report else "it is gone"
        remedy = report.remedy if report else None
        raise RefreshFailed(f"Run {run}, which had begun already, came to nothing: {cause}", run=run, remedy=remedy)


def spellings(symbol: str) -> list[str]:
    """Return how a symbol may be spelled in the mirror: as it was asked for, or in the exchange's capital letters."""
    return [symbol, symbol.upper()] if "\0" not in symbol else []


def best(prices: Prices, symbol: str) -> Price:
    """Return the price whose symbol is spelled as it was asked for, else the other one."""
    return next((price for price in prices.prices if price.symbol == symbol), prices.prices[0])


async def known_name(service: Service, source: Source, symbol: str) -> str:
    """Return how a symbol is spelled that has a price, or had one; raise SymbolUnknown."""
    prices = await select_prices(service.database, source, spellings(symbol))
    if prices and prices.prices:
        return best(prices, symbol).symbol
    for name in dict.fromkeys(spellings(symbol)):
        if await select_price_changes(service.database, source, name, limit=1):
            return name
    raise await unknown(service, source, symbol)


async def unknown(service: Service, source: Source, symbol: str) -> SymbolUnknown:
    """Return the error that tells which symbols are spelled nearly so."""
    symbols = await select_symbols(service.database, source)
    return SymbolUnknown(symbol[:LONGEST_SYMBOL], near=await asyncio.to_thread(nearest, symbol, symbols))


def nearest(symbol: str, symbols: Iterable[str]) -> list[str]:
    """Return the symbols most like one, the most alike first; signs between the letters do not count."""
    letters = "".join(filter(str.isalnum, symbol[:LONGEST_SYMBOL].upper()))
    return difflib.get_close_matches(letters, list(symbols), n=NEAR)


def nothing_yet(source: Source) -> NotFound:
    """Return the error for who asks before the first sync."""
    return NotFound(
        f"No prices of {source.name} have been recorded yet.", remedy="Add ?refresh=1, or call /sync_data first."
    )


def origin_content(source: Source, confirmed: Confirmation | None) -> dict[str, Any]:
    """Return where prices come from and how old they are."""
    return {
        "source": source.name,
        "run": confirmed.run if confirmed else None,
        "confirmed_at": confirmed.at if confirmed else None,
        "age_seconds": round(confirmed.age_seconds, 3) if confirmed else None,
    }


def price_content(price: Price) -> dict[str, Any]:
    """Return a price; as text, as the exchange has it, so that no reader of JSON rounds it."""
    return {"symbol": price.symbol, "price": price.price, "changed_at": price.changed_at}


def change_content(change: PriceChange) -> dict[str, Any]:
    """Return an entry of a symbol's history."""
    return {
        "seq": change.seq,
        "run": change.run,
        "at": change.at,
        "op": change.op,
        "old": change.old,
        "new": change.new,
    }
