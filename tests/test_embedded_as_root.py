"""What the embedded server does for root, as whom PostgreSQL refuses to run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from errors import SettingError
from store import binaries, postmaster
from store.embedded import EmbeddedServer
from tests.embedded import fail_to_start, pid_of, query, running
from tests.postgres import temporary_directory

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends the server to another user")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for one server."""
    with temporary_directory() as directory:
        yield directory


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A disk at `directory` on which no cluster has room."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", directory], check=False).returncode:
        pytest.skip("no right to mount a disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


async def test_a_full_disk_is_named(data_dir: Path) -> None:
    """A first start on a disk that fills up leaves no cluster behind and says why."""
    with small_disk(data_dir):
        error = await fail_to_start(data_dir)
        assert "No space left on device" in error.cause
        assert not (data_dir / "postgres" / "cluster").exists()


async def test_root_keeps_its_data_where_the_server_can_reach_it(data_dir: Path) -> None:
    """Under a home of mode 0700 the cluster is sheltered elsewhere, and the next start finds it there."""
    data_dir.chmod(0o700)
    try:
        async with running(data_dir) as (server, url):
            await query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert not server.data_directory.is_relative_to(data_dir)
        async with running(data_dir) as (_, url):
            assert await query(url, "SELECT answer FROM kept") == 42
    finally:
        shutil.rmtree(server.data_directory.parent)
    error = await fail_to_start(data_dir)
    assert isinstance(error, SettingError)
    assert str(server.data_directory.parent) in error.cause


async def test_a_sheltered_server_outlives_the_loss_of_its_directory_and_is_ended_by_the_next(data_dir: Path) -> None:
    """Deleting DATA_DIR under a sheltered server neither doubles it nor leaves it behind for ever."""
    lost, other = data_dir / "lost", data_dir / "other"
    data_dir.chmod(0o700)
    forgotten = EmbeddedServer(lost)
    url = await forgotten.start()
    number = pid_of(forgotten)
    shutil.rmtree(lost)
    try:
        assert await forgotten.start() == url
        assert pid_of(forgotten) == number
        async with running(other) as (server, _):
            while postmaster.find(forgotten.data_directory):
                os.sched_yield()
        await forgotten.start()
        shutil.rmtree(lost)
        await forgotten.stop()
        assert postmaster.state(forgotten.data_directory) == "absent"
    finally:
        shutil.rmtree(forgotten.data_directory.parent)
        shutil.rmtree(server.data_directory.parent)


async def test_root_says_what_to_do_when_the_data_has_become_unreachable(data_dir: Path) -> None:
    """A cluster that was moved out of the server's reach is neither ignored nor replaced by an empty one."""
    async with running(data_dir):
        pass
    data_dir.chmod(0o700)
    error = await fail_to_start(data_dir)
    assert isinstance(error, SettingError)
    assert "chmod o+x" in error.remedy


async def test_root_copies_programs_that_the_server_cannot_reach(data_dir: Path) -> None:
    """Programs in a virtual environment under a home of mode 0700 are copied to where the server can run them."""
    with temporary_directory() as home:
        bin_dir = copy_programs(home)
        home.chmod(0o700)
        for _ in ("first", "later"):
            async with running(data_dir, bin_dir=bin_dir) as (server, url):
                assert await query(url, "SELECT 1") == 1
                assert Path(psutil.Process(pid_of(server)).exe()).is_relative_to(data_dir)


async def test_root_says_what_to_do_when_even_a_copy_does_not_run(data_dir: Path) -> None:
    """Programs that cannot be copied whole are named, with the remedy."""
    with temporary_directory() as home:
        bin_dir = copy_programs(home)
        (bin_dir / "initdb").write_text("#!/nonexistent/interpreter\n")
        error = await fail_to_start(data_dir, bin_dir=bin_dir)
    assert isinstance(error, SettingError)
    assert str(bin_dir) in error.cause


def copy_programs(home: Path) -> Path:
    """Copy the installed programs, laid out as in a virtual environment, and say where."""
    found = binaries.find_binaries(None, major=None, account=None, refuge=home, owner=home).directory
    package = found.parent.parent
    shutil.copytree(found.parent, home / found.relative_to(package.parent).parent, symlinks=True)
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, home / libraries.name)
    return home / found.relative_to(package.parent)
