"""Propose how to mirror a feed: pure functions over a sample of it, which say what they rely on.

Only what shows in the sample is proposed, and whatever could be wrong about it is said. Types are never proposed:
those that are inferred hold every value exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from columns import JSONB, TEXT, TIMESTAMPTZ, infer, join, key_type
from definitions import (
    CursorPaging,
    DeclaredTotal,
    LinkHeaderPaging,
    NextUrlPaging,
    OffsetPaging,
    PageNumberPaging,
    Paging,
)
from sources_file.samples import Path, Sample

KEY_NAMES = ("id", "uuid", "guid", "key", "code", "sku", "symbol", "name", "slug")
"""Names that keys usually have, the likeliest first."""
KEY_ENDING = re.compile(r"(?:_|-)(?:id|uuid|key|code|sku|no|number)$|(?<=[a-z])(?:Id|ID|Uuid|Key|Code|Sku|No|Number)$")
UNUSUAL = len(KEY_NAMES) + 1
"""The rank of names that say nothing; see `_rank`."""
MAX_KEY_FIELDS = 12
"""How many fields are tried in pairs."""
DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
FEW_RECORDS = 20
"""Below this many records, a field may well have no value twice by chance."""

NEXT_URL = re.compile(r"next(?:_?(?:page_?)?(?:url|uri|link|href))?|next_?page", re.IGNORECASE)
NEXT_CURSOR = re.compile(
    r"(?:next_?|end_?)?(?:page_?)?cursor|next_?(?:page_?)?token|after|continuation(?:_?token)?",
    re.IGNORECASE,
)
CURSOR_PARAMETERS: Mapping[str, str] = {
    "nextpagetoken": "pageToken",
    "next_page_token": "page_token",
    "after": "after",
    "endcursor": "after",
    "end_cursor": "after",
}
"""Parameters that usually carry what stands in the body under a name, in small letters; others are called `cursor`."""
PAGE_PARAMETERS = ("page", "page_number", "pageNumber", "pageno", "p")
OFFSET_PARAMETERS = ("offset", "skip", "start")
SIZE_PARAMETERS = ("per_page", "perPage", "page_size", "pageSize", "limit", "size", "count", "top")

TOTAL_HEADERS = ("X-Total-Count", "X-Total", "Total-Count")
TOTAL_NAMES = frozenset({"total", "totalcount", "totalresults", "totalrecords", "totalitems", "totalelements", "count"})

MOVING_NAME = re.compile(
    r"(?:last_?)?(?:updated|modified|changed)(?:_?(?:at|on|date|time))?|modification_?date", re.IGNORECASE
)
MOVING_TYPES = frozenset({TIMESTAMPTZ, TEXT, "bigint"})


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field as it shows in the sample."""

    name: str
    sql_type: str | None
    """The type that its column would get; None if it is always null."""
    present: int
    """In how many records it has a value."""
    distinct: int
    """How many different values it has, as far as they could identify records."""
    may_be_key: bool
    """Whether it is a text or a whole number, of one kind, in every record."""
    is_object: bool
    holds_decimals: bool
    """Whether it is a text in which decimals are written, as prices often are."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """The fields that identify a record, and why."""

    fields: tuple[str, ...]
    reason: str
    is_certain: bool


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """How a feed could be mirrored."""

    sample: Sample
    fields: tuple[Field, ...]
    key: Key | None
    paging: Paging | None
    total: DeclaredTotal | None
    cursor: str | None
    """A field that seems to tell when a record was last changed."""
    warnings: tuple[str, ...]


def propose(sample: Sample, *, url: str, headers: Mapping[str, str], next_link: str | None) -> Proposal:
    """Return how a feed could be mirrored, from what was seen of it."""
    fields = tuple(_fields(sample.records))
    key = propose_key(fields, sample.records)
    paging = LinkHeaderPaging() if next_link else propose_paging(sample, url)
    total = propose_total(sample, headers, is_paged=paging is not None)
    return Proposal(
        sample=sample,
        fields=fields,
        key=key,
        paging=paging,
        total=total,
        cursor=next((each.name for each in fields if _tells_changes(each)), None),
        warnings=tuple(_warnings(sample, key, paging, headers)),
    )


def _fields(records: Sequence[Mapping[str, Any]]) -> Iterator[Field]:
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    for name, found in values.items():
        present = [value for value in found if value is not None]
        sql_type = None
        for value in present:
            sql_type = join(sql_type, infer(value))
        kinds = {key_type(value) == TEXT if key_type(value) else None for value in present}
        texts = [value for value in present if isinstance(value, str)]
        yield Field(
            name=name,
            sql_type=sql_type,
            present=len(present),
            distinct=len(set(present)) if None not in kinds else 0,
            may_be_key=len(kinds) == 1 and None not in kinds and len(present) == len(records),
            is_object=sql_type == JSONB and any(isinstance(value, dict) for value in present),
            holds_decimals=bool(texts) and len(texts) == len(present) and all(map(DECIMAL.fullmatch, texts)),
        )


def propose_key(fields: Sequence[Field], records: Sequence[Mapping[str, Any]]) -> Key | None:
    """Return the likeliest key: one field without equal values, else two together, else None."""
    count = len(records)
    candidates = sorted((each for each in fields if each.may_be_key and not each.holds_decimals), key=_rank)
    unique = [each for each in candidates if each.distinct == count]
    if unique and unique[0].sql_type != TIMESTAMPTZ:
        return _single(unique[0], count)
    for one, other in sorted(combinations(candidates[:MAX_KEY_FIELDS], 2), key=lambda pair: sum(map(_rank, pair))):
        if one.distinct * other.distinct >= count == len({(each[one.name], each[other.name]) for each in records}):
            names = (one.name, other.name)
            reason = (
                f"no field alone identifies a record, but {' and '.join(names)} together do in all {count:,} of them"
            )
            return Key(fields=names, reason=reason, is_certain=False)
    return _single(unique[0], count) if unique else None


def _single(field: Field, count: int) -> Key:
    reason = f"{field.name} has a value of its own in each of the {count:,} records"
    return Key(fields=(field.name,), reason=reason, is_certain=_rank(field) < UNUSUAL and count >= FEW_RECORDS)


def _rank(candidate: Field) -> int:
    """Return how usual a field's name is for a key; the lower, the better."""
    name = candidate.name.lower()
    if name in KEY_NAMES:
        return KEY_NAMES.index(name)
    if KEY_ENDING.search(candidate.name):
        return len(KEY_NAMES)
    return UNUSUAL + (2 if candidate.sql_type == TIMESTAMPTZ else 0 if candidate.sql_type == TEXT else 1)


def propose_paging(sample: Sample, url: str) -> Paging | None:
    """Return how the next page is asked for, as the body or the parameters of the URL tell."""
    for path, value in _scalars(sample):
        if not isinstance(value, str) or not value:
            continue
        is_link = NEXT_URL.fullmatch(path[-1]) or (path[-1] in ("href", "url") and path[-2:-1] == ("next",))
        if is_link and value.startswith(("http://", "https://", "/", "?")):
            return NextUrlPaging(path=path)
        if (NEXT_CURSOR.fullmatch(path[-1]) or NEXT_URL.fullmatch(path[-1])) and not value.startswith(("http", "/")):
            return CursorPaging(path=path, parameter=CURSOR_PARAMETERS.get(path[-1].lower(), "cursor"))
    return _counted(dict(parse_qsl(urlsplit(url).query)))


def _counted(parameters: Mapping[str, str]) -> Paging | None:
    numbers = {name: int(value) for name, value in parameters.items() if value.isdecimal()}
    size = next((name for name in SIZE_PARAMETERS if numbers.get(name)), None)
    offset = next((name for name in OFFSET_PARAMETERS if name in numbers), None)
    page = next((name for name in PAGE_PARAMETERS if name in numbers), None)
    if page is not None:
        return PageNumberPaging(
            parameter=page,
            first=min(numbers[page], 1),
            size=numbers[size] if size else None,
            size_parameter=size,
        )
    if offset is not None and size is not None:
        return OffsetPaging(limit=numbers[size], parameter=offset, limit_parameter=size)
    return None


def propose_total(sample: Sample, headers: Mapping[str, str], *, is_paged: bool) -> DeclaredTotal | None:
    """Return where the source says how many records there are, if what it says there agrees with what was seen."""
    seen = len(sample.records) + sample.others

    def agrees(number: int) -> bool:
        # Of a page that is followed by another, the same number may as well be how many there are on it.
        return number > seen if is_paged else sample.is_whole and number == seen

    for header in TOTAL_HEADERS:
        if headers.get(header, "").isdecimal() and agrees(int(headers[header])):
            return DeclaredTotal(header=header)
    for path, value in _scalars(sample):
        if _plain(path[-1]) in TOTAL_NAMES and type(value) is int and agrees(value):
            return DeclaredTotal(path=path)
    return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _tells_total(name: str) -> bool:
    plain = _plain(name)
    return plain in TOTAL_NAMES or (plain.startswith("total") and "page" not in plain)


def _scalars(sample: Sample) -> Iterator[tuple[Path, Any]]:
    """Yield what stands beside the records, with its path, as far as a path can lead there."""
    pending: list[tuple[Path, Any]] = [((), sample.around)]
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, dict):
            pending += [((*path, name), inner) for name, inner in value.items() if name and "." not in name]
        elif path and not isinstance(value, list):
            yield path, value


def _tells_changes(candidate: Field) -> bool:
    return candidate.sql_type in MOVING_TYPES and MOVING_NAME.fullmatch(candidate.name) is not None


def _warnings(sample: Sample, key: Key | None, paging: Paging | None, headers: Mapping[str, str]) -> Iterator[str]:
    seen = len(sample.records)
    if key is None:
        yield "No field, and no two together, identify a record: name the key in the entry before you sync."
    elif seen < FEW_RECORDS:
        yield f"Only {seen} records were seen, so a field may be unique among them by chance: check the key."
    elif not key.is_certain:
        yield "The key is a guess: check that it identifies a record for good."
    if isinstance(paging, CursorPaging):
        yield (
            f"That {'.'.join(paging.path)} goes into the parameter {paging.parameter} is a guess. If a sync says that"
            " it got the same page again, the source calls it otherwise."
        )
    if not sample.is_whole:
        yield f"The answer is large, so only its first {seen:,} records were looked at, and nothing behind them."
    if sample.others:
        yield f"{sample.others:,} elements of the array are no objects; they will be rejected."
    if paging is None and sample.is_whole:
        if any(NEXT_URL.fullmatch(path[-1]) and value is None for path, value in _scalars(sample)):
            yield "The answer names a next page, but has none here: if there may be more, set `paging`."
        told = [int(value) for name in TOTAL_HEADERS if (value := headers.get(name, "")).isdecimal()]
        told += [value for path, value in _scalars(sample) if type(value) is int and _tells_total(path[-1])]
        if max(told, default=0) > seen + sample.others:
            yield (
                f"The source says that there are {max(told):,} records, but this answer has {seen:,}, and nothing tells"
                " how the next page is asked for: set `paging`, or rows of the other pages will never be seen."
            )
