"""From one page of a source to the next, and the proof that no page is asked for twice or left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol

import msgspec
import xxhash
from multidict import CIMultiDictProxy

from definitions import CursorPaging, LinkHeaderPaging, NextUrlPaging, OffsetPaging, PageNumberPaging, Source
from errors import SourceInvalid, SourceRefused, SourceTooLarge
from sources.asking import Ask, linked, with_params
from sources.frame import describe
from sources.links import next_link
from sources.verdict import excerpt

_BEYOND_THE_LAST = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
     HTTPStatus.UNPROCESSABLE_ENTITY}
)  # fmt: skip
_ENDS = (None, b"null", b"false", b'""')
"""What stands in the body of a last page where others name the next one."""

_ADVICE = (
    "Nothing was written. If the page before was the last one, set total of the source: once as many records are there "
    "as it declares, there need be no further page. Otherwise look at what the source answers to this one."
)

_text_decoder = msgspec.json.Decoder(str)


class PageRead(Protocol):
    """What is known of a page that was read to its end."""

    @property
    def ask(self) -> Ask:
        """The request that was answered, after all redirects."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The answer's headers."""

    @property
    def records(self) -> int:
        """How many records it held, rejected ones included."""

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """Of its body and of its records: two pages that share one of them are the same."""

    def find(self, path: tuple[str, ...]) -> bytes | None:
        """Return the JSON under a path beside the records."""


class Order(Protocol):
    """One way to get from page to page."""

    def first(self, ask: Ask) -> Ask:
        """Return the request for the first page."""

    def following(self, first: Ask, page: PageRead) -> Ask | None:
        """Return the request for the page after this one, None after the last."""


class ByLink:
    """The header Link names the next page."""

    def first(self, ask: Ask) -> Ask:
        return ask

    def following(self, _: Ask, page: PageRead) -> Ask | None:
        link = next_link(page.headers.getall("Link", []))
        return None if link is None else linked(page.ask, link)


@dataclass(frozen=True, kw_only=True)
class ByNextUrl:
    """The body names the next page."""

    path: tuple[str, ...]

    def first(self, ask: Ask) -> Ask:
        return ask

    def following(self, _: Ask, page: PageRead) -> Ask | None:
        value = page.find(self.path)
        if value in _ENDS:
            return None
        return linked(page.ask, _text(value or b"", self.path, numbers=False))


@dataclass(frozen=True, kw_only=True)
class ByCursor:
    """The body holds what a parameter for the next page carries."""

    path: tuple[str, ...]
    parameter: str

    def first(self, ask: Ask) -> Ask:
        return ask

    def following(self, first: Ask, page: PageRead) -> Ask | None:
        value = page.find(self.path)
        if value in _ENDS:
            return None
        cursor = _text(value or b"", self.path, numbers=True)
        return replace(first, url=with_params(first.url, {self.parameter: cursor}))


class Counted:
    """Pages, or the records before them, are counted.

    The last page is shorter than the others. A first one that is shorter than asked for proves nothing: the source may
    serve smaller pages than it was asked for. So the next one is asked for too. If that is empty, refused as one that
    does not exist, or the first one again, the first one was all; otherwise pages as long as the first are taken for
    full ones.
    """

    def __init__(self, paging: PageNumberPaging | OffsetPaging) -> None:
        self._paging = paging
        self._size = paging.limit if isinstance(paging, OffsetPaging) else paging.size
        self._full: int | None = None
        """How many records a page has that may be followed by another one."""
        self._pages = 0
        self._records = 0

    @property
    def may_be_over(self) -> bool:
        """Whether the only page so far was short, so that a refusal of the next one agrees with it."""
        return self._pages == 1 and self._full is not None and self._full < (self._size or 0)

    def first(self, ask: Ask) -> Ask:
        return self._at(ask)

    def following(self, first: Ask, page: PageRead) -> Ask | None:
        self._pages += 1
        self._records += page.records
        if self._pages == 1 and self._size is not None:
            self._full = min(self._size, page.records)
        if not page.records or page.records < (self._full or 0):
            return None
        return self._at(first)

    def _at(self, ask: Ask) -> Ask:
        paging = self._paging
        if isinstance(paging, OffsetPaging):
            params = {paging.parameter: str(self._records), paging.limit_parameter: str(paging.limit)}
        else:
            params = {paging.parameter: str(paging.first + self._pages)}
            if paging.size is not None and paging.size_parameter:
                params[paging.size_parameter] = str(paging.size)
        return replace(ask, url=with_params(ask.url, params))


def _order(source: Source) -> Order | None:
    match source.paging:
        case LinkHeaderPaging():
            return ByLink()
        case NextUrlPaging(path=path):
            return ByNextUrl(path=path)
        case CursorPaging(path=path, parameter=parameter):
            return ByCursor(path=path, parameter=parameter)
        case PageNumberPaging() | OffsetPaging() as counted:
            return Counted(counted)
    return None


class Route:
    """The way through the pages of one fetch."""

    def __init__(self, source: Source, ask: Ask) -> None:
        self._source = source
        self._order = _order(source)
        self._first = self._order.first(ask) if self._order else ask
        self._asked = {_digest(self._first)}
        self._previous: tuple[bytes, bytes] | None = None

    @property
    def first(self) -> Ask:
        """The request for the first page, or for all there is."""
        return self._first

    def may_be_over(self, *, has_all: bool) -> bool:
        """Tell whether the next page may turn out to be none, which then is the end; see `Counted`.

        `has_all` says that as many records came as the source declares.
        """
        return isinstance(self._order, Counted) and (has_all or self._order.may_be_over)

    def ends_with(self, error: SourceRefused | SourceInvalid, *, has_all: bool) -> bool:
        """Tell whether what the next page was answered with means that there is none.

        An answer that cannot be read may be a page gone wrong. Where no total was reached it proves nothing.
        """
        if isinstance(error, SourceInvalid):
            return has_all and self.may_be_over(has_all=True)
        return error.status in _BEYOND_THE_LAST and self.may_be_over(has_all=has_all)

    def advise(self, error: SourceRefused | SourceInvalid) -> None:
        """Say with an error what to do if it only means that there are no more pages."""
        if isinstance(self._order, Counted) and (isinstance(error, SourceInvalid) or error.status in _BEYOND_THE_LAST):
            error.remedy = _ADVICE

    def repeats(self, page: PageRead) -> bool:
        """Tell whether a page is the one before it."""
        return bool(page.records and self._previous and any(map(bytes.__eq__, page.digests, self._previous)))

    def following(self, page: PageRead) -> Ask | None:
        """Return the request for the page after `page`, None after the last.

        Raises:
            SourceInvalid: the source leads round in a circle, or answers with the same page again.
            SourceTooLarge: there are more than `max_pages`.
        """
        if self._order is None:
            return None
        self._check_progress(page)
        ask = self._order.following(self._first, page)
        if ask is None:
            return None
        if len(self._asked) >= self._source.max_pages:
            raise SourceTooLarge(
                f"The source has more pages than max_pages ({self._source.max_pages:,}) of the source."
            )
        if (digest := _digest(ask)) in self._asked:
            raise SourceInvalid(
                "It names a page as the next one that was read already, so its pages have no end.",
                remedy="Nothing was written. Check paging of the source: the path or parameter that leads on.",
            )
        self._asked.add(digest)
        return ask

    def _check_progress(self, page: PageRead) -> None:
        if self.repeats(page):
            raise SourceInvalid(
                "It is the same page as the one before.",
                remedy="Nothing was written. Check paging of the source: it may not know the parameter that asks for "
                "the next page.",
            )
        self._previous = page.digests if page.records else None


def _digest(ask: Ask) -> bytes:
    """Return 16 bytes that stand for a request: those of ten thousand pages take little room."""
    return xxhash.xxh3_128_digest(str(ask.url).encode())


def _text(value: bytes, path: tuple[str, ...], *, numbers: bool) -> str:
    """Return what a body holds for the next page; integers as they are written, whatever their length."""
    if numbers and value.removeprefix(b"-").isdigit():
        return value.decode()
    try:
        text = _text_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = "\ufffd"
    if "\ufffd" in text:
        raise SourceInvalid(
            f"What stands under {describe(path)} leads to no next page: {excerpt(value)}",
            remedy=f"Nothing was written. It has to be text{' or an integer' if numbers else ''}; check paging of the "
            "source.",
        )
    return text
