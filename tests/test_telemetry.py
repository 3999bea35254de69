"""The log says everything once, on one line, and never a secret."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import telemetry
from errors import SettingError

HOUSE = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("own_logging")


def logged(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fail_with(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://ada:s3cr3t!@db:5432/x", "s3cr3t!"),
        ("https://tok3n@example.org/feed", "tok3n"),
        ("GET /feed?api_key=abc123&page=2", "abc123"),
        ("https://example.org/?X-Amz-Signature=deadbeef", "deadbeef"),
        ("https://example.org/?access_token=abc%2Fdef#x", "abc%2Fdef"),
        ("Authorization: Bearer eyJhbGciOi.J9", "eyJhbGciOi.J9"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "dXNlcjpwdw"),
        ("password=hunter22 user=ada", "hunter22"),
    ],
)
def test_credentials_are_known_by_their_form(text: str, hidden: str) -> None:
    """Userinfo, credentials in queries and authorization headers are hidden wherever they stand."""
    assert hidden not in telemetry.redact(text)
    assert "***" in telemetry.redact(text)


@pytest.mark.parametrize("text", ["SOURCE_KEY is id", "key={'id': 3}", "a monkey at http://example.org/a@b", "page=2"])
def test_what_is_no_secret_stays(text: str) -> None:
    """Hiding secrets does not eat the rest of the line."""
    assert telemetry.redact(text) == text


def test_registered_secrets_are_hidden_in_every_spelling() -> None:
    """A secret from the settings is hidden plain, percent-encoded, and as Python, HTML and writers of JSON have it."""
    telemetry.register_secrets(["p/w d'\\é\"", ""])
    in_json = [r"p/w d'\\\u00e9\"", r"p/w d'\\é\"", r"p\/w d'\\\u00e9\"", r"p/w d\u0027\\\u00E9\u0022"]
    for spelling in (
        *("p/w d'\\é\"", "p%2Fw%20d%27%5C%C3%A9%22", "p%2Fw+d%27%5C%C3%A9%22", repr("p/w d'\\é\"")[1:-1]),
        *in_json,
        *(json.dumps(spelling)[1:-1] for spelling in in_json),
        "p/w d&#x27;\\é&quot;",
    ):
        assert telemetry.redact(f"before {spelling} after") == "before *** after"
    assert telemetry.redact('an excerpt: {"x": "p/w d…') == 'an excerpt: {"x": "***…'


def test_one_event_is_one_line(tmp_path: Path) -> None:
    """Line breaks, escape sequences and direction marks in a value cannot forge a line or move the cursor."""
    path = tmp_path / "app.log"
    telemetry.setup_logging(log_file=path)
    telemetry.get_logger("t").info("request_handled", path="/a\r\n2026 [info] forged\x1b[2J\u2028\u202e\x85\ud800")
    logging.getLogger("library").warning("evil\n%s", "\x1b[31mred")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in path.read_text()
    assert "\\r\\n" in lines[0] or "\\\\r\\\\n" in lines[0]


def test_json_lines_carry_level_time_and_bound_fields(tmp_path: Path) -> None:
    """With LOG_FORMAT=json every line is one JSON object with the run and source of its context."""
    path = tmp_path / "deep" / "app.log"
    telemetry.setup_logging(log_file=path, log_format="json")
    with telemetry.bound(run=7, source="catalogue"):
        telemetry.get_logger("sync").info("run_finished", created=3, key={"id": "é"}, sent={"Cookie": "x"})
        logging.getLogger("aiohttp").error("from a %s", "library")
    telemetry.get_logger("sync").debug("not at this level")
    ours, library = logged(path)
    assert (ours["event"], ours["run"], ours["source"], ours["created"]) == ("run_finished", 7, "catalogue", 3)
    assert ours["key"] == {"id": "é"}
    assert ours["sent"] == {"Cookie": "***"}
    assert ours["level"] == "info"
    assert str(ours["timestamp"]).endswith("Z")
    assert (library["event"], library["run"], library["level"]) == ("from a library", 7, "error")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_tracebacks_are_whole_and_free_of_secrets(tmp_path: Path, log_format: telemetry.LogFormat) -> None:
    """An error brings its traceback, with secrets hidden and no line that could pose as an event."""
    path = tmp_path / "app.log"
    telemetry.setup_logging(log_file=path, log_format=log_format, secrets=["canary-secret"])
    try:
        fail_with("canary-secret\n2026-01-01 [info] forged")
    except ValueError:
        telemetry.get_logger("t").exception("run_failed")
    text = path.read_text()
    assert "Traceback (most recent call last)" in text
    assert "ValueError: ***" in text
    assert "canary-secret" not in text
    if log_format == "json":
        assert len(text.splitlines()) == 1
    else:
        assert all(line.startswith("    ") for line in text.splitlines()[1:])


def test_warnings_go_the_same_way(tmp_path: Path) -> None:
    """A Python warning ends in app.log instead of on a bare stderr."""
    path = tmp_path / "app.log"
    telemetry.setup_logging(log_file=path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    assert "old ways" in path.read_text()


async def test_a_failure_nobody_awaits_is_logged(tmp_path: Path) -> None:
    """What goes wrong in a callback of the loop is logged with its traceback."""
    path = tmp_path / "app.log"
    telemetry.setup_logging(log_file=path)
    loop = asyncio.get_running_loop()
    telemetry.watch_loop(loop)
    done = asyncio.Event()

    def fail() -> None:
        done.set()
        raise ZeroDivisionError("nobody listens")

    loop.call_soon(fail)
    await done.wait()
    await asyncio.sleep(0)
    assert "uncaught_error" in path.read_text()
    assert "ZeroDivisionError: nobody listens" in path.read_text()
    loop.set_exception_handler(None)


def test_an_unwritable_file_is_named_at_start(tmp_path: Path) -> None:
    """A log file that cannot be written stops the start with the setting's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="LOG_FILE"):
        telemetry.setup_logging(log_file=tmp_path / "file" / "app.log")


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the log's disk full the work goes on, and standard error says so a single time."""
    path = tmp_path / "app.log"
    path.symlink_to("/dev/full")
    telemetry.setup_logging(log_file=path)
    for number in range(3):
        telemetry.get_logger("t").info("run_started", number=number)
    shown = capfd.readouterr().err
    assert shown.count("cannot be written (No space left on device)") == 1
    assert shown.count("run_started") == 3


def test_the_lock_file_is_hidden_beside_the_log(tmp_path: Path) -> None:
    """Logging leaves the log and one hidden lock file named after it, nothing else."""
    telemetry.setup_logging(log_file=tmp_path / "app.log")
    telemetry.get_logger("t").info("service_started")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".app.log.lock", "app.log"]


def test_several_processes_share_one_rotating_log(tmp_path: Path) -> None:
    """Lines of several processes survive rotation whole: none is lost, torn or written twice."""
    script = (
        "import sys, telemetry\n"
        "from pathlib import Path\n"
        "telemetry.setup_logging(log_file=Path(sys.argv[1]), log_format='json', max_bytes=4000, backups=50)\n"
        "for number in range(100):\n"
        "    telemetry.get_logger('t').info('line', worker=sys.argv[2], number=number)\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "app.log", str(worker)], cwd=HOUSE, stderr=subprocess.DEVNULL
        )
        for worker in range(3)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    files = list(tmp_path.glob("app.log*"))
    lines = [line for path in files for line in logged(path)]
    assert len(files) > 3
    assert sorted((str(line["worker"]), line["number"]) for line in lines) == [
        (str(worker), number) for worker in range(3) for number in range(100)
    ]


def test_an_uncaught_error_of_the_process_is_logged(tmp_path: Path) -> None:
    """An exception that ends the process or a thread is in app.log with its traceback."""
    script = (
        "import sys, threading, telemetry\n"
        "from pathlib import Path\n"
        "telemetry.setup_logging(log_file=Path(sys.argv[1]))\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "raise RuntimeError('the end')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "app.log"], cwd=HOUSE, check=False, capture_output=True, timeout=60
    )
    text = (tmp_path / "app.log").read_text()
    assert ended.returncode == 1
    assert "ZeroDivisionError" in text
    assert "RuntimeError: the end" in text
