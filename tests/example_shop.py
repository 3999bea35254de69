"""The shop of the documentation's tour: its feeds, as a real server serves them, and what happens there meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

PAGE_SIZE = 10
TOKEN = "tour-of-the-shop"  # noqa: S105 (it opens nothing but this server)


class Shop:
    """What the shop sells, what was ordered, and what lies in its two stores."""

    def __init__(self) -> None:
        self.url = ""
        self.products = [_product(number) for number in range(1, 26)]
        self.orders = [_order(number, hour=number) for number in range(1, 6)]
        self.stock = {
            "eu": [{"sku": f"S-{number:03}", "pieces": 10 * number} for number in range(1, 13)],
            "us": [{"sku": f"S-{number:03}", "pieces": 7 * number} for number in range(1, 9)],
        }

    async def happen(self, what: str) -> None:
        """Let something happen that the tour tells of."""
        match what:
            case "prices change":
                self.products[2]["price"] = 12.75
                del self.products[-1]
            case "orders come in":
                self.orders[0] |= {"state": "sent", "updated_at": "2026-03-01T09:00:00Z"}
                self.orders.append(_order(6, hour=10))
            case "the store in the us sells out":
                del self.stock["us"][-1]
            case _:
                raise ValueError(f"nothing is known of {what!r}")

    async def serve_products(self, request: web.Request) -> web.Response:
        """Serve a page of products, with a link to the next one, and the time, which always moves."""
        page = int(request.query.get("page", "1"))
        first = PAGE_SIZE * (page - 1)
        now = datetime.now(UTC).isoformat()
        shown = [{**product, "fetched_at": now} for product in self.products[first : first + PAGE_SIZE]]
        headers = {"X-Total-Count": str(len(self.products))}
        if first + PAGE_SIZE < len(self.products):
            headers["Link"] = f'</v1/products?page={page + 1}>; rel="next"'
        return web.json_response(shown, headers=headers)

    async def serve_orders(self, request: web.Request) -> web.Response:
        """Serve the orders that changed at a time or later, to whoever has the token."""
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "who are you?"}, status=401)
        since = request.query.get("updated_since", "")
        orders = [order for order in self.orders if order["updated_at"] >= since]
        return web.json_response({"data": {"orders": orders}, "meta": {"total": len(orders)}})

    async def serve_stock(self, request: web.Request) -> web.Response:
        """Serve what lies in one store."""
        return web.json_response(self.stock[request.match_info["store"]])


def _product(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "sku": f"S-{number:03}",
        "name": f"Kettle No. {number}",
        "price": number + 0.25,
        "supplier": {"name": "Fjord & Sons", "city": "Bergen"},
    }


def _order(number: int, *, hour: int) -> dict[str, Any]:
    return {"number": number, "state": "open", "total": f"{number}9.90", "updated_at": f"2026-03-01T{hour:02}:00:00Z"}


@asynccontextmanager
async def open_shop() -> AsyncIterator[Shop]:
    """Serve a shop for as long as the block lasts."""
    shop = Shop()
    application = web.Application()
    application.router.add_get("/v1/products", shop.serve_products)
    application.router.add_get("/v1/orders", shop.serve_orders)
    application.router.add_get("/v1/stock/{store:eu|us}", shop.serve_stock)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield shop
    finally:
        await runner.cleanup()
