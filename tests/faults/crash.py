"""The crash test: kill what the service consists of at random points, and hold the outcome against what it promises.

A real service mirrors a feed that changes with every fetch, into its embedded PostgreSQL. Now the service is killed,
now one of its database's backends, now the whole database, now both; all by SIGKILL. Meanwhile a reader looks at the
mirror every few milliseconds: it must always see exactly one version of the feed, and never an older one than before.

    python -m tests.faults.crash --kills 200 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import aiohttp
import asyncpg
import psutil
from aiohttp import web

from store import postmaster
from store.embedded import EmbeddedServer
from tests.postgres import connect, temporary_directory
from tests.service import free_port

HOUSE = Path(__file__).parents[2]

Victim = Literal["service", "backend", "database", "service and database"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)

RECORDS = 3_000
LARGEST_VALUE = 2**31
READER_SECONDS = 0.003
RETRY_SECONDS = 0.02
RECOVERY_SECONDS = 90.0
"""How long it may take from a kill to the next run that succeeds."""
SAME_AGAIN = 0.1
"""How many of the fetches bring nothing new."""

WHAT_A_READER_SEES = """
    SELECT count(*), COALESCE(sum(value), 0), COALESCE(sum(value * id), 0) FROM my_data WHERE _sync_deleted_at IS NULL
"""
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

Snapshot = dict[int, int]
"""Value by id."""
Sums = tuple[int, int, int]


def sums(snapshot: Snapshot) -> Sums:
    """Return what a reader sees of a snapshot; no mixture of two versions has the same."""
    return len(snapshot), sum(snapshot.values()), sum(number * value for number, value in snapshot.items())


class ChangingFeed:
    """A feed that is another one with nearly every fetch: rows change, go, come and come back."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.versions: list[Snapshot] = [{number: self._value() for number in range(1, RECORDS + 1)}]
        self.version_of: dict[Sums, int] = {(0, 0, 0): -1, sums(self.versions[0]): 0}
        self.stands_still = True
        self.asked = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve it on a port of its own."""
        application = web.Application()
        application.router.add_get("/feed", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/feed"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, _request: web.Request) -> web.Response:
        self.asked.set()
        if not self.stands_still and self._chance.random() > SAME_AGAIN:
            self._move_on()
        records = [{"id": number, "value": value} for number, value in self.versions[-1].items()]
        return web.Response(body=json.dumps(records).encode(), content_type="application/json")

    def _move_on(self) -> None:
        """Change a random share of the rows, from hardly any to all; let some go, come and come back."""
        snapshot, share = dict(self.versions[-1]), self._chance.random() ** 2
        for number in snapshot:
            if self._chance.random() < share:
                snapshot[number] = self._value()
        for number in self._chance.sample(sorted(snapshot), self._chance.randrange(RECORDS // 20)):
            del snapshot[number]
        while len(snapshot) < RECORDS:
            snapshot.setdefault(self._chance.randrange(1, 2 * RECORDS), self._value())
        self.versions.append(snapshot)
        self.version_of[sums(snapshot)] = len(self.versions) - 1

    def _value(self) -> int:
        return self._chance.randrange(LARGEST_VALUE)


@dataclass(kw_only=True)
class Figures:
    """What a round came to."""

    seed: int
    kills: Counter[Victim] = field(default_factory=Counter)
    in_transaction: int = 0
    """Kills that met the service in a transaction."""
    runs: Counter[str] = field(default_factory=Counter)
    versions: int = 0
    reader_checks: int = 0
    versions_seen: int = 0
    changes: int = 0
    recovery_seconds: dict[Victim, list[float]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})
    seconds: float = 0.0

    def markdown(self) -> str:
        """Return the figures as they stand in docs/reliability.md."""
        rows = "\n".join(
            f"| {victim} | {self.kills[victim]} | {_middle(times):.1f} s | {max(times, default=0):.1f} s |"
            for victim, times in self.recovery_seconds.items()
        )
        runs = ", ".join(f"{count} {status}" for status, count in sorted(self.runs.items()))
        return (
            f"`scripts/crash-test --kills {self.kills.total()} --seed {self.seed}`, {self.seconds:.0f} s:\n\n"
            "| killed | times | median recovery | longest recovery |\n| --- | --- | --- | --- |\n"
            f"{rows}\n\n"
            f"- {self.kills.total()} kills, {self.in_transaction} of them while the service had a transaction open\n"
            f"- runs by their end: {runs}\n"
            f"- {self.reader_checks:,} looks of the reader, which saw {self.versions_seen} of {self.versions} versions,"
            " each of them whole, none out of order\n"
            f"- {self.changes:,} changes in the journal, which replayed give the mirror\n"
        )


def _middle(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] if times else 0.0


class Service:
    """The service in a process of its own, which can be killed and started again."""

    def __init__(self, home: Path, feed: ChangingFeed) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._home = home
        self._settings = {
            "SOURCE_URL": feed.url,
            "DATA_DIR": str(home / "data"),
            "LOG_FILE": str(home / "app.log"),
            "PORT": str(port),
            "SETTLE_SECONDS": "0",
            "MAX_DELETE_SHARE": "1",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it is not waited for."""
        with (self._home / "console.log").open("ab") as console:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, HOUSE / "app.py",
                cwd=self._home, env={**os.environ, **self._settings}, stdout=console, stderr=console,
            )  # fmt: skip

    async def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._process
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """End it by SIGTERM and return its exit code."""
        assert self._process
        if self._process.returncode is None:
            self._process.terminate()
        return await self._process.wait()


class CrashTest:
    """One round: so many kills, and what is true afterwards."""

    def __init__(self, home: Path, *, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self._chance = random.Random(seed)
        self._feed = ChangingFeed(random.Random(seed + 1))
        self._home = home
        self._victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
        self._chance.shuffle(self._victims)
        self._say = say
        self._database = EmbeddedServer(home / "data")
        self._figures = Figures(seed=seed)
        self._succeeded = asyncio.Event()
        self._run_seconds = 0.3
        self._done = False

    async def carry_out(self) -> Figures:
        """Do all of it; AssertionError says what did not hold."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._feed.serve())
            self._url = await self._database.start()
            stack.push_async_callback(self._database.stop)
            self._service = Service(self._home, self._feed)
            await self._service.start()
            stack.push_async_callback(self._service.stop)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._call())
                await self._recover()
                self._feed.stands_still = False
                tasks.create_task(self._read())
                await self._kill_all()
                self._feed.stands_still = True
                await self._recover()
                await self._recover()
                self._done = True
            await self._check()
            assert await self._service.stop() == 0
        self._figures.seconds = time.monotonic() - began
        return self._figures

    async def _call(self) -> None:
        """Ask for one sync after the other, whatever becomes of them."""
        async with aiohttp.ClientSession(self._service.url) as client:
            while not self._done:
                self._feed.asked.clear()
                began = time.monotonic()
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with client.post("/sync_data") as response:
                        if response.status == 200:
                            self._run_seconds = time.monotonic() - began
                            self._succeeded.set()
                            continue
                await asyncio.sleep(RETRY_SECONDS)

    async def _recover(self) -> None:
        """Wait until a run succeeds that was called for from now on."""
        self._feed.asked.clear()
        async with asyncio.timeout(RECOVERY_SECONDS):
            await self._feed.asked.wait()
            self._succeeded.clear()
            await self._succeeded.wait()

    async def _read(self) -> None:
        """Look at the mirror all the time."""
        newest = 0
        seen: set[int] = set()
        while not self._done:
            try:
                async with self._connection() as connection:
                    while not self._done:
                        (found,) = await connection.fetch(WHAT_A_READER_SEES)
                        what = (int(found[0]), int(found[1]), int(found[2]))
                        assert what in self._feed.version_of, f"a reader saw what no version of the feed is: {what}"
                        version = self._feed.version_of[what]
                        assert version >= newest, f"a reader saw version {version} after version {newest}"
                        newest = version
                        seen.add(version)
                        self._figures.reader_checks += 1
                        await asyncio.sleep(READER_SECONDS)
            except LOST:
                await asyncio.sleep(RETRY_SECONDS)
        self._figures.versions_seen = len(seen)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        connection = await connect(self._url)
        try:
            yield connection
        finally:
            connection.terminate()

    async def _kill_all(self) -> None:
        for number, victim in enumerate(self._victims, start=1):
            self._feed.asked.clear()
            await self._feed.asked.wait()
            await asyncio.sleep(self._chance.uniform(0, 1.2) * self._run_seconds)
            killed = time.monotonic()
            await self._kill(victim)
            self._figures.kills[victim] += 1
            await self._recover()
            seconds = time.monotonic() - killed
            self._figures.recovery_seconds[victim].append(seconds)
            self._say(f"{number}/{len(self._victims)}: {victim} killed, recovered in {seconds:.1f} s")

    async def _kill(self, victim: Victim) -> None:
        backends = await self._backends()
        self._figures.in_transaction += any(backends.values())
        if victim == "backend":
            busy = [pid for pid, in_transaction in backends.items() if in_transaction] or list(backends)
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._chance.choice(busy)).kill()
        if victim in ("database", "service and database"):
            server = postmaster.find(self._database.data_directory)
            assert server
            server.kill()
        if victim in ("service", "service and database"):
            await self._service.kill()
            await self._service.start()

    async def _backends(self) -> dict[int, bool]:
        """Return the service's backends, and of each whether it is in a transaction."""
        async with self._connection() as connection:
            found = await connection.fetch(
                "SELECT pid, xact_start IS NOT NULL FROM pg_stat_activity WHERE application_name = 'lockstep'"
            )
        return dict(found)

    async def _check(self) -> None:
        """Hold the mirror, the journal and the runs against the feed; nothing is called any more."""
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT id, value, _sync_deleted_at IS NULL FROM my_data")
            changes = await connection.fetch("SELECT run, op, key, changes FROM lockstep.changes ORDER BY seq")
            runs = dict(await connection.fetch("SELECT id, status FROM lockstep.runs"))
        mirror = {number: (value, live) for number, value, live in rows}
        live = {number: value for number, (value, is_live) in mirror.items() if is_live}
        assert live == self._feed.versions[-1], "the live rows are not the last version"
        assert replay(self._feed.versions[0], changes) == mirror, "the journal does not lead to the mirror"
        assert {runs[change["run"]] for change in changes} == {"succeeded"}, "a run that came to nothing is journaled"
        assert "running" not in runs.values(), "a run was left behind"
        assert runs[max(runs)] == "unchanged", "a run over what is mirrored already has written"
        self._figures.runs = Counter(runs.values())
        self._figures.changes = len(changes)
        self._figures.versions = len(self._feed.versions)


def replay(first: Snapshot, changes: list[Any]) -> dict[int, tuple[Any, bool]]:
    """Apply the journal to the first load, demanding that every entry finds what it says it changes."""
    rows: dict[int, tuple[Any, bool]] = {number: (value, True) for number, value in first.items()}
    done: set[tuple[int, int]] = set()
    for run, op, key, values in changes:
        number, changed = json.loads(key)["id"], json.loads(values)
        assert (run, number) not in done, f"run {run} journaled row {number} twice"
        done.add((run, number))
        value, live = rows.get(number, (None, False))
        old, new = changed.get("value", (value, value))
        assert old == value, f"run {run} says that row {number} was {old}, but it was {value}"
        assert live == (op in ("updated", "deleted")), f"run {run} {op} row {number}"
        assert (number in rows) == (op != "created"), f"run {run} {op} row {number}"
        rows[number] = (value, False) if op == "deleted" else (new, True)
    return rows


async def crash_test(*, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Figures:
    """Run a round in a directory of its own."""
    with temporary_directory() as home:
        try:
            return await CrashTest(home, kills=kills, seed=seed, say=say).carry_out()
        except BaseException:
            with suppress(OSError):
                say((home / "console.log").read_text(encoding="utf-8")[-5_000:])
            raise


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Run a round as the command line says and print its figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    given = parser.parse_args()
    _say(f"seed {given.seed}")
    figures = asyncio.run(crash_test(kills=given.kills, seed=given.seed, say=_say))
    sys.stdout.write(figures.markdown())


if __name__ == "__main__":
    main()
