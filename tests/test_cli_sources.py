"""The command about the sources says what is in the sources file, and what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.service import serve_feed
from tests.test_cli import Shell

WRONG = """\
[sources.a]
url = "https://example.org/a"
evry = "5m"

[sources.b]
url = "https://example.org/b"
headers = { Authorization = "Bearer canary-token" }
"""


async def test_check_shows_the_sources_and_asks_them(tmp_path: Path) -> None:
    """`check` shows every source with its times; with --fetch it finds a source whose records have no such key."""
    async with serve_feed() as feed:
        (tmp_path / "sources.toml").write_text(
            f'[sources.good]\nurl = "{feed.url}"\ncron = "0 3 * * *"\ntime_zone = "Asia/Tokyo"\n'
            f'[sources.bad]\nurl = "{feed.url}"\nkey = "sku"\n',
            encoding="utf-8",
        )
        code, output, errors = await Shell(tmp_path).run("check", "--fetch")
    assert code == 3
    assert re.search(r"good .*public\.good .* id .* snapshot .* 0 3 \* \* \*; next \d{4}-\d\d-\d\d 03:00 JST", output)
    assert "good: answers; the first record is id=0, with id, name" in output
    assert "The first record of bad has no sku." in errors


async def test_check_names_every_mistake_on_a_line_of_its_own(tmp_path: Path) -> None:
    """`check` exits 2 with one line for each mistake, and what to do; it repeats no secret."""
    (tmp_path / "sources.toml").write_text(WRONG, encoding="utf-8")
    code, output, errors = await Shell(tmp_path).run("check")
    assert (code, output) == (2, "")
    mistakes = errors.splitlines()
    assert mistakes[0] == "sources.toml:3: sources.a.evry: is not known; did you mean every?"
    assert mistakes[1].startswith("sources.toml:7: sources.b.headers.Authorization: ")
    assert mistakes[2].startswith("Correct them and start again")
    assert "canary-token" not in errors
