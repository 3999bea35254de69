"""Settings are read from the environment and .env, checked together, and never shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from config import Settings, is_loopback, load_settings
from errors import SettingError

HOUSE = Path(__file__).parents[1]
CANARY = "canary-5e4f"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start every test without settings, in a directory without a .env."""
    monkeypatch.chdir(tmp_path)
    known = {name.lower() for name in [*Settings.model_fields, "app.secret_key", "schema"]}
    for name in list(os.environ):
        if name.lower() in known:
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_readme() -> None:
    """With nothing set the service mirrors its sample on 127.0.0.1:5001 into an embedded server."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.table_name) == ("127.0.0.1", 5001, "my_data")
    assert settings.resolved_database_url is None
    assert settings.uses_sample
    assert settings.source().url == "http://127.0.0.1:5001/sample/catalogue"
    assert (settings.max_delete_rows, settings.max_delete_share, settings.settle_seconds) == (10, 0.1, 1.0)


def test_environment_reaches_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of the source, in any case, stands in the Source that is handed on."""
    for name, value in {
        "SOURCE_URL": "https://ada:pw@example.org/feed?api_key=k",
        "source_key": "country, code",
        "Source_Records": "data.items",
        "SOURCE_TYPES": "price=numeric(10,2),code=text",
        "SCHEMA": "FREEZE",
        "NUL_CHARACTERS": "strip",
        "ALLOW_EMPTY": "true",
        "TABLE_NAME": "Länder".replace("ä", "ae"),
        "MAX_DELETE_ROWS": "5",
        "SOURCE_READ_TIMEOUT_SECONDS": "2.5",
        "UNKNOWN_THING": "x",
    }.items():
        monkeypatch.setenv(name, value)
    source = load_settings().source()
    assert source.url == "https://ada:pw@example.org/feed?api_key=k"
    assert source.key == ("country", "code")
    assert source.records == ("data", "items")
    assert dict(source.types) == {"price": "numeric(10,2)", "code": "text"}
    assert (source.on_schema_change, source.nul_characters, source.allow_empty) == ("freeze", "strip", True)
    assert (source.name, source.table, source.allow_private) == ("Laender", "Laender", False)
    assert (source.max_delete_rows, source.read_timeout_seconds) == (5, 2.5)


def test_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A .env in the working directory counts, the environment counts more, and an empty value not at all."""
    Path(".env").write_text("PORT=6001\nHOST=localhost\napp.secret_key=dotted-secret\nWORKERS_COUNT=\n")
    monkeypatch.setenv("PORT", "6002")
    monkeypatch.setenv("HOST", "")
    settings = load_settings()
    assert (settings.port, settings.host, settings.workers_count) == (6002, "localhost", 1)
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == "dotted-secret"


@pytest.mark.parametrize("name", ["SECRET_KEY", "app.secret_key", "APP.SECRET_KEY"])
def test_secret_key_has_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The secret key may be given as SECRET_KEY or app.secret_key."""
    monkeypatch.setenv(name, "hush-hush")
    secret = load_settings(host="0.0.0.0").secret_key  # noqa: S104 (nothing is bound)
    assert secret is not None
    assert secret.get_secret_value() == "hush-hush"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("SOURCE_URL", f"ftp://{CANARY}@x/", "SOURCE_URL"),
        ("SOURCE_URL", f"http:///{CANARY}", "SOURCE_URL"),
        ("SOURCE_URL", f"http://[{CANARY}", "SOURCE_URL"),
        ("SOURCE_KEY", "id,,x", "SOURCE_KEY"),
        ("SOURCE_KEY", "id,id", "SOURCE_KEY"),
        ("SOURCE_RECORDS", "a..b", "SOURCE_RECORDS"),
        ("SOURCE_FORMAT", "xml", "SOURCE_FORMAT"),
        ("SOURCE_TYPES", "price", "SOURCE_TYPES"),
        ("SCHEMA", "drop", "SCHEMA"),
        ("table_name", 'a"; drop table x', "table_name"),
        ("table_name", "public.t", "table_name"),
        ("table_name", "1st", "table_name"),
        ("table_name", "t" * 64, "table_name"),
        ("table_name", "_lockstep_runs", "table_name"),
        ("table_name", "t\n", "table_name"),
        ("DB_SCHEMA", "pg_catalog", "DB_SCHEMA"),
        ("DB_SCHEMA", "Lockstep", "DB_SCHEMA"),
        ("DATABASE_URL", f"mysql://u:{CANARY}@h/d", "DATABASE_URL"),
        ("DATABASE_URL", f"{CANARY}", "DATABASE_URL"),
        ("DATABASE_URL", f"postgresql://u:{CANARY}@h:port/d", "DATABASE_URL"),
        ("DATABASE_URL", f"postgresql://u:{CANARY}@h/d?sslmode=maybe", "sslmode"),
        ("DATABASE_URL", f"postgresql://u:{CANARY}@h/d?sslrootcert=x", "PGSSLROOTCERT"),
        ("DATABASE_URL", f"postgresql://u:{CANARY}@h/d?channel_binding=require", "channel_binding"),
        ("PORT", "http", "PORT"),
        ("PORT", "70000", "PORT"),
        ("SETTLE_SECONDS", "-1", "SETTLE_SECONDS"),
        ("SETTLE_SECONDS", "nan", "SETTLE_SECONDS"),
        ("MAX_DELETE_SHARE", "10", "MAX_DELETE_SHARE"),
        ("WORKERS_COUNT", "0", "WORKERS_COUNT"),
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL"),
        ("ALLOW_EMPTY", "perhaps", "ALLOW_EMPTY"),
        ("SOURCE_TOTAL_TIMEOUT_SECONDS", "0", "SOURCE_TOTAL_TIMEOUT_SECONDS"),
        ("username_for_sql", "ada", "password_for_sql"),
        ("password_for_sql", CANARY, "username_for_sql"),
        ("HOST", "0.0.0.0", "SECRET_KEY"),  # noqa: S104 (nothing is bound)
    ],
)
def test_a_wrong_value_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    """A wrong value stops the start with one message that names the variable and keeps what may be secret."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError) as caught:
        load_settings()
    assert named in caught.value.cause
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to correct two settings learns of both in one start."""
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("LOG_FORMAT", "xml")
    with pytest.raises(SettingError, match=r"PORT: .*; LOG_FORMAT: .*"):
        load_settings()


def test_an_unreadable_env_file_is_named() -> None:
    """A .env that is not text stops the start by its name."""
    Path(".env").write_bytes(b"PORT=\xff\xfe\n")
    with pytest.raises(SettingError, match=r"\.env"):
        load_settings()


@pytest.mark.parametrize("password", ["p@ss:w/rd?#%&=+ é'\"\\", "%41", "{x}", " "])
def test_special_characters_in_the_password_survive(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    """A password for PostgreSQL arrives as it was given, whatever characters it has."""
    monkeypatch.setenv("username_for_sql", "ada@home")
    monkeypatch.setenv("PASSWORD_FOR_SQL", password)
    monkeypatch.setenv("DB_HOST", "db.example")
    monkeypatch.setenv("DB_NAME", "a/b")
    url = make_url(load_settings().resolved_database_url or "")
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "ada@home",
        password,
        "db.example",
        5432,
        "a/b",
    )


def test_a_socket_directory_is_a_host() -> None:
    """DB_HOST may be the directory of a Unix socket."""
    settings = load_settings(username_for_sql="ada", password_for_sql="pw-pw-pw", db_host="/run/pg")  # noqa: S106
    url = make_url(settings.resolved_database_url or "")
    assert (url.host, url.database, dict(url.query)) == (None, "ada", {"host": "/run/pg", "port": "5432"})


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p%40@h:1/d?sslmode=verify-full", "postgresql+asyncpg://u:p%40@h:1/d?ssl=verify-full"),
        ("postgresql+asyncpg://u@/d?host=/run/pg", "postgresql+asyncpg://u@/d?host=%2Frun%2Fpg"),
    ],
)
def test_database_urls_are_translated(given: str, used: str) -> None:
    """A URL as libpq knows it becomes one that SQLAlchemy and asyncpg know."""
    assert load_settings(database_url=given).resolved_database_url == used


def test_database_url_wins_over_single_values() -> None:
    """DATABASE_URL counts where both forms are given."""
    settings = load_settings(database_url="postgres://h/d", username_for_sql="u", password_for_sql="x")  # noqa: S106
    assert settings.resolved_database_url == "postgresql+asyncpg://h/d"


@pytest.mark.parametrize(("pool", "workers", "each"), [(20, 1, 20), (20, 3, 7), (20, 40, 1), (1, 1, 1)])
def test_the_pool_is_shared_by_the_workers(pool: int, workers: int, each: int) -> None:
    """Each worker gets its share of DB_MAX_POOL, rounded up, and at least one connection."""
    assert load_settings(db_max_pool=pool, workers_count=workers).pool_size_per_worker == each


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),  # noqa: S104 (nothing is bound)
        ("::", False),
        ("db", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    """Only addresses that no other machine reaches count as loopback."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:5001"), ("::", "http://[::1]:5001"), ("10.0.0.7", "http://10.0.0.7:5001")],  # noqa: S104
)
def test_the_service_knows_where_it_is_reached(host: str, url: str) -> None:
    """The sample feed is fetched from an address on which the service listens."""
    settings = load_settings(host=host, secret_key="hush-hush")  # noqa: S106
    assert settings.source().url == f"{url}/sample/catalogue"


def test_secrets_are_listed_and_not_printed() -> None:
    """Every secret value is known to the log, and none shows when settings are printed."""
    settings = load_settings(
        source_url="https://ada:s0urce-pw@example.org/?api_key=query-key&key=name&page=2",
        database_url="postgresql://u:db%20pw@h/d",
        secret_key="hush-hush",  # noqa: S106
    )
    secrets = settings.secrets()
    assert {"s0urce-pw", "query-key", "db pw", "hush-hush"} <= set(secrets)
    assert "name" not in secrets
    assert not any(secret in repr(settings) for secret in secrets)


def shown(value: object) -> str:
    match value:
        case None | () | {}:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return f"`{value:g}`"
        case tuple():
            return f"`{','.join(value)}`"
        case _:
            return f"`{value}`"


def test_every_setting_is_documented() -> None:
    """The README's table has a row for every setting with its default, and no row for anything else."""
    rows = re.findall(r"^\| `([A-Za-z_]+)`[^|]*\| ([^|]*?) *\|", (HOUSE / "README.md").read_text(), re.MULTILINE)
    documented = {name.lower(): default for name, default in rows}
    assert documented == {
        "schema" if name == "source_schema" else name: shown(field.get_default(call_default_factory=True))
        for name, field in Settings.model_fields.items()
    }
