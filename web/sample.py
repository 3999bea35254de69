"""The sample feed: a catalogue that changes a little on every fetch, so that there is something to see at once.

Every version is computed from its number alone. Going from one version to the next, three products leave for good and
three new ones come, five are taken off sale for the length of one version, the five before them return, and about
45 change price or stock. The catalogue keeps its size for ever.
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import portalocker
from quart import Blueprint, Response, request

from definitions import Source
from errors import BadRequest, SettingError

PRODUCTS = 2_500
ARRIVALS = 3
"""Products that come, and as many that leave, from one version to the next."""
OFF_SALE_PERIOD = 500
"""Every so many versions a product is off sale for one; so PRODUCTS / OFF_SALE_PERIOD are absent at any time."""
PRICE_PERIOD, STOCK_PERIOD = 97, 131

Pinned = Literal["current", "next"]

OPENING = datetime(2024, 3, 1, 8, tzinfo=UTC)
VERSION_LENGTH = timedelta(minutes=15)
KINDS = (
    ("Kettle", "kitchen", ("steel", "1.7 l")),
    ("Teapot", "kitchen", ("porcelain", "gift")),
    ("Lamp", "lighting", ("led", "dimmable")),
    ("Armchair", "furniture", ("oak", "wool")),
    ("Bookshelf", "furniture", ("oak",)),
    ("Backpack", "travel", ("waterproof", "recycled", "25 l")),
    ("Notebook", "stationery", ()),
    ("Headphones", "audio", ("wireless", "noise-cancelling")),
)
BRANDS = ("Åkerlund", "Brontë & Co", "Čapek", "Dūr", "Élan", "Fjällräven Nord", "Grün", "日々", "Ñandú", "O'Hara")
STYLES = ("Classic", "Mini", "“Loft”", "Nº 5", "Café", "Größe L", "Zürich", "Ω", "静か", "Été ☀")

_encoder = msgspec.json.Encoder()


def catalogue(version: int) -> bytes:
    """Return the feed's body at `version`, which counts from 1."""
    first = 1 + ARRIVALS * (version - 1)
    on_sale = (
        number for number in range(first, first + PRODUCTS) if number % OFF_SALE_PERIOD != version % OFF_SALE_PERIOD
    )
    return _encoder.encode([_product(number, version) for number in on_sale])


def _product(number: int, version: int) -> dict[str, Any]:
    chance = zlib.crc32(b"%d" % number)
    kind, category, tags = KINDS[chance % len(KINDS)]
    style, brand = STYLES[chance // 8 % len(STYLES)], BRANDS[chance // 80 % len(BRANDS)]
    price_version, price_changed = _last_change(number, version, PRICE_PERIOD)
    stock_version, stock_changed = _last_change(number, version, STOCK_PERIOD)
    stock = zlib.crc32(b"%d stock %d" % (number, stock_version)) % 120
    cents = 495 + chance % 40_000 + zlib.crc32(b"%d price %d" % (number, price_version)) % 500
    return {
        "id": number,
        "sku": f"{category[:3].upper()}-{number:06}",
        "name": f"{brand} {kind} {style}",
        "brand": brand,
        "category": category,
        "price": cents / 100,
        "currency": "EUR",
        "stock": stock,
        "in_stock": stock > 0,
        "rating": None if chance % 9 == 0 else 1 + chance % 41 / 10,
        "tags": tags,
        "dimensions": {
            "weight_g": 50 + chance % 9_000,
            "size_mm": [chance % 700 + 40, chance % 310 + 20, chance % 95 + 5],
        },
        "listed_at": _moment(number // ARRIVALS - PRODUCTS // ARRIVALS),
        "updated_at": _moment(max(price_changed, stock_changed)),
    }


def _last_change(number: int, version: int, period: int) -> tuple[int, int]:
    """Return how often, and at which version last, something that moves every `period` versions has moved."""
    offset = version + zlib.crc32(b"%d every %d" % (number, period)) % period
    return offset // period, version - offset % period


def _moment(version: int) -> str:
    return (OPENING + version * VERSION_LENGTH).isoformat().replace("+00:00", "Z")


def pinned(source: Source, version: Pinned) -> Source:
    """Return the sample as a source that stands still: what was fetched last, or what the next fetch will bring."""
    return dataclasses.replace(source, url=f"{source.url}?version={version}")


def fetch_version(counter: Path, asked: Pinned | None) -> int:
    """Return the version to serve; unless one was asked for, count one on. Blocks: call it in a thread."""
    try:
        counter.parent.mkdir(parents=True, exist_ok=True)
        # Opened to append, so that it is made when missing; the number only ever grows, so it is overwritten in place.
        counter.touch()
        with portalocker.Lock(counter, "r+", timeout=5) as file:
            text = file.read().strip()
            served = int(text) if text.isdecimal() else 0
            if asked is None:
                file.seek(0)
                file.write(str(served + 1))
                file.flush()  # before the lock is let go, or the next process reads the old number
    except OSError as exc:
        raise SettingError(f"DATA_DIR: {counter} cannot be written ({exc.strerror}).") from exc
    return max(served, 1) if asked == "current" else served + 1


def sample_blueprint(*, path: str, data_dir: Path) -> Blueprint:
    """Return the blueprint that serves the sample feed at `path` and counts its versions in `data_dir`."""
    blueprint = Blueprint("sample", __name__)
    counter = data_dir / "sample_version"

    @blueprint.get(path)
    async def serve_catalogue() -> Response:
        """Serve the next version of the catalogue; looking (HEAD, ?version=) does not move it on."""
        asked = request.args.get("version")
        if asked not in {None, "current", "next"}:
            raise BadRequest("The parameter version must be current or next.")
        looked: Pinned | None = (
            "current" if asked == "current" else "next" if asked or request.method == "HEAD" else None
        )
        version = await asyncio.to_thread(fetch_version, counter, looked)
        body = await asyncio.to_thread(catalogue, version)
        return Response(body, content_type="application/json", headers={"Cache-Control": "no-store"})

    return blueprint
