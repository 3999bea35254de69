"""The embedded server's life cycle: real servers, really killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from errors import DatabaseUnavailable, SettingError
from store import postmaster
from store.embedded import MAX_LOG_BYTES, EmbeddedServer
from tests.embedded import fail_to_start, pid_of, query, running
from tests.postgres import connect, temporary_directory

ROOT = Path(__file__).parent.parent

USER_PROGRAM = """
import asyncio, sys
from pathlib import Path
from store.embedded import EmbeddedServer

async def use():
    server = EmbeddedServer(Path(sys.argv[1]))
    print(await server.start(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop()

asyncio.run(use())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for one server."""
    with temporary_directory() as directory:
        yield directory


@asynccontextmanager
async def other_process(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Another process that uses the server under `data_dir`, and the URL it got."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", USER_PROGRAM, str(data_dir)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        async for line in process.stdout:
            if line.startswith(b"postgresql"):
                yield process, line.decode().strip()
                break
        else:
            pytest.fail("the other process ended before the server was up")
    finally:
        process.stdin.close()
        await process.communicate()


def kill(server: EmbeddedServer) -> None:
    """Kill the running server, and return when it is dead."""
    os.kill(pid_of(server), signal.SIGKILL)
    while postmaster.find(server.data_directory):
        os.sched_yield()


async def test_stop_ends_the_server_and_the_next_start_finds_the_data(data_dir: Path) -> None:
    """What was committed before a stop is there after the next start."""
    async with running(data_dir) as (server, url):
        await query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert postmaster.state(server.data_directory) == "absent"
    with pytest.raises(OSError, match=r"No such file|Connection refused"):
        await connect(url)
    async with running(data_dir) as (_, url):
        assert await query(url, "SELECT answer FROM kept") == 42


async def test_starting_twice_is_starting_once(data_dir: Path) -> None:
    """A second start of a running server changes nothing, and one stop is enough."""
    async with running(data_dir) as (server, url):
        first = pid_of(server)
        assert await server.start() == url
        assert pid_of(server) == first
    assert postmaster.state(server.data_directory) == "absent"


async def test_commits_are_durable_and_only_the_owner_may_connect(data_dir: Path) -> None:
    """The server waits for the disk, listens on no network address, and opens its socket to its owner alone."""
    async with running(data_dir) as (server, url):
        settings = {name: await query(url, f"SHOW {name}") for name in ("fsync", "full_page_writes")}
        assert settings == {"fsync": "on", "full_page_writes": "on"}
        assert await query(url, "SHOW listen_addresses") == ""
        assert server.data_directory.stat().st_mode & 0o077 == 0


async def test_settings_in_tuning_conf_win_and_survive(data_dir: Path) -> None:
    """What the user writes into tuning.conf holds from the next start on and is never overwritten."""
    async with running(data_dir) as (server, _):
        (server.data_directory / "tuning.conf").write_text("work_mem = '7MB'\n")
    async with running(data_dir) as (_, url):
        assert await query(url, "SHOW work_mem") == "7MB"


async def test_the_last_user_stops_the_server(data_dir: Path) -> None:
    """Processes share one server; it stops when the last of them leaves."""
    async with running(data_dir) as (server, url):
        async with other_process(data_dir) as (_, other_url):
            assert other_url == url
            await server.stop()
            assert await query(url, "SELECT 1") == 1
        assert postmaster.state(server.data_directory) == "absent"


async def test_processes_that_start_at_once_share_one_cluster(data_dir: Path) -> None:
    """However many processes make the first start together, one makes the cluster and all use it."""
    servers = [EmbeddedServer(data_dir) for _ in range(3)]
    async with other_process(data_dir) as (_, url):
        assert {*await asyncio.gather(*(server.start() for server in servers))} == {url}
    assert len({pid_of(server) for server in servers}) == 1
    await asyncio.gather(*(server.stop() for server in servers))
    assert postmaster.state(servers[0].data_directory) == "absent"


async def test_a_killed_user_does_not_count(data_dir: Path) -> None:
    """A user that was killed leaves its server to the next one, who stops it when leaving."""
    async with other_process(data_dir) as (process, _):
        process.send_signal(signal.SIGKILL)
        await process.wait()
    left_behind = pid_of(EmbeddedServer(data_dir))
    async with running(data_dir) as (server, url):
        assert pid_of(server) == left_behind
        assert await query(url, "SELECT 1") == 1
    assert postmaster.state(server.data_directory) == "absent"


async def test_a_killed_server_comes_back_with_its_commits(data_dir: Path) -> None:
    """After SIGKILL of the server another start recovers every commit."""
    async with running(data_dir) as (server, url):
        await query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        kill(server)
        assert await server.start() == url
        assert await query(url, "SELECT answer FROM kept") == 42


async def test_a_killed_server_comes_back_though_a_worker_still_computes(data_dir: Path) -> None:
    """A worker that outlives its server is ended, not waited for."""
    async with running(data_dir) as (server, url):
        connection = await connect(url)
        number = await connection.fetchval("SELECT pg_backend_pid()")
        busy = asyncio.create_task(connection.execute("DO 'BEGIN LOOP END LOOP; END'"))
        while await query(url, "SELECT state FROM pg_stat_activity WHERE pid = $1", number) != "active":
            pass
        kill(server)
        assert await server.start() == url
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await busy
        assert await query(url, "SELECT 1") == 1


def start_program(state: str) -> subprocess.Popen[bytes]:
    """A program of the same user as PostgreSQL's, in the state that is asked for."""
    program = subprocess.Popen(["sleep", "60"] if state == "running" else ["true"])
    if state == "zombie":
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    elif state == "dead":
        program.wait()
    return program


@pytest.mark.parametrize("state", ["running", "zombie", "dead"])
async def test_a_stale_process_number_does_not_hinder_the_start(data_dir: Path, state: str) -> None:
    """A pid file that names another program, a zombie or nobody is no server."""
    async with running(data_dir) as (server, _):
        pid_file = server.data_directory / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        owner = pid_file.stat()
    program = start_program(state)
    pid_file.write_text("\n".join([str(program.pid), *lines[1:]]) + "\n")
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    try:
        async with running(data_dir) as (_, url):
            assert await query(url, "SELECT 1") == 1
    finally:
        program.kill()
        program.wait()


def test_a_process_that_ends_while_it_is_looked_at_is_no_orphan() -> None:
    """Between two looks a process may lose its command line; it is on its way out, and nothing to clear away."""

    class Ending(psutil.Process):
        def name(self) -> str:
            return "postgres"

        def cmdline(self) -> list[str]:
            return []

    assert not postmaster._is_orphan(Ending(), os.getuid())


async def test_an_interrupted_first_start_leaves_nothing_in_the_way(data_dir: Path) -> None:
    """Half a cluster is thrown away and made anew."""
    half = data_dir / "postgres" / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with running(data_dir) as (_, url):
        assert await query(url, "SELECT 1") == 1
    assert not half.exists()


@pytest.mark.parametrize("name", ["long" * 30, "sp ace, 'quote' 100% ä:5432?x=1"])
async def test_any_directory_name_will_do(data_dir: Path, name: str) -> None:
    """Paths that no socket or URL can bear are worked around."""
    async with running(data_dir / name) as (_, url):
        sockets = Path(str(await query(url, "SHOW unix_socket_directories")))
        assert await query(url, "SELECT 1") == 1
        assert sockets.stat().st_mode & 0o077 == 0
    sockets.rmdir()


async def test_a_socket_directory_that_somebody_else_made_is_not_trusted(data_dir: Path) -> None:
    """Whoever owns the socket's directory could stand between us and the server."""
    long_path = data_dir / ("long" * 30)
    async with running(long_path) as (_, url):
        sockets = Path(str(await query(url, "SHOW unix_socket_directories")))
    sockets.chmod(0o777)
    error = await fail_to_start(long_path)
    assert isinstance(error, SettingError)
    assert str(sockets) in error.cause
    sockets.rmdir()


async def test_a_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    """Programs of another major version are not let near the data, and both versions are named."""
    async with running(data_dir) as (server, _):
        version = server.data_directory / "PG_VERSION"
        written = version.read_text()
    version.write_text("14\n")
    error = await fail_to_start(data_dir)
    assert isinstance(error, SettingError)
    assert "written by PostgreSQL 14" in error.cause
    assert "PostgreSQL 14" in error.remedy
    version.write_text(written)
    async with running(data_dir) as (_, url):
        assert await query(url, "SELECT 1") == 1


async def test_missing_programs_are_named_with_the_remedy(data_dir: Path) -> None:
    """Where there is no PostgreSQL, the error says how to get one."""
    error = await fail_to_start(data_dir, bin_dir=data_dir)
    assert isinstance(error, SettingError)
    assert "pip install" in error.remedy


async def test_a_data_directory_that_cannot_be_made_is_named(data_dir: Path) -> None:
    """Where the data cannot be written, the error names the directory and what to do."""
    (data_dir / "file").touch()
    error = await fail_to_start(data_dir / "file")
    assert isinstance(error, DatabaseUnavailable)
    assert str(data_dir / "file") in error.cause
    assert "DATA_DIR" in error.remedy


async def test_a_wrong_setting_is_quoted_from_the_servers_log(data_dir: Path) -> None:
    """When the server does not come up, the error says what the server said."""
    async with running(data_dir) as (server, _):
        (server.data_directory / "tuning.conf").write_text("shared_buffers = 'plenty'\n")
    error = await fail_to_start(data_dir)
    assert isinstance(error, DatabaseUnavailable)
    assert "shared_buffers" in error.cause


async def test_the_log_is_rotated(data_dir: Path) -> None:
    """A log that has grown is moved aside at the next start."""
    async with running(data_dir) as (server, _):
        pass
    os.truncate(server.log_file, MAX_LOG_BYTES + 1)
    async with running(data_dir):
        assert server.log_file.stat().st_size < MAX_LOG_BYTES
    assert server.log_file.with_suffix(".log.1").exists()


async def test_a_server_out_of_sight_is_left_alone(data_dir: Path) -> None:
    """A cluster whose socket answers is in use, though its process cannot be seen, and is not started again."""
    async with running(data_dir) as (server, url):
        pid_file = server.data_directory / "postmaster.pid"
        written = pid_file.read_text()
        pid_file.write_text(written.replace(written.split("\n", 1)[0], "1", 1))
        with pytest.raises(DatabaseUnavailable, match="in use"):
            await EmbeddedServer(data_dir).start()
        pid_file.write_text(written)
        assert await query(url, "SELECT 1") == 1
