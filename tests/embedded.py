"""Helpers of the tests that start embedded servers of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from errors import LockstepError
from store import postmaster
from store.embedded import EmbeddedServer
from tests.postgres import connect


@asynccontextmanager
async def running(data_dir: Path, *, bin_dir: Path | None = None) -> AsyncIterator[tuple[EmbeddedServer, str]]:
    """A started server and its URL, stopped afterwards."""
    server = EmbeddedServer(data_dir, bin_dir=bin_dir)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


async def query(url: str, statement: str, *arguments: object) -> object:
    """The single value that `statement` gives."""
    connection = await connect(url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


def pid_of(server: EmbeddedServer) -> int:
    """The number of the running server's process."""
    found = postmaster.find(server.data_directory)
    assert found
    return found.pid


async def fail_to_start(data_dir: Path, *, bin_dir: Path | None = None) -> LockstepError:
    """The error of a start that must fail, after which nothing is left running or held."""
    server = EmbeddedServer(data_dir, bin_dir=bin_dir)
    with pytest.raises(LockstepError) as caught:
        await server.start()
    assert postmaster.state(server.data_directory) == "absent"
    await server.stop()
    return caught.value
