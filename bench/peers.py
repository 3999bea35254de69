"""Other tools at the same task, installed by the bench into a virtual environment of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.database import Database
from bench.feed import ALL, BASE, CACHE, FEW, Variant, feed_file, item_of

PACKAGES = (
    "dlt[postgres]==1.31.0",
    "orjson==3.13.0",
    "pyarrow==26.0.1",
    "sling==1.4.11",
    "sling-linux-amd64==1.4.11",
    "sqlalchemy==2.1.9",
    "psycopg2-binary==2.9.13",
)
ENVIRONMENT = CACHE / "peers-venv"
HERE = Path(__file__).parent
MEMORY_POLL_SECONDS = 0.05
LIMIT_SECONDS = 300.0
"""A run that takes longer is given up, and with it the steps that would follow."""

ORM_RECORDS = 100_000
CHANGED_IDENTITY = FEW.changed_every + 1
"""A record that differs between the base and the variant with few changes; it proves that a peer did its work."""

STEPS: tuple[tuple[str, Variant], ...] = (("first", BASE), ("same", BASE), ("few", FEW))
"""The runs each peer is measured at, in this order, on one table."""


class PeerFailed(Exception):
    """A peer ended with an error, or did not do what it was measured at."""


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    seconds: float
    peak_bytes: int
    finished: bool = True


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool, how one run of it is started, and where its rows can be looked at afterwards."""

    name: str
    label: str
    command: Callable[[Path, Database, Path], list[str]]
    """From feed file, database and working directory to the command line."""
    prints_seconds: bool = True
    """Whether it times itself, without the start of its interpreter; otherwise the process is timed."""
    table: str = "mirror"
    live: str = "true"
    """The condition that picks the rows that hold now."""
    max_records: int | None = None


def python(script: str, feed: Path, database_url: str, *arguments: str) -> list[str]:
    return [str(ENVIRONMENT / "bin" / "python"), str(HERE / script), str(feed), database_url, *arguments]


def dlt_command(strategy: str, kind: str) -> Callable[[Path, Database, Path], list[str]]:
    def command(feed: Path, database: Database, directory: Path) -> list[str]:
        # dlt insists on a host and a password, even where a socket and "trust" make both needless.
        url = database.url.set(host=database.url.host or "localhost", password=database.url.password or "unused")
        address = Database(url=url).address()
        return python("peer_dlt.py", feed, address, strategy, kind, str(directory))

    return command


def sling_command(feed: Path, database: Database, _directory: Path) -> list[str]:
    package = next(ENVIRONMENT.glob("lib/python3*/site-packages/sling_linux_amd64"))
    # The binary itself: the Python wrapper would look for it on the internet first.
    return [
        *(str(package / "bin" / "sling-linux-amd64"), "run", "--mode", "incremental", "--primary-key", "id"),
        *("--src-stream", f"file://{feed}", "--src-options", '{"flatten": true}'),
        *("--tgt-conn", Database(url=database.url.update_query_dict({"sslmode": "disable"})).address()),
        *("--tgt-object", "public.mirror"),
    ]


def orm_command(feed: Path, database: Database, _directory: Path) -> list[str]:
    return python("peer_orm.py", feed, database.address("postgresql+psycopg2"))


PEERS = (
    Peer(name="dlt-upsert", label="dlt, merge/upsert", command=dlt_command("upsert", "rows"), table="peer.mirror"),
    Peer(
        name="dlt-scd2",
        label="dlt, merge/scd2",
        command=dlt_command("scd2", "rows"),
        table="peer.mirror",
        live="_dlt_valid_to IS NULL",
    ),
    Peer(
        name="dlt-arrow",
        label="dlt, merge/upsert, fed Arrow tables",
        command=dlt_command("upsert", "arrow"),
        table="peer.mirror",
    ),
    Peer(name="sling", label="Sling, incremental", command=sling_command, prints_seconds=False),
    Peer(name="orm", label="ORM loop", command=orm_command, max_records=ORM_RECORDS),
)


async def install_peers() -> None:
    """Make the peers' virtual environment, unless it holds these very packages already."""
    stamp = ENVIRONMENT / "packages.sha256"
    wanted = hashlib.sha256("\n".join((sys.version, *PACKAGES)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    await run_quietly([sys.executable, "-m", "venv", str(ENVIRONMENT)])
    await run_quietly([str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES])
    stamp.write_text(wanted)


async def run_quietly(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise PeerFailed(f"{command[0]} ended with {process.returncode}: {output.decode()[-2000:]}")


async def measure_peer(peer: Peer, root: Database, records: int) -> AsyncIterator[tuple[str, PeerRun]]:
    """Yield the name and the cost of each step, run one after the other on one fresh database."""
    records = min(records, peer.max_records or records)
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as directory:
        async with root.scratch(f"bench_{peer.name}") as database:
            for step, variant in STEPS:
                feed = feed_file(records, variant, "jsonl")
                await database.settle(vacuum=True)
                run = await time_peer(peer, peer.command(feed, database, Path(directory)), Path(directory))
                yield step, run
                if not run.finished:
                    return
                await prove_done(peer, database, variant)


async def time_peer(peer: Peer, command: list[str], home: Path) -> PeerRun:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SLING_HOME_DIR": str(home),
        "SLING_DISABLE_TELEMETRY": "TRUE",
        "RUNTIME__DLTHUB_TELEMETRY": "false",
    }
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=home,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    watch = asyncio.create_task(watch_memory(process.pid))
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return PeerRun(seconds=LIMIT_SECONDS, peak_bytes=await watch, finished=False)
    seconds = time.perf_counter() - start
    peak_bytes = await watch
    if process.returncode:
        raise PeerFailed(f"{peer.label} ended with {process.returncode}: {(output + errors).decode()[-2000:]}")
    if peer.prints_seconds:
        seconds = float(output.split()[-1])
    return PeerRun(seconds=seconds, peak_bytes=peak_bytes)


async def watch_memory(pid: int) -> int:
    """Return the largest resident set seen until the process ends."""
    peak = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(MEMORY_POLL_SECONDS)
    return peak


async def prove_done(peer: Peer, database: Database, variant: Variant) -> None:
    """Raise PeerFailed unless the row of a changed record bears the price that it should have now."""
    wanted = item_of(CHANGED_IDENTITY, 1 if variant in (FEW, ALL) else 0).cents / 100
    statement = f"SELECT price::double precision FROM {peer.table} WHERE id = $1 AND {peer.live}"  # noqa: S608 - our constants
    async with database.connect() as connection:
        found = await connection.fetchval(statement, CHANGED_IDENTITY)
    if found != wanted:
        raise PeerFailed(f"{peer.label} left the price {found} in record {CHANGED_IDENTITY}; it should be {wanted}")
