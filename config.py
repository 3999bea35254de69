"""The settings: read once at the start from the environment and `.env`, checked together, then handed on as values."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from definitions import EMPTY, FeedFormat, Source, Sources
from errors import SettingError
from sources_file.reading import USUAL_NAME, SourcesFile, read_sources_file
from sources_file.values import check_schema, check_table, check_url, secrets_in_url, split_path

SAMPLE_PATH = "/sample/catalogue"
"""Where the service serves its own sample feed, which is the source when no other is set."""

ENV_FILE = ".env"

DRIVER = "postgresql+asyncpg"
POSTGRES_SCHEMES = frozenset({"postgresql", "postgres", DRIVER})
SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
PASSED_ON_TO_ASYNCPG = frozenset({"host", "port", "ssl", "target_session_attrs"})
LIBPQ_VARIABLES = MappingProxyType(
    {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}
)
"""Options that asyncpg takes from the environment alone."""


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _split_types(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A comma inside brackets belongs to the type, as in numeric(10,2).
    pairs = [part.partition("=") for part in re.split(r",(?![^(]*\))", value)]
    if not all(name.strip() and declared.strip() for name, _, declared in pairs):
        raise ValueError("must look like price=numeric,code=text")
    return MappingProxyType({name.strip(): declared.strip() for name, _, declared in pairs})


def _check_key(key: tuple[str, ...]) -> tuple[str, ...]:
    if not all(key) or len(set(key)) != len(key):
        raise ValueError("must be one field name, or several different ones separated by commas")
    return key


def _check_source_url(url: SecretStr) -> SecretStr:
    check_url(url.get_secret_value())
    return url


def _check_database_url(url: SecretStr) -> SecretStr:
    translate_database_url(url.get_secret_value())
    return url


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def translate_database_url(text: str) -> str:
    """Return a libpq-style URL as SQLAlchemy and asyncpg want it; ValueError names what they cannot do."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("must look like postgresql://user:password@host:5432/name") from None
    if url.drivername not in POSTGRES_SCHEMES:
        raise ValueError("must begin with postgresql:// or postgres://")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    if "ssl" in query and query["ssl"] not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(sorted(SSL_MODES))}")
    for option in sorted(query.keys() - PASSED_ON_TO_ASYNCPG):
        variable = LIBPQ_VARIABLES.get(option)
        instead = f"set the environment variable {variable} instead" if variable else "leave it out"
        raise ValueError(f"the option {option[:63]!r} cannot be given in the URL; {instead}")
    return url.set(drivername=DRIVER, query=query).render_as_string(hide_password=False)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Settings(BaseSettings):
    """Everything that can be set; names are case-insensitive, an empty value counts as not given."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        case_sensitive=False,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    sources_file: Path | None = None
    source_url: Annotated[SecretStr, AfterValidator(_check_source_url)] | None = None
    source_key: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_key)] = ("id",)
    source_records: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(split_path),
    ] = ()
    source_format: Annotated[FeedFormat, BeforeValidator(_lower)] = "auto"
    source_types: Annotated[dict[str, str], NoDecode, BeforeValidator(_split_types)] = Field(default_factory=dict)
    source_schema: Annotated[Literal["evolve", "freeze"], BeforeValidator(_lower)] = Field(
        "evolve", validation_alias=AliasChoices("schema", "source_schema")
    )
    nul_characters: Annotated[Literal["reject", "strip"], BeforeValidator(_lower)] = "reject"
    allow_empty: bool = False
    allow_private: bool = False
    table_name: Annotated[str, AfterValidator(check_table)] = "my_data"
    db_schema: Annotated[str, AfterValidator(check_schema)] = "public"
    max_delete_rows: Annotated[int, Field(ge=0)] = Source.max_delete_rows
    max_delete_share: Annotated[float, Field(ge=0, le=1)] = Source.max_delete_share
    purge_after_days: Annotated[float, Field(gt=0, le=36_500)] | None = None

    source_connect_timeout_seconds: Seconds = Source.connect_timeout_seconds
    source_read_timeout_seconds: Seconds = Source.read_timeout_seconds
    source_total_timeout_seconds: Seconds = Source.total_timeout_seconds
    source_attempts: Positive = Source.attempts
    max_retry_after_seconds: SecondsOrNone = Source.max_retry_after_seconds
    max_body_bytes: Positive = Source.max_body_bytes
    max_record_bytes: Positive = Source.max_record_bytes
    spool_dir: Path | None = None

    database_url: Annotated[SecretStr, AfterValidator(_check_database_url)] | None = None
    username_for_sql: str | None = None
    password_for_sql: SecretStr | None = None
    db_host: str = "127.0.0.1"
    db_port: Port = 5432
    db_name: str | None = None
    db_max_pool: Positive = 20
    db_lock_timeout_seconds: SecondsOrNone = 10.0
    db_statement_timeout_seconds: SecondsOrNone = 0.0
    data_dir: Path = Path("data")
    pg_bin_dir: Path | None = None

    host: str = "127.0.0.1"
    port: Port = 5001
    secret_key: SecretStr | None = Field(None, validation_alias=AliasChoices("secret_key", "app.secret_key"))
    require_token: bool | None = None
    token_lifetime_seconds: Annotated[int, Field(ge=1, le=86_400)] = 900
    settle_seconds: SecondsOrNone = 1.0
    workers_count: Positive = 1
    worker: bool = True
    worker_concurrency: Positive | None = None
    worker_heartbeat_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    worker_stop_seconds: SecondsOrNone = 10.0

    log_file: Path = Path("app.log")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Annotated[Literal["console", "json"], BeforeValidator(_lower)] = "console"
    log_max_bytes: Positive = 10 * 2**20
    log_backups: Annotated[int, Field(ge=0)] = 5

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not is_loopback(self.host) and self.secret_key is None:
            raise ValueError(
                "HOST: other machines could reach this address, so SECRET_KEY must be set too; "
                "callers then send it as Authorization: Bearer. Or set HOST=127.0.0.1"
            )
        if self.require_token and self.secret_key is None:
            raise ValueError("REQUIRE_TOKEN: tokens are signed with a key, so SECRET_KEY must be set too")
        if self.require_token is False and not is_loopback(self.host):
            raise ValueError("REQUIRE_TOKEN: other machines could reach this HOST, so callers must prove who they are")
        if self.database_url is None and (self.username_for_sql is None) != (self.password_for_sql is None):
            given, missing = "username_for_sql", "password_for_sql"
            if self.username_for_sql is None:
                given, missing = missing, given
            raise ValueError(f"{missing}: must be set because {given} is; without a password, use DATABASE_URL")
        return self

    @property
    def resolved_database_url(self) -> str | None:
        """The database to use, as SQLAlchemy wants it; None stands for the embedded server. It holds the password."""
        if self.database_url is not None:
            return translate_database_url(self.database_url.get_secret_value())
        if self.username_for_sql is None or self.password_for_sql is None:
            return None
        socket_directory = self.db_host.startswith("/")
        url = URL.create(
            DRIVER,
            username=self.username_for_sql,
            password=self.password_for_sql.get_secret_value(),
            host=None if socket_directory else self.db_host,
            port=None if socket_directory else self.db_port,
            database=self.db_name or self.username_for_sql,
            query={"host": self.db_host, "port": str(self.db_port)} if socket_directory else {},
        )
        return url.render_as_string(hide_password=False)

    @property
    def uses_sample(self) -> bool:
        """Whether the service mirrors its own sample feed, because neither SOURCE_URL nor a sources file names one."""
        return self.source_url is None and self.file is None

    @property
    def needs_secret(self) -> bool:
        """Whether callers must prove who they are: unless told otherwise, where other machines reach the service."""
        return not is_loopback(self.host) if self.require_token is None else self.require_token

    @property
    def pool_size_per_worker(self) -> int:
        """How many database connections each worker may hold."""
        return max(math.ceil(self.db_max_pool / self.workers_count), 1)

    @property
    def jobs_at_once(self) -> int:
        """How many sources each worker syncs at the same time: unless told otherwise, half as many as connections."""
        return self.worker_concurrency or max(self.pool_size_per_worker // 2, 1)

    def sources(self) -> Sources:
        """Return all sources that are to be mirrored: that of the environment first, then those of the sources file."""
        if self.file is None:
            return Sources([self.source()])
        return Sources([*([] if self.source_url is None else [self.source()]), *self.file.sources])

    @cached_property
    def file(self) -> SourcesFile | None:
        """What the sources file says, if there is one; SourcesFileWrong names all of its mistakes."""
        if self.sources_file is None and not self.sources_path.exists():
            return None
        return self.read_sources(self.sources_path)

    @property
    def sources_path(self) -> Path:
        """Where the sources file is, or would be."""
        return self.sources_file or Path(USUAL_NAME)

    def read_sources(self, path: Path, more_variables: Mapping[str, str] = EMPTY) -> SourcesFile:
        """Return what a sources file would say in place of the present one; SourcesFileWrong names its mistakes."""
        own = self.source()
        return read_sources_file(
            path,
            otherwise=replace(
                own, key=("id",), records=(), format="auto", types=EMPTY, allow_private=self.allow_private
            ),
            variables={**_variables(), **more_variables},
            first=None if self.source_url is None else own,
        )

    def source(self) -> Source:
        """Return the source that the environment alone describes, which is the sample without SOURCE_URL."""
        return Source(
            name="sample" if self.source_url is None else self.table_name,
            url=self.base_url + SAMPLE_PATH if self.source_url is None else self.source_url.get_secret_value(),
            key=("id",) if self.source_url is None else self.source_key,
            table=self.table_name,
            db_schema=self.db_schema,
            records=() if self.source_url is None else self.source_records,
            format=self.source_format,
            types=MappingProxyType(dict(self.source_types)),
            on_schema_change=self.source_schema,
            nul_characters=self.nul_characters,
            allow_empty=self.allow_empty,
            allow_private=self.allow_private or self.source_url is None,
            max_delete_rows=self.max_delete_rows,
            max_delete_share=self.max_delete_share,
            purge_after_days=self.purge_after_days,
            attempts=self.source_attempts,
            connect_timeout_seconds=self.source_connect_timeout_seconds,
            read_timeout_seconds=self.source_read_timeout_seconds,
            total_timeout_seconds=self.source_total_timeout_seconds,
            max_retry_after_seconds=self.max_retry_after_seconds,
            max_body_bytes=self.max_body_bytes,
            max_record_bytes=self.max_record_bytes,
        )

    @property
    def base_url(self) -> str:
        """Where this machine reaches the service."""
        host = self.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def secrets(self) -> list[str]:
        """Return every value that must not show in a log or an answer."""
        found = [
            secret.get_secret_value()
            for secret in (self.password_for_sql, self.secret_key, self.database_url)
            if secret is not None
        ]
        if self.database_url is not None:
            found.append(make_url(self.database_url.get_secret_value()).password or "")
        if self.source_url is not None:
            found += secrets_in_url(self.source_url.get_secret_value())
        if self.file is not None:
            found += sorted(self.file.secrets)
        return [secret for secret in found if secret]


def load_settings(**given: Any) -> Settings:
    """Read the settings; `given` wins over the environment. SettingError names all that are wrong, never a value."""
    settings = load_environment(**given)
    _ = settings.file  # read once, at the start, with all that is wrong in it
    return settings


def load_environment(**given: Any) -> Settings:
    """Read the settings as `load_settings` does, but not the sources file."""
    try:
        return Settings(**given)
    except ValidationError as exc:
        raise SettingError("; ".join(_explain(error) for error in exc.errors(include_input=False)) + ".") from None
    except SettingsError as exc:
        raise SettingError(f"A setting cannot be read: {exc}.") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingError(f".env cannot be read ({type(exc).__name__}).") from None


def _variables() -> dict[str, str]:
    """Return what `${NAME}` may name: as for the settings, the environment wins, and what is empty does not count."""
    both = chain(dotenv_values(ENV_FILE, encoding="utf-8").items(), os.environ.items())
    return {name: value for name, value in both if value}


def _explain(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message  # of several settings together; it names them itself
    field = str(error["loc"][0])
    name = field if field in {"table_name", "username_for_sql", "password_for_sql"} else field.upper()
    return f"{'SCHEMA' if name == 'SOURCE_SCHEMA' else name}: {message[:1].lower()}{message[1:]}"
