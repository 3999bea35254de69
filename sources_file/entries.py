"""An entry of the sources file as pydantic reads it: what may stand in it, and the source that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from columns import declared_type
from definitions import (
    FeedFormat,
    RateLimit,
    RunMode,
    Schedule,
    Source,
)
from errors import SettingError
from sources_file.tables import (
    ApiKey,
    Basic,
    Bearer,
    CursorTable,
    HeaderName,
    HeaderValue,
    Link,
    NextUrl,
    OAuth2,
    Offset,
    Page,
    PageCursor,
    Parameter,
    Positive,
    Seconds,
    Table,
    Text,
    Total,
    Url,
    Weight,
    moment,
)
from sources_file.values import (
    check_cron,
    check_schema,
    check_table,
    check_text,
    check_time_zone,
    days,
    rate_limit,
    seconds,
    size,
    split_path,
)

LONGEST_INTERVAL_SECONDS = 366 * 86_400
KEEP_OTHERS = "*"
"""Stands in `fields` for all fields that it does not name."""


def _tuple_of_names(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) != len(names):
        raise ValueError("must be one name, or an array of different ones")
    return names


def _by_name(value: Any) -> Any:
    """Take an array of fields for a table in which each keeps its name."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
        raise ValueError("must be an array of different field names, or a table of them with their new names")
    return {name: name for name in value}


def _json_text(value: Any) -> Any:
    """Return what a POST sends as text: a table or an array is written as JSON, a text has to be JSON already."""
    if isinstance(value, str):
        return value  # looked into before, with the variables in it
    if not isinstance(value, dict | list):
        raise ValueError("must be a table, an array, or a text with JSON in it")  # noqa: TRY004 (a message for people)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=moment)


def _known_type(name: str) -> str:
    try:
        declared_type(name)
    except SettingError as exc:
        raise ValueError(f"is a type that is not known. {exc.remedy.rstrip('.')}") from None
    return name


def _scope_value(value: Any) -> Any:
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a text or a whole number")  # noqa: TRY004 (a message for people)
    return value


SecondsOrNone = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[float, BeforeValidator(seconds), Field(ge=1, le=LONGEST_INTERVAL_SECONDS)]
Bytes = Annotated[int, BeforeValidator(size), Field(gt=0)]
Rate = Annotated[RateLimit, PlainValidator(rate_limit)]
Cron = Annotated[str, AfterValidator(check_cron)]
ScopeValue = Annotated[str | int, PlainValidator(_scope_value)]


class Entry(Table):
    """A table [sources.NAME], together with what its preset and [defaults] add to it."""

    preset: str | None = None
    url: Url
    method: Literal["GET", "POST"] = "GET"
    body: Annotated[str, BeforeValidator(_json_text)] | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    params: dict[Text, Parameter] = Field(default_factory=dict)
    auth: Annotated[Bearer | Basic | ApiKey | OAuth2, Field(discriminator="type")] | None = None
    paging: Annotated[Link | NextUrl | PageCursor | Page | Offset, Field(discriminator="type")] | None = None
    max_pages: Positive | None = None
    total: Total | None = None
    rate_limit: Rate | None = None
    weight: Weight | None = None

    key: Annotated[tuple[Text, ...], BeforeValidator(_tuple_of_names), AfterValidator(_different)] = ("id",)
    table: Annotated[str, AfterValidator(check_table)] | None = None
    db_schema: Annotated[str, AfterValidator(check_schema)] | None = None
    records: Annotated[tuple[str, ...], BeforeValidator(split_path)] | None = None
    format: FeedFormat | None = None
    mode: Literal["snapshot", "incremental", "both"] = "snapshot"
    cursor: CursorTable | None = None
    scope: dict[Text, ScopeValue] = Field(default_factory=dict)
    fields: Annotated[dict[Text, Text], BeforeValidator(_by_name)] = Field(default_factory=dict)
    nested: Literal["jsonb", "flatten"] | None = None
    types: dict[Text, Annotated[str, AfterValidator(_known_type)]] = Field(default_factory=dict)
    schema_: Literal["evolve", "freeze"] | None = Field(None, alias="schema")
    on_delete: Literal["soft", "hard", "ignore"] | None = None
    nul_characters: Literal["reject", "strip"] | None = None
    allow_empty: bool | None = None
    allow_private: bool | None = None
    max_delete_rows: Annotated[int, Field(ge=0)] | None = None
    max_delete_share: Annotated[float, Field(ge=0, le=1)] | None = None
    purge_after: Annotated[float, BeforeValidator(days), Field(gt=0, le=36_500)] | None = None

    attempts: Positive | None = None
    connect_timeout: Seconds | None = None
    read_timeout: Seconds | None = None
    total_timeout: Seconds | None = None
    max_retry_after: SecondsOrNone | None = None
    max_body_bytes: Bytes | None = None
    max_record_bytes: Bytes | None = None

    every: Interval | None = None
    cron: Cron | None = None
    snapshot_every: Interval | None = None
    snapshot_cron: Cron | None = None
    time_zone: Annotated[str, AfterValidator(check_time_zone)] = "UTC"
    jitter: SecondsOrNone = 0.0

    def built(self, name: str, *, otherwise: Source) -> Source:
        """Return the source; what the entry does not set stays as `otherwise` has it."""
        given: dict[str, Any] = {
            there: value for here, there in TAKEN.items() if (value := getattr(self, here)) is not None
        }
        parts = {
            "auth": self.auth,
            "paging": self.paging,
            "total": self.total,
            "cursor": self.cursor,
            "weight": self.weight,
        }
        given |= {part: table.built() for part, table in parts.items() if table is not None}
        return replace(
            otherwise,
            name=name,
            table=self.table or name.replace("-", "_"),
            headers=MappingProxyType(dict(self.headers)),
            params=MappingProxyType(dict(self.params)),
            key=(*sorted(self.scope), *(self.name_in_mirror(field) or field for field in self.key)),
            scope=MappingProxyType(dict(self.scope)),
            fields=MappingProxyType(self.renamed),
            other_fields="keep" if KEEP_OTHERS in self.fields else "drop",
            types=MappingProxyType(dict(self.types)),
            schedules=self.schedules(),
            **given,
        )

    @property
    def renamed(self) -> dict[str, str]:
        """The feed's fields that are named, with the names that they get."""
        return {field: new for field, new in self.fields.items() if field != KEEP_OTHERS}

    @property
    def keeps_others(self) -> bool:
        """Whether fields that are not named are mirrored."""
        return not self.fields or KEEP_OTHERS in self.fields

    def name_in_mirror(self, field: str) -> str | None:
        """Return the name that a field of the feed gets, None if it is not mirrored.

        With nested = "flatten" a field may be a member of an object, as address_city is: it goes with that object.
        """
        if field in self.renamed:
            return self.renamed[field]
        if self.nested == "flatten":
            for end in (place for place in range(len(field) - 1, 0, -1) if field[place] == "_"):
                if field[:end] in self.renamed:
                    return self.renamed[field[:end]] + field[end:]
        return field if self.keeps_others else None

    def schedules(self) -> tuple[Schedule, ...]:
        """Return when the source is synced by itself."""
        wanted: tuple[tuple[RunMode, float | None, str | None], ...] = (
            ("snapshot" if self.mode == "snapshot" else "incremental", self.every, self.cron),
            ("snapshot", self.snapshot_every, self.snapshot_cron),
        )
        return tuple(
            Schedule(mode=mode, every_seconds=every, cron=cron, time_zone=self.time_zone, jitter_seconds=self.jitter)
            for mode, every, cron in wanted
            if every is not None or cron is not None
        )


TAKEN = MappingProxyType(
    {
        **{
            name: name
            for name in (
                *("preset", "url", "method", "body", "max_pages", "rate_limit"),
                *("db_schema", "records", "format", "mode"),
                *("nested", "on_delete", "nul_characters", "allow_empty", "allow_private"),
                *("max_delete_rows", "max_delete_share", "attempts", "max_body_bytes", "max_record_bytes"),
            )
        },
        "schema_": "on_schema_change",
        "purge_after": "purge_after_days",
        "connect_timeout": "connect_timeout_seconds",
        "read_timeout": "read_timeout_seconds",
        "total_timeout": "total_timeout_seconds",
        "max_retry_after": "max_retry_after_seconds",
    }
)
"""What an entry sets as it is, and what a source calls it."""

TABLES: Mapping[tuple[str, ...], type[Table]] = MappingProxyType(
    {
        (): Entry,
        ("auth", "bearer"): Bearer,
        ("auth", "basic"): Basic,
        ("auth", "api_key"): ApiKey,
        ("auth", "oauth2"): OAuth2,
        ("paging", "link"): Link,
        ("paging", "next_url"): NextUrl,
        ("paging", "cursor"): PageCursor,
        ("paging", "page"): Page,
        ("paging", "offset"): Offset,
        ("total",): Total,
        ("cursor",): CursorTable,
        ("weight",): Weight,
    }
)
"""The tables by where pydantic says that they are."""
