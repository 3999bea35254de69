"""The tour shows what really happens."""

from __future__ import annotations

from pathlib import Path

from tests.codebase import ROOT
from tests.doc_examples import Reader, steps
from tests.example_shop import TOKEN, open_shop
from tests.service import free_port

PAGE = ROOT / "docs/tour.md"


async def test_the_tour_shows_what_happens(database_url: str, tmp_path: Path) -> None:
    """Whoever follows the tour, with a shop that is really there, sees what stands on the page."""
    port = str(free_port())
    environment = {"DATABASE_URL": database_url, "PORT": port, "SETTLE_SECONDS": "0", "SHOP_TOKEN": TOKEN}
    async with open_shop() as shop:
        replaced = {"https://shop.example.org": shop.url, "http://127.0.0.1:5001": f"http://127.0.0.1:{port}"}
        reader = Reader(tmp_path, replaced=replaced, environment=environment, meanwhile=shop.happen)
        try:
            todo = list(steps(PAGE.read_text(encoding="utf-8")))
            await reader.follow(todo, ready_at=f"http://127.0.0.1:{port}/health/ready")
        finally:
            await reader.leave()
