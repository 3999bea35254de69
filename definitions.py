"""What a source is: where its records are, how they are asked for, what becomes of them, and when."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from errors import NotFound

FeedFormat = Literal["auto", "json", "ndjson"]
RunMode = Literal["snapshot", "incremental"]
"""Whether a run takes what it fetches for all records of the source, or for those that are new or changed."""

EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class BearerAuth:
    """A token in the header Authorization."""

    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class BasicAuth:
    """A user name and a password in the header Authorization."""

    username: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ApiKeyAuth:
    """A key in a header of its own."""

    header: str
    value: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class OAuth2Auth:
    """Client credentials (RFC 6749, section 4.4), exchanged for a token that is used until it expires."""

    token_url: str = field(repr=False)
    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    scope: str | None = None


Auth = BearerAuth | BasicAuth | ApiKeyAuth | OAuth2Auth


@dataclass(frozen=True, kw_only=True)
class LinkHeaderPaging:
    """The header Link names the next page with rel="next" (RFC 8288); the last page has none."""


@dataclass(frozen=True, kw_only=True)
class NextUrlPaging:
    """The body names the next page's URL; on the last page it is null, empty or absent."""

    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CursorPaging:
    """The body holds what a parameter for the next page carries; on the last page it is null, empty or absent."""

    path: tuple[str, ...]
    parameter: str


@dataclass(frozen=True, kw_only=True)
class PageNumberPaging:
    """Pages are counted; the last one is shorter than `size`, or empty where no size is known."""

    parameter: str = "page"
    first: int = 1
    size: int | None = None
    size_parameter: str | None = None


@dataclass(frozen=True, kw_only=True)
class OffsetPaging:
    """Pages begin at a number of records; the last one is shorter than `limit`."""

    limit: int
    parameter: str = "offset"
    limit_parameter: str = "limit"


Paging = LinkHeaderPaging | NextUrlPaging | CursorPaging | PageNumberPaging | OffsetPaging


@dataclass(frozen=True, kw_only=True)
class DeclaredTotal:
    """Where an answer says how many records there are in all: in a header, or under a path of its body."""

    header: str | None = None
    path: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How a source is asked for what is new since the last run."""

    field: str
    """The feed's field whose greatest value seen is where the next run begins."""
    parameter: str
    """The query parameter that carries it."""
    start: str | None = None
    """What the first run sends; None sends nothing, and so fetches everything."""


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How many requests may be made within how long."""

    requests: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class WeightLimit:
    """How a source counts what its callers ask for, and from where on it is left alone.

    Its answers tell in `header` how much was used within the present window; when that reaches `stop_share` of `limit`,
    nobody asks again until a whole window has passed.
    """

    header: str
    limit: int
    window_seconds: float = 60.0
    stop_share: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a source is synced by itself: at intervals, or as cron says in a time zone; exactly one of them."""

    mode: RunMode = "snapshot"
    every_seconds: float | None = None
    cron: str | None = None
    time_zone: str = "UTC"
    jitter_seconds: float = 0.0
    """Up to how much later than due a run may begin, at random, so that many do not begin at once."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named JSON feed: where it is, what identifies its records, where they go, how far it is trusted.

    `url` may carry credentials; never log it whole, log `sources.redact(url)`.
    """

    name: str
    url: str = field(repr=False)
    method: Literal["GET", "POST"] = "GET"
    body: str | None = field(default=None, repr=False)
    """What a POST sends: JSON, as text."""
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY, repr=False)
    params: Mapping[str, str] = field(default_factory=lambda: EMPTY, repr=False)
    """Added to the query of `url`."""
    auth: Auth | None = None
    paging: Paging | None = None
    max_pages: int = 10_000
    total: DeclaredTotal | None = None
    rate_limit: RateLimit | None = None
    weight: WeightLimit | None = None
    preset: str | None = None
    """The name in presets.py of what this source was made from, which may have routes of its own."""

    key: tuple[str, ...] = ("id",)
    """The key's fields as the mirror has them: those of `scope` first, then the feed's, after renaming."""
    table: str = "my_data"
    db_schema: str = "public"
    records: tuple[str, ...] = ()
    """Path to the array inside the document; empty means the top level."""
    format: FeedFormat = "auto"
    mode: Literal["snapshot", "incremental", "both"] = "snapshot"
    """With "both", a run is incremental unless it is told or scheduled to take a snapshot."""
    cursor: Cursor | None = None
    """Set unless the mode is "snapshot"."""
    scope: Mapping[str, str | int] = field(default_factory=lambda: EMPTY)
    """Fields of fixed value that every record gets; the source's rows are those that have them."""
    fields: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """The feed's fields that are mirrored, with the names that they get; empty means all, as they are."""
    other_fields: Literal["drop", "keep"] = "drop"
    """What becomes of fields that `fields` does not name, unless it is empty; what is kept keeps its name."""
    nested: Literal["jsonb", "flatten"] = "jsonb"
    """Whether an object inside a record is one value, or its members become fields, as in `address_city`."""
    types: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """Declared column types by field name, after renaming; they win over what would be inferred."""
    on_schema_change: Literal["evolve", "freeze"] = "evolve"
    nul_characters: Literal["reject", "strip"] = "reject"
    on_delete: Literal["soft", "hard", "ignore"] = "soft"
    """What becomes of a row whose record has vanished: a tombstone, nothing left of it, or nothing at all."""
    allow_empty: bool = False
    allow_private: bool = False
    """Whether addresses in private networks may be contacted even where `url` does not name one."""
    max_delete_rows: int = 10
    max_delete_share: float = 0.1
    """Deletions above both limits are held; the share is of the live rows, 0 to 1."""
    attempts: int = 3
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0
    total_timeout_seconds: float = 3600.0
    max_retry_after_seconds: float = 30.0
    max_body_bytes: int = 16 * 2**30
    """Cap on the decompressed body, or on all pages together."""
    max_record_bytes: int = 16 * 2**20
    purge_after_days: float | None = None
    """How old a tombstone may grow before a run that ended well removes it; None keeps all of them."""
    schedules: tuple[Schedule, ...] = ()

    @property
    def usual_mode(self) -> RunMode:
        """How the source is synced unless somebody says otherwise."""
        return "snapshot" if self.mode == "snapshot" else "incremental"

    @property
    def shape(self) -> str:
        """What scope, fields and nested make of a record, as a text; empty where it is mirrored as it is."""
        if not (self.scope or self.fields or self.nested == "flatten"):
            return ""
        return repr((sorted(self.scope.items()), sorted(self.fields.items()), self.other_fields, self.nested))

    @property
    def scope_id(self) -> str:
        """The scope in words, as in "region=eu"; empty for a source that has its table to itself."""
        return ",".join(f"{name}={value}" for name, value in sorted(self.scope.items()))


class Sources(Sequence[Source]):
    """All sources of a service; the first one is the default."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._by_name = {source.name: source for source in self._sources}

    def __getitem__(self, place: int) -> Source:  # type: ignore[override] # slices are never asked for
        return self._sources[place]

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    @property
    def default(self) -> Source:
        """The source that is meant where none is named."""
        return self._sources[0]

    def named(self, name: str | None) -> Source:
        """Return a source, the default one for None; raise NotFound with the names that are alike."""
        if name is None:
            return self.default
        found = self._by_name.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._by_name, n=3) or sorted(self._by_name)[:3]
            raise NotFound(f"There is no source {name[:63]!r}.", remedy=f"Did you mean {' or '.join(near)}?")
        return found

    def page(self, after: str | None, limit: int) -> tuple[tuple[Source, ...], bool]:
        """Return so many sources after the named one, from the first for None, and whether there are more."""
        begin = 0 if after is None else self._sources.index(self.named(after)) + 1
        return self._sources[begin : begin + limit], begin + limit < len(self._sources)

    def of_table(self, name: str) -> tuple[Source, ...]:
        """Return the sources whose mirror is a table, named with or without its schema; there may be none."""
        return tuple(source for source in self if name in (source.table, f"{source.db_schema}.{source.table}"))
