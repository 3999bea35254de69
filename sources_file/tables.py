"""The tables that stand inside an entry of the sources file, as pydantic reads them, and what each becomes."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from definitions import (
    ApiKeyAuth,
    Auth,
    BasicAuth,
    BearerAuth,
    Cursor,
    CursorPaging,
    DeclaredTotal,
    LinkHeaderPaging,
    NextUrlPaging,
    OAuth2Auth,
    OffsetPaging,
    PageNumberPaging,
    Paging,
    WeightLimit,
)
from sources_file.values import (
    check_header_name,
    check_header_value,
    check_text,
    check_url,
    check_user_name,
    seconds,
    split_path,
)


def _parameter(value: Any) -> str:
    value = moment(value)
    if not isinstance(value, str | int | float):
        raise ValueError("must be a text, a number, a time, true or false")  # noqa: TRY004 (a message for people)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def moment(value: Any) -> Any:
    """Return a date or time of TOML as text; anything else as it is."""
    return value.isoformat() if isinstance(value, datetime | date | time) else value


Text = Annotated[str, AfterValidator(check_text)]
Url = Annotated[str, AfterValidator(check_url)]
Path = Annotated[tuple[str, ...], BeforeValidator(split_path), Field(min_length=1)]
Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(gt=0)]
HeaderName = Annotated[str, AfterValidator(check_header_name)]
HeaderValue = Annotated[str, AfterValidator(check_header_value)]
Parameter = Annotated[str, PlainValidator(_parameter)]


class Table(BaseModel):
    """A table of the file; what it does not know it refuses."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Bearer(Table):
    """auth.type = "bearer"."""

    type: Literal["bearer"]
    token: HeaderValue = Field(min_length=1)

    def built(self) -> Auth:
        """Return it in the service's terms."""
        return BearerAuth(token=self.token)


class Basic(Table):
    """auth.type = "basic"."""

    type: Literal["basic"]
    username: Annotated[str, AfterValidator(check_user_name)]
    password: str

    def built(self) -> Auth:
        """Return it in the service's terms."""
        return BasicAuth(username=self.username, password=self.password)


class ApiKey(Table):
    """auth.type = "api_key"."""

    type: Literal["api_key"]
    header: HeaderName
    value: HeaderValue = Field(min_length=1)

    def built(self) -> Auth:
        """Return it in the service's terms."""
        return ApiKeyAuth(header=self.header, value=self.value)


class OAuth2(Table):
    """auth.type = "oauth2"."""

    type: Literal["oauth2"]
    token_url: Url
    client_id: Text
    client_secret: Text
    scope: Text | None = None

    def built(self) -> Auth:
        """Return it in the service's terms."""
        return OAuth2Auth(**self.model_dump(exclude={"type"}))


class Link(Table):
    """paging.type = "link"."""

    type: Literal["link"]

    def built(self) -> Paging:
        """Return it in the service's terms."""
        return LinkHeaderPaging()


class NextUrl(Table):
    """paging.type = "next_url"."""

    type: Literal["next_url"]
    path: Path

    def built(self) -> Paging:
        """Return it in the service's terms."""
        return NextUrlPaging(path=self.path)


class PageCursor(Table):
    """paging.type = "cursor"."""

    type: Literal["cursor"]
    path: Path
    parameter: Text

    def built(self) -> Paging:
        """Return it in the service's terms."""
        return CursorPaging(path=self.path, parameter=self.parameter)


class Page(Table):
    """paging.type = "page"."""

    type: Literal["page"]
    parameter: Text = PageNumberPaging.parameter
    first: Annotated[int, Field(ge=0)] = PageNumberPaging.first
    size: Positive | None = None
    size_parameter: Text | None = None

    def built(self) -> Paging:
        """Return it in the service's terms."""
        return PageNumberPaging(**self.model_dump(exclude={"type"}))


class Offset(Table):
    """paging.type = "offset"."""

    type: Literal["offset"]
    limit: Positive
    parameter: Text = OffsetPaging.parameter
    limit_parameter: Text = OffsetPaging.limit_parameter

    def built(self) -> Paging:
        """Return it in the service's terms."""
        return OffsetPaging(**self.model_dump(exclude={"type"}))


class Total(Table):
    """Where an answer says how many records there are in all."""

    header: HeaderName | None = None
    path: Path | None = None

    def built(self) -> DeclaredTotal:
        """Return it in the service's terms."""
        return DeclaredTotal(header=self.header, path=self.path or ())


class CursorTable(Table):
    """How the source is asked for what is new."""

    field: Text
    parameter: Text
    start: Parameter | None = None

    def built(self) -> Cursor:
        """Return it in the service's terms."""
        return Cursor(field=self.field, parameter=self.parameter, start=self.start)


class Weight(Table):
    """How the source counts what its callers ask for."""

    header: HeaderName
    limit: Positive
    window_seconds: Seconds = WeightLimit.window_seconds
    stop_share: Annotated[float, Field(gt=0, le=1)] = WeightLimit.stop_share

    def built(self) -> WeightLimit:
        """Return it in the service's terms."""
        return WeightLimit(**self.model_dump())
