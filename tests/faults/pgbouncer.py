"""pgbouncer, in transaction mode, between the tests and their PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url

from tests.faults.packages import install
from tests.postgres import connect, temporary_directory
from tests.service import free_port

PROGRAM = "pgbouncer"
SERVER_CONNECTIONS = 4
"""Per database: fewer than the service's own pool has, so that transactions do change places."""

SETTINGS = """\
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users.txt
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
logfile = {home}/pgbouncer.log
pidfile =
"""


def find_program() -> str:
    """Return the path of pgbouncer, installed if need be; skip the test where it is missing."""
    if _which() is None:
        install(PROGRAM)
    found = _which()
    if found is None:
        pytest.skip("pgbouncer is not installed; install it (apt-get install pgbouncer) to run these tests")
    return found


def _which() -> str | None:
    return shutil.which(PROGRAM, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@asynccontextmanager
async def pooler(server_url: str) -> AsyncIterator[URL]:
    """Run pgbouncer before a server; yield its URL, on which any database of the server can be set."""
    program, port, server = find_program(), free_port(), make_url(server_url)
    with temporary_directory() as home:
        (home / "users.txt").write_text(f'"{server.username}" ""\n', encoding="utf-8")
        settings = SETTINGS.format(target=_target(server), home=home, port=port, server_connections=SERVER_CONNECTIONS)
        (home / "pgbouncer.ini").write_text(settings, encoding="utf-8")
        url = make_url(f"postgresql+asyncpg://{server.username}@127.0.0.1:{port}/postgres")
        with _running([program, "-q", str(home / "pgbouncer.ini")], home, owner=_owner(server)):
            await _until_it_answers(url, home)
            yield url


def _target(server: URL) -> str:
    """Return where the server is, as pgbouncer spells it."""
    host = server.query.get("host") or server.host or "127.0.0.1"
    parts = {"host": host, "port": server.port or 5432, "user": server.username, "password": server.password}
    return " ".join(f"{name}={value}" for name, value in parts.items() if value)


def _owner(server: URL) -> str | None:
    """Return who runs pgbouncer, if not we: it refuses root, and only its owner may enter a private socket."""
    if os.geteuid() != 0:
        return None
    directory = server.query.get("host")
    return pwd.getpwuid(Path(str(directory)).stat().st_uid).pw_name if directory else "nobody"


@contextmanager
def _running(command: list[str], home: Path, *, owner: str | None) -> Iterator[None]:
    if owner is not None:
        shutil.chown(home, owner)
    process = subprocess.Popen(command, user=owner, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def _until_it_answers(url: URL, home: Path) -> None:
    for _ in range(100):
        try:
            connection = await connect(url)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            await connection.close()
            return
    pytest.fail(f"pgbouncer does not answer: {(home / 'pgbouncer.log').read_text(encoding='utf-8')}")
