"""One fetch of a source, from its URL to batches of records, over all its pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import xxhash

from definitions import Source
from errors import SourceError, SourceInvalid, SourceRefused, SourceTimeout, SourceTooLarge
from models import Problem, Progress, Validators
from sources.address import redact
from sources.asking import Ask, first_ask
from sources.batch import Batch, Rejections
from sources.fetch import Answer, read_validators, request
from sources.hiding import hidden
from sources.page import Page
from sources.paging import Route
from sources.totals import TotalCheck
from sources.wire import Wire

_PROGRESS_INTERVAL_SECONDS = 0.1
_TURN_SECONDS = 0.001

ProgressListener = Callable[[Progress], None]


class Feed:
    """The answer of a source: where it stands, and its records; all pages of it are one snapshot."""

    def __init__(
        self,
        source: Source,
        wire: Wire,
        *,
        validators: Validators | None,
        on_progress: ProgressListener | None,
        on_end: Callable[[], None],
    ) -> None:
        self.not_modified = False
        self.validators = Validators()
        """What makes the next fetch a conditional one; always empty for pages, since one says nothing of the others."""
        self.response_headers: Mapping[str, str] = MappingProxyType({})
        """Those of the answer that came last; names are found in any case."""
        self.body_bytes = 0
        self.digest = ""
        self.pages = 0
        """How many answers were begun."""
        self._source = source
        self._wire = wire
        self._sent = validators if _may_be_conditional(source) else None
        self._on_progress = on_progress
        self._on_end = on_end
        self._rejections = Rejections()
        self._body_digest = xxhash.xxh3_128()
        self._route = Route(source, first_ask(source))
        self._total = TotalCheck(source.total) if source.total else None
        self._page: Page | None = None
        self._before: Page | None = None
        self._may_be_none = False
        """Whether the page may turn out to be none, so that it is held back."""

    @property
    def records(self) -> int:
        """How many records were cut so far, rejected ones included."""
        return self._page.end if self._page else 0

    @property
    def _has_all(self) -> bool:
        """Whether as many records were cut as the source declares."""
        return self._total is not None and self._total.declared == self.records

    @property
    def problems(self) -> list[Problem]:
        """The first records that were rejected; see models.KEPT_PROBLEMS."""
        return self._rejections.problems

    @property
    def rejected(self) -> int:
        """How many records were rejected while cutting."""
        return self._rejections.count

    @property
    def rejected_keys(self) -> list[dict[str, Any]]:
        """The keys of all rejected records that could be identified."""
        return self._rejections.keys

    @property
    def unidentified(self) -> int:
        """How many rejected records could not be identified."""
        return self._rejections.unidentified

    async def begin(self) -> None:
        """Make the first request."""
        _check_paths(self._source)
        answer = await request(self._source, self._wire, self._route.first, validators=self._sent)
        self.not_modified = answer.response.status == HTTPStatus.NOT_MODIFIED
        if _may_be_conditional(self._source):
            self.validators = read_validators(answer.response) or (
                self._sent if self.not_modified and self._sent else Validators()
            )
        self._open(answer)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the records; ending without an error means that every page was there, complete and valid.

        Raises:
            SourceError: anything is wrong with an answer; what was yielded must not be used then.
        """
        if self.not_modified:
            return
        try:
            async with aclosing(self._batches()) as batches:
                async for batch in batches:
                    yield batch
        except SourceError as exc:
            if self.pages > 1:
                exc.cause = f"Page {self.pages}: {exc.cause}"
                exc.args = (exc.cause,)
            raise
        self.digest = self._body_digest.hexdigest()
        self._tell_progress()
        self._on_end()

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        page = self._page
        while page is not None:
            async with aclosing(self._whole(page)) as batches:
                async for batch in batches:
                    yield batch
            page = await self._turn(page) if page is self._page else None
        if self._total:
            self._total.finish(self.records)

    async def _whole(self, page: Page) -> AsyncGenerator[Batch, None]:
        """Yield the records of one page, once it is known to be one."""
        try:
            if self._may_be_none:
                for batch in await self._hold(page):
                    yield batch
                return
            async with aclosing(self._read(page)) as batches:
                async for batch in batches:
                    yield batch
        except SourceInvalid as exc:
            if self.pages > 1:
                self._route.advise(exc)
            raise

    async def _read(self, page: Page) -> AsyncGenerator[Batch, None]:
        """Yield the records of one page, and let others have their turns on the event loop."""
        turn_ends = time.monotonic() + _TURN_SECONDS
        progress_due = 0.0
        async with aclosing(page.chunks()) as chunks:
            async for chunk in chunks:
                for batch in page.cut(chunk):
                    if batch is not None:
                        yield batch
                    if (now := time.monotonic()) >= turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + _TURN_SECONDS
                    if now >= progress_due:
                        self._tell_progress()
                        progress_due = now + _PROGRESS_INTERVAL_SECONDS

    async def _hold(self, page: Page) -> list[Batch]:
        """Read a page that may be none, and only then hand on its records; go back to the page before if it is none."""
        has_all = self._has_all
        try:
            held = [batch async for batch in self._read(page)]
            is_page = page.records > 0 and not self._route.repeats(page)
        except SourceInvalid as exc:
            if not self._route.ends_with(exc, has_all=has_all):
                raise
            is_page = False
        if is_page:
            self._rejections.absorb(page.rejections)
            return held
        self._page = self._before
        self.pages -= 1
        return []

    async def _turn(self, page: Page) -> Page | None:
        """Return the page after one that was read to its end, None after the last."""
        if self._total and self._source.total:
            path = self._source.total.path
            self._total.note(page.headers, page.find(path) if path else None)
        ask = self._route.following(page)
        answer = await self._ask_on(ask) if ask else None
        if answer is None:
            return None
        if page.has_lines:
            self._source = replace(self._source, format="ndjson")  # a page of one line would not show it
        return self._open(answer)

    async def _ask_on(self, ask: Ask) -> Answer | None:
        """Return the next page's answer, None where it turns out that there is none."""
        self.pages += 1
        try:
            return await request(self._source, self._wire, ask)
        except (SourceRefused, SourceInvalid) as exc:
            if not self._route.ends_with(exc, has_all=self._has_all):
                self._route.advise(exc)
                raise
        self.pages -= 1
        return None

    def _open(self, answer: Answer) -> Page:
        self.pages = max(self.pages, 1)
        self.response_headers = answer.response.headers
        self._may_be_none = self._route.may_be_over(has_all=self._has_all)
        page = Page(
            self._source,
            answer,
            position=self.records,
            rejections=Rejections() if self._may_be_none else self._rejections,
            account=self._account,
        )
        self._before, self._page = self._page, page
        return page

    def _account(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self.body_bytes > self._source.max_body_bytes:
            raise SourceTooLarge(
                f"The answer is larger than MAX_BODY_BYTES, or max_body_bytes of the source "
                f"({self._source.max_body_bytes:,})."
            )
        self._body_digest.update(data)

    def _tell_progress(self) -> None:
        if self._on_progress:
            total = None if self._source.paging or not self._page else self._page.length
            self._on_progress(Progress(body_bytes=self.body_bytes, records=self.records, total_bytes=total))


def _may_be_conditional(source: Source) -> bool:
    """Tell whether a 304 would speak of the whole snapshot: not of one page, nor of a POST (RFC 9110, section 13)."""
    return source.paging is None and source.method == "GET"


def _check_paths(source: Source) -> None:
    """Raise SourceInvalid where something is to be read beside an array that has nothing beside it."""
    path = getattr(source.paging, "path", ()) or (source.total.path if source.total else ())
    if path and not source.records:
        raise SourceInvalid(
            f"Nothing can stand under {'.'.join(path)} where the answer is the array of records itself.",
            remedy="Nothing was fetched. Name the array inside the answer in records of the source, or take paging and "
            "total from headers.",
        )


@asynccontextmanager
async def open_feed(
    source: Source, *, validators: Validators | None = None, on_progress: ProgressListener | None = None
) -> AsyncIterator[Feed]:
    """Yield the answer of one attempt at fetching `source`; `validators` make it a conditional one.

    `source.total_timeout_seconds` runs from here until the last batch was taken, over all pages. `on_progress` is
    called at most ten times a second, and once at the end. Pages and POST are never conditional.

    Raises:
        SourceError: the source cannot be reached, refuses, answers too slowly or something else than was asked for.
    """
    seconds = source.total_timeout_seconds
    try:
        async with asyncio.timeout(seconds) as deadline, Wire(source) as wire:
            with hidden(wire.secrets):
                feed = Feed(
                    source,
                    wire,
                    validators=validators,
                    on_progress=on_progress,
                    on_end=lambda: deadline.reschedule(None),
                )
                await feed.begin()
                yield feed
    except TimeoutError as exc:
        if not deadline.expired():
            raise
        raise SourceTimeout(
            f"{redact(source.url)} took longer than {seconds:g} s in all "
            "(SOURCE_TOTAL_TIMEOUT_SECONDS, or total_timeout of the source)."
        ) from exc
