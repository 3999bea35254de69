"""A sources file may hold anything that TOML can say: what cannot be used is told with its line, and never crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from definitions import Source
from errors import SourcesFileWrong
from sources_file.reading import SourcesFile, read_sources_file

NINES = "9" * 400
OTHERWISE = Source(name="x", url="https://example.org")


def read(path: Path, settings: str, **variables: str) -> SourcesFile:
    """Read a file with one source, whose settings begin on line 3."""
    file = path / "sources.toml"
    file.write_text(f'[sources.a]\nurl = "https://example.org/a"\n{settings}\n', encoding="utf-8")
    return read_sources_file(file, otherwise=OTHERWISE, variables=variables)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (f"every = {NINES}", "3: sources.a.every: must be at most"),
        (f"jitter = -{NINES}", "3: sources.a.jitter: must be"),
        (f"max_delete_share = {NINES}", "3: sources.a.max_delete_share: must be"),
        (f'read_timeout = "{NINES}w"', "3: sources.a.read_timeout: must be a finite number"),
        (f"max_retry_after = {NINES}", "3: sources.a.max_retry_after: must be a finite number"),
        (f'max_body_bytes = "{NINES}MiB"', "3: sources.a.max_body_bytes: must be a number of bytes"),
        (f'rate_limit = "{NINES}/s"', "3: sources.a.rate_limit: must be requests per time"),
        (f'rate_limit = "1/{NINES}s"', "3: sources.a.rate_limit: must be requests per time"),
        ('rate_limit = "1/367d"', "3: sources.a.rate_limit: must be requests per time"),
        (f"max_pages = {'9' * 5000}", ": holds a number of more digits than can be read"),
        (f"body.{'.'.join('a' * 2000)} = 1", ": is nested too deeply"),
        (f"key = {'[' * 2000}", ": is nested too deeply"),
        ('cron = "* * * * * *"', "3: sources.a.cron: must be a cron expression with five fields"),
        ('scope = { a = "x\\u0000y" }', "3: sources.a.scope.a: must be a text of one line"),
        ('url2 = ""', "3: sources.a.url2: is not known; did you mean url?"),
        ('method = "POST"\nbody = "[NaN]"', "4: sources.a.body: must be a table, an array, or a text with JSON in it"),
    ],
)
def test_what_cannot_be_used(settings: str, told: str, tmp_path: Path) -> None:
    """Numbers beyond all measure, a time with seconds and a text that no column can hold are mistakes."""
    with pytest.raises(SourcesFileWrong) as wrong:
        read(tmp_path, settings)
    assert any(told in mistake for mistake in wrong.value.mistakes), wrong.value.mistakes


def test_a_host_with_a_blank(tmp_path: Path) -> None:
    """A blank inside of a host is told at once, not by a name server."""
    with pytest.raises(SourcesFileWrong, match=r"sources\.b\.url: must be a URL"):
        read(tmp_path, '[sources.b]\nurl = "https://a b/"')


@pytest.mark.parametrize("settings", ['params = { a = "${V}" }', 'auth = { type = "bearer", token = "${V}" }'])
def test_a_variable_that_is_no_text(settings: str, tmp_path: Path) -> None:
    """Bytes of the environment that are no UTF-8 cannot be sent."""
    with pytest.raises(SourcesFileWrong, match=r"3: .*: needs the variable V, whose value is not UTF-8"):
        read(tmp_path, settings, V=b"secret-\xff".decode("utf-8", "surrogateescape"))


def test_a_body_with_half_a_character(tmp_path: Path) -> None:
    """A text of JSON can name what UTF-8 has no bytes for; it is sent as it was named."""
    found = read(tmp_path, """method = "POST"\nbody = '["\\ud83d", "${V}"]'""", V="grün")
    assert found.sources[0].body == r'["\ud83d", "gr\u00fcn"]'
