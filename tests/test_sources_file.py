"""The sources file is read whole: what it says reaches the sources, and every mistake in it is told with its line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from columns import INFERRED_TYPES, TYPE_ALIASES
from config import Settings, load_settings
from definitions import (
    ApiKeyAuth,
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
    RateLimit,
    Schedule,
    Source,
)
from errors import SourcesFileWrong
from sources_file.entries import Entry

HOUSE = Path(__file__).parents[1]
CANARY = "canary-7d1a"
TOKEN_URL = "https://l/t"  # noqa: S105 (a URL)
TOML_BLOCK = re.compile(r"^```toml[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(block[1], id=f"{page.name}:{page.read_text('utf-8')[: block.start()].count(chr(10)) + 1}")
    for page in [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]
    for block in TOML_BLOCK.finditer(page.read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start every test without settings, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def sources(text: str, **given: Any) -> dict[str, Source]:
    """Read a file with this text and return its sources by name."""
    Path("sources.toml").write_text(text, encoding="utf-8")
    return {source.name: source for source in load_settings(**given).sources()}


def mistakes(text: str, **given: Any) -> list[str]:
    """Read a file with this text and return its mistakes, without the name of the file."""
    with pytest.raises(SourcesFileWrong) as wrong:
        sources(text, **given)
    return [mistake.removeprefix("sources.toml:") for mistake in wrong.value.mistakes]


def entry(settings: str) -> str:
    """Return a file with one source, whose settings begin on line 3."""
    return f'[sources.a]\nurl = "https://example.org/a"\n{settings}\n'


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_right(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example in the documentation is a sources file without a mistake."""
    for name in re.findall(r"\$\{(\w+)\}", example):
        monkeypatch.setenv(name, f"value-of-{name.lower().replace('_', '-')}")
    assert sources(example)


def test_every_key_is_documented() -> None:
    """The guide's table has a row for every key of an entry, and for nothing else."""
    table = (HOUSE / "docs" / "sources.md").read_text(encoding="utf-8").partition("## Every key")[2]
    keys = {field.alias or name for name, field in Entry.model_fields.items()}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == keys


def test_a_full_entry_reaches_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an entry says stands in the source, in the service's units; the key is named as in the table."""
    monkeypatch.setenv("TOKEN", "canary-token")
    source = sources(
        entry("""
key = ["country", "code"]
table = "t"
db_schema = "s"
records = "data.items"
format = "json"
method = "POST"
body = { q = "x", at = 2024-01-01T00:00:00Z }
headers = { X-A = "1" }
params = { page_size = 5, deep = true, day = 2024-01-02 }
auth = { type = "bearer", token = "${TOKEN}" }
max_pages = 7
rate_limit = "100/m"
mode = "both"
cursor = { field = "at", parameter = "since", start = 3 }
scope = { region = "eu", area = 7 }
fields = { country = "land", code = "code", "*" = "*" }
types = { land = "text" }
nested = "flatten"
schema = "freeze"
on_delete = "hard"
nul_characters = "strip"
allow_empty = true
allow_private = true
max_delete_rows = 0
max_delete_share = 1
purge_after = "90d"
attempts = 1
connect_timeout = 1.5
read_timeout = "500ms"
total_timeout = "2h"
max_retry_after = 0
max_body_bytes = "1.5GiB"
max_record_bytes = 10
every = "30s"
snapshot_cron = "30 2 * * *"
time_zone = "Europe/Berlin"
jitter = "2s"
""")
    )["a"]
    assert source == Source(
        name="a", url="https://example.org/a", method="POST", body='{"q": "x", "at": "2024-01-01T00:00:00+00:00"}',
        headers={"X-A": "1"}, params={"page_size": "5", "deep": "true", "day": "2024-01-02"},
        auth=BearerAuth(token=os.environ["TOKEN"]), max_pages=7, rate_limit=RateLimit(requests=100, seconds=60),
        key=("area", "region", "land", "code"), table="t", db_schema="s", records=("data", "items"), format="json",
        mode="both", cursor=Cursor(field="at", parameter="since", start="3"), scope={"region": "eu", "area": 7},
        fields={"country": "land", "code": "code"}, other_fields="keep", types={"land": "text"}, nested="flatten",
        on_schema_change="freeze", on_delete="hard", nul_characters="strip", allow_empty=True, allow_private=True,
        max_delete_rows=0, max_delete_share=1, purge_after_days=90, attempts=1, connect_timeout_seconds=1.5,
        read_timeout_seconds=0.5, total_timeout_seconds=7200, max_retry_after_seconds=0,
        max_body_bytes=3 * 2**29, max_record_bytes=10,
        schedules=(
            Schedule(mode="incremental", every_seconds=30, time_zone="Europe/Berlin", jitter_seconds=2),
            Schedule(mode="snapshot", cron="30 2 * * *", time_zone="Europe/Berlin", jitter_seconds=2),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{ type = "link" }', LinkHeaderPaging()),
        ('{ type = "next_url", path = "a.b" }', NextUrlPaging(path=("a", "b"))),
        ('{ type = "cursor", path = "a", parameter = "p" }', CursorPaging(path=("a",), parameter="p")),
        ('{ type = "page", first = 0, size = 5 }', PageNumberPaging(first=0, size=5)),
        ('{ type = "offset", limit = 5 }', OffsetPaging(limit=5)),
    ],
)
def test_every_way_of_paging_is_read(written: str, meant: object) -> None:
    """A table `paging` becomes what its type says."""
    source = sources(entry(f'records = "items"\npaging = {written}\ntotal = {{ path = "n" }}'))["a"]
    assert (source.paging, source.total) == (meant, DeclaredTotal(path=("n",)))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{ type = "basic", username = "u", password = "${S}" }', BasicAuth(username="u", password=CANARY)),
        ('{ type = "api_key", header = "X-Key", value = "${S}" }', ApiKeyAuth(header="X-Key", value=CANARY)),
        (
            '{ type = "oauth2", token_url = "https://l/t", client_id = "c", client_secret = "${S}" }',
            OAuth2Auth(token_url=TOKEN_URL, client_id="c", client_secret=CANARY),
        ),
    ],
)
def test_every_way_of_authentication_is_read(written: str, meant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table `auth` becomes what its type says, and does not show its secrets."""
    monkeypatch.setenv("S", CANARY)
    source = sources(entry(f"auth = {written}"))["a"]
    assert source.auth == meant
    assert CANARY not in repr(source)


def test_entry_wins_over_preset_over_defaults_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer gives what those above it leave open; headers are joined, and `cron` stands in for `every`."""
    monkeypatch.setenv("MAX_DELETE_ROWS", "3")
    monkeypatch.setenv("MAX_DELETE_SHARE", "0.5")
    monkeypatch.setenv("SOURCE_KEY", "of_the_environment")
    monkeypatch.setenv("BINANCE_API_KEY", "canary-binance")
    found = sources("""
[defaults]
key = "sku"
max_delete_share = 0.25
every = "1h"
headers = { X-A = "defaults", X-B = "defaults" }
[sources.plain-one]
url = "https://example.org/a"
cron = "0 0 * * *"
headers = { X-B = "own" }
[sources.rates]
preset = "binance"
url = "http://127.0.0.1:1/x"
""")
    plain, rates = found["plain-one"], found["rates"]
    assert (plain.table, plain.key, plain.max_delete_rows, plain.max_delete_share) == ("plain_one", ("sku",), 3, 0.25)
    assert dict(plain.headers) == {"X-A": "defaults", "X-B": "own"}
    assert [(schedule.every_seconds, schedule.cron) for schedule in plain.schedules] == [(None, "0 0 * * *")]
    assert (rates.preset, rates.key, rates.url) == ("binance", ("symbol",), "http://127.0.0.1:1/x")
    assert (rates.headers["X-A"], rates.headers["X-MBX-APIKEY"]) == ("defaults", "canary-binance")


def test_the_source_of_the_environment_comes_first() -> None:
    """SOURCE_URL names the default source; without it that is the file's first, and no sample is served."""
    text = entry("")
    assert list(sources(text)) == ["a"]
    assert not load_settings().uses_sample
    assert list(sources(text, source_url="https://example.org/env")) == ["my_data", "a"]
    Path("sources.toml").rename("other.toml")
    assert load_settings().uses_sample
    assert load_settings(sources_file=Path("other.toml")).sources().default.name == "a"


def test_variables_come_from_the_environment_and_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over .env, an empty value does not count, and `$$` is a dollar."""
    Path(".env").write_text("A=from-file\nB=from-file\nC=from-file\n", encoding="utf-8")
    monkeypatch.setenv("A", "from-environment")
    monkeypatch.setenv("B", "")
    source = sources(entry('params = { a = "${A}/${B}", b = "$$x $y $${C}" }'))["a"]
    assert dict(source.params) == {"a": "from-environment/from-file", "b": "$x $y ${C}"}


def test_every_secret_is_known_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came through a variable into something that is sent is a secret, but a host and a short word are none."""
    for name in ("URL_PART", "HEADER", "PARAM", "BODY", "USERINFO", "QUERY"):
        monkeypatch.setenv(name, f'canary-{name.lower()}"')
    monkeypatch.setenv("HOST_NAME", "feeds.example.org")
    monkeypatch.setenv("REGION", "eu")
    monkeypatch.setenv("PIN", "1234")
    sources(
        '[sources.a]\nurl = "https://u:${USERINFO}@${HOST_NAME}/${URL_PART}/x?api_key=${QUERY}"\nmethod = "POST"\n'
        'headers = { X-A = "v ${HEADER}", X-Region = "${REGION}" }\nparams = { a = "${PARAM}", pin_token = "${PIN}" }\n'
        'body = \'{"q": ["${BODY}"]}\'\ntable = "t_${REGION}"\n'
    )
    settings = load_settings()
    known = set(settings.secrets())
    assert {f'canary-{name}"' for name in ("url_part", "header", "param", "body", "userinfo", "query")} <= known
    assert "1234" in known
    assert not known & {"eu", "feeds.example.org", "t_eu"}
    assert not any(secret in repr(settings) for secret in known)
    assert settings.sources().default.body == '{"q": ["canary-body\\""]}'


LITERALS = """
[sources.a]
url = "https://u:literal@h/a?api_key=literal&page=2"
method = "POST"
headers = { Cookie = "a=literal", X-Api-Key = "literal", X-Page = "2" }
params = { access_token = "literal", sort_key = "name" }
body = { client = { password = "literal" }, name = "x" }
auth = { type = "oauth2", token_url = "https://only@h/", client_id = "c", client_secret = "literal" }
"""


def test_secrets_in_the_file_are_refused() -> None:
    """A secret that is written down is named with its line and its remedy, and never repeated."""
    told = mistakes(LITERALS)
    assert [re.match(r"\d+: [\w.-]+", mistake)[0] for mistake in told] == [  # type: ignore[index]
        "3: sources.a.url", "3: sources.a.url", "5: sources.a.headers.Cookie", "5: sources.a.headers.X-Api-Key",
        "6: sources.a.params.access_token", "7: sources.a.body.client.password", "8: sources.a.auth.token_url",
        "8: sources.a.auth.client_secret",
    ]  # fmt: skip
    assert "write ${A_CLIENT_SECRET} instead of it, and set A_CLIENT_SECRET in the environment or in .env" in told[-1]
    assert not any("literal" in mistake for mistake in told)


A_DURATION = 'must be a duration as in "500ms", "30s", "5m", "12h", "90d" or "2w", or a number of seconds'
TYPES = ", ".join((*INFERRED_TYPES, *TYPE_ALIASES))
MANY = """\
[defaults]
evry = "5m"
read_timeout = "fast"

[sources.orders]
url = "ftp://example.org"
paging = { type = "pages" }

auth = {type = "basic", username = "u"}
headers.Host = "x"
headers."X-A" = "a\\nb"
types = { price = "money" }
jitter = "2m"
every = 60
total = { }

[sources.all]
url = "https://example.org"

[sources."a b"]
cursor = { field = "x", parameter = "y", begin = 1 }
scope.x = true

[[sources.list]]

[sourcs]
"""


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    """Reading goes on after a mistake; unknown keys are answered with the nearest known one."""
    assert mistakes(MANY) == [
        "2: defaults.evry: is not known; did you mean every?",
        f"3: defaults.read_timeout: {A_DURATION}",
        "6: sources.orders.url: must be a URL that begins with http:// or https:// and names a host",
        "7: sources.orders.paging.type: must be one of link, next_url, cursor, page, offset",
        "9: sources.orders.auth.password: is missing",
        "10: sources.orders.headers.Host: is a header that the service sets itself",
        "11: sources.orders.headers.X-A: must be one line without blanks around it",
        f"12: sources.orders.types.price: is a type that is not known. Use one of: {TYPES}",
        "13: sources.orders.jitter: must be shorter than the 60 seconds between two runs by `every`",
        "15: sources.orders.total: needs either `header` or `path`",
        "17: sources.all: cannot be the name of a source, since it means every source",
        "20: sources.a b: must be 1 to 63 letters, digits, - or _, and begin with neither - nor _",
        "20: sources.a b.url: is missing",
        "21: sources.a b.cursor.begin: is not known; known are field, parameter, start",
        "22: sources.a b.scope.x: must be a text or a whole number",
        "24: sources.list: must be a table",
        "26: sourcs: is not known; did you mean sources?",
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('cron = "* * * *"', "3: sources.a.cron: must be a cron expression with five fields"),
        ('every = "1m"\ncron = "* * * * *"', "4: sources.a.cron: cannot go with `every`"),
        ('cron = "0 * * * *"\njitter = "1h"', "4: sources.a.jitter: must be shorter than the 3600 seconds"),
        ('snapshot_every = "1h"', '3: sources.a.snapshot_every: is only used with mode = "both"'),
        ('time_zone = "Europe/Bärlin"', "3: sources.a.time_zone: must be the name of a time zone"),
        ('mode = "both"', "3: sources.a.mode: needs `cursor`"),
        ('cursor = { field = "a", parameter = "b" }', "3: sources.a.cursor: is only used with mode ="),
        ('body = "{"', "3: sources.a.body: must be a table, an array, or a text with JSON in it"),
        ("body = {}", '3: sources.a.body: is only sent with method = "POST"'),
        ('key = "b"\nfields = ["a"]', "3: sources.a.key: names b, which is not among `fields`"),
        ('fields = { id = "x", b = "x" }', "3: sources.a.fields.id: gives two fields the same name"),
        ('fields = { id = "x" }\ntypes = { id = "text" }', "4: sources.a.types.id: is called x in the table"),
        ('fields = ["id", "price"]\ntypes.prize = "text"', "4: sources.a.types.prize: is not among `fields`"),
        ('scope = { id = "x" }', "3: sources.a.scope.id: is the name of one of the feed's fields too"),
        ('paging = { type = "page", size_parameter = "n" }', "3: sources.a.paging.size_parameter: needs `size`"),
        ('params.n = 1\npaging = { type = "page", parameter = "n" }', "4: sources.a.paging.parameter: is a parameter"),
        ('paging = { type = "next_url", path = "next" }', "3: sources.a.paging.path: leads into an object around"),
        ('records = "a"\ntotal = { path = "a.n" }', "4: sources.a.total.path: leads into the array of records"),
        ('headers = { X-A = "1", x-a = "2" }', "3: sources.a.headers.X-A: stands there twice"),
        ("purge_after = 90", '3: sources.a.purge_after: must be a duration with its unit, as in "90d"'),
        ('rate_limit = "fast"', "3: sources.a.rate_limit: must be requests per time"),
        ('preset = "binanc"', "3: sources.a.preset: is not known; did you mean binance?"),
        ('attempts = "3"', "3: sources.a.attempts: must be a whole number"),
        ('params = { a = "${NONE_SUCH}" }', "3: sources.a.params.a: needs the variable NONE_SUCH"),
        ('params = { a = "${" }', "3: sources.a.params.a: has a ${ that no name and } follow"),
        ('auth = { type = "basic", username = "a:b", password = "" }', "3: sources.a.auth.username: must have no"),
        ("key = [", "3: is not TOML: Invalid value"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(settings: str, told: str) -> None:
    """A value that is wrong, or contradicts another, is the first mistake that is told."""
    assert mistakes(entry(settings))[0].startswith(told)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("key = 'id'", "key = 'id'", "5: sources.b: has the table public.t of a, so both need a `scope`"),
        ("scope.r = 1", "scope.r = 1", "8: sources.b.scope: is that of a, which has the same table"),
        ("scope.r = 1", 'scope.r = "1"', "8: sources.b.scope.r: must be of the same type as in a"),
        ("scope.r = 1", "scope.s = 1", "8: sources.b.scope: must have the fields of a, which has the same table: r"),
        ("scope.r = 1", 'scope.r = 2\nkey = "k"', "9: sources.b.key: must be that of a, which has the same table: id"),
        ("scope.r = 1", 'scope.r = 2\nschema = "freeze"', "9: sources.b.schema: must be as in a"),
    ],
)
def test_sources_of_one_table_need_scopes(first: str, second: str, told: str) -> None:
    """Two sources may share a table if their scopes tell the rows apart and they agree on its shape."""
    shared = 'url = "http://h/"\ntable = "t"'
    (only,) = mistakes(f"[sources.a]\n{shared}\n{first}\n[sources.b]\n{shared}\n{second}\n")
    assert only.startswith(told)


def test_a_file_that_cannot_be_read_is_told() -> None:
    """A file that is missing, empty or not UTF-8 is a mistake, as is a name that the environment has taken."""
    with pytest.raises(SourcesFileWrong, match=r"nowhere\.toml: cannot be read \(No such file or directory\)"):
        load_settings(sources_file=Path("nowhere.toml"))
    assert mistakes("") == ["1: sources: must be tables [sources.NAME], one for each source"]
    assert mistakes('[sources.my_data]\nurl = "http://h/"', source_url="http://h/") == [
        "1: sources.my_data: has the name of the source that SOURCE_URL and table_name=my_data describe"
    ]
    Path("sources.toml").write_bytes(b"# x\n\xff")
    with pytest.raises(SourcesFileWrong, match=r"sources\.toml:2: is not UTF-8"):
        load_settings()
