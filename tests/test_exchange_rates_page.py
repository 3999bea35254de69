"""The guide to exchange rates shows what really happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import create_app
from config import load_settings
from tests.codebase import ROOT
from tests.doc_examples import pattern, steps
from tests.exchange import PRICES_PATH, Exchange
from tests.service import served

PAGE = ROOT / "docs/exchange-rates.md"
SERVICE, EXCHANGE = "http://127.0.0.1:5001", "http://127.0.0.1:8765"
CALL = re.compile(rf"curl '?{SERVICE}(?P<path>[^\s']*)'?")


async def test_the_page_does_what_it_says(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows the page, with the stand-in as the exchange, sees what stands there."""
    monkeypatch.chdir(tmp_path)
    todo = list(steps(PAGE.read_text(encoding="utf-8")))
    async with Exchange() as exchange:
        exchange.prices["BTCUSDT"] = "67123.45000000"
        origin = exchange.url.removesuffix(PRICES_PATH)
        for step in todo:
            if step.file:
                (tmp_path / step.file).write_text(step.text.replace(EXCHANGE, origin), encoding="utf-8")
        app = create_app(load_settings(database_url=database_url, settle_seconds=0, worker=False))
        async with served(app) as client:
            await (await client.get("/sync_data")).read()
            for step in todo:
                if step.happening == "bitcoin goes up":
                    exchange.prices["BTCUSDT"] = "67150.00000000"
                elif step.command and (call := CALL.fullmatch(step.command)):
                    async with client.get(call["path"]) as response:
                        printed = (await response.text()).replace(origin, EXCHANGE)
                    assert pattern(step.text).fullmatch(re.sub(r"\s+", "", printed)), (step.command, printed[:2_000])
