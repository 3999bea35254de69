"""Shorthands of the tests of `sources`: cut a document in pieces, fetch a feed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import xxhash

from definitions import Source
from models import Validators
from sources import Batch, Feed, open_feed
from sources.batch import Rejections
from sources.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What came of cutting one document."""

    records: dict[int, bytes]
    """Raw bytes by position."""
    rejections: Rejections

    @property
    def values(self) -> list[Any]:
        """The records, decoded by the standard library."""
        return [json.loads(record) for record in self.records.values()]


def source(url: str = "http://127.0.0.1/", **details: Any) -> Source:
    """Return a source that is attempted once."""
    return Source(**{"name": "test", "url": url, "attempts": 1, **details})


def collect(into: dict[int, bytes], batch: Batch) -> None:
    """Add a batch to `into`, checking its fingerprints."""
    assert len(batch.digests) == len(batch.records) > 0
    for place, (record, digest) in enumerate(zip(batch.records, batch.digests, strict=True), batch.position):
        assert place not in into
        into[place] = bytes(record)
        assert digest.tobytes() == xxhash.xxh3_128_digest(into[place])


def cut(document: bytes, *, piece_bytes: int | None = None, content_type: str = "", **details: Any) -> Cut:
    """Cut `document`, fed in pieces of `piece_bytes`."""
    rejections = Rejections()
    layout = Layout(source(**details), content_type=content_type, end_is_marked=True, rejections=rejections)
    records: dict[int, bytes] = {}
    size = piece_bytes or max(len(document), 1)
    for start in range(0, len(document), size):
        for batch in layout.feed(document[start : start + size]):
            if batch:
                collect(records, batch)
    for batch in layout.finish():
        if batch:
            collect(records, batch)
    assert layout.records == len(records) + rejections.count
    return Cut(records=records, rejections=rejections)


async def fetch(feed_source: Source, *, validators: Validators | None = None) -> tuple[Feed, dict[int, bytes]]:
    """Fetch a source once; return its feed and the raw bytes of its records by position."""
    records: dict[int, bytes] = {}
    async with open_feed(feed_source, validators=validators) as feed:
        async for batch in feed.batches():
            collect(records, batch)
    return feed, records
