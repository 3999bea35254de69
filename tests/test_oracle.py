"""Random chains of snapshots, with edits by hand in between, against a brute-force oracle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import SourceInvalid
from tests.engine import Engine, Key, Row, State, assert_holds, parse, respelled

KEYS = range(1, 9)
BACKGROUND = range(100, 125)
"""Records that stand in every snapshot, enough of them for a source that respells all to be noticed."""

FIELDS = ("a", "b", "weird \"field'; %s")

literals = st.one_of(
    st.sampled_from([
        "null", "true", "false", "0", "1", "-1", "1.0", "1e2", "0.5", "-0.0", "9223372036854775807",
        "9223372036854775808", "0.1234567890123456789", "1e300", '""', '"x"', '"\\u00e9\\n\\"\\\\"',
        '"2024-02-29T12:00:00Z"', '"2024-02-29t12:00:00.5+02:00"', '"2024-02-30T00:00:00Z"', "[]", "{}",
        '[1, "2", null]', '{"x": {"y": [1.50]}}', '{"b": 1, "a": 2}', '{"a": 2, "b": 1}',
    ]),
    st.text(max_size=5).filter(lambda text: "\0" not in text).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.integers(-(2**70), 2**70).map(str),
)  # fmt: skip

keys = st.sampled_from(KEYS)
fields = st.sampled_from(FIELDS)

LONG_NUMBER = "9" * 5000
"""Python refuses to read it, and so the record does not tell its key."""

BAD_VALUES = ('"\\u0000"', "1e999", '"\\udc00"', LONG_NUMBER)
UNIDENTIFIED = ('{"id": null}', '{"a": 1}', '{"id": 1.5}', "7", '{"id": [1]}')

EDITS = (
    "DELETE FROM {table} WHERE id = {key}",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "UPDATE {table} SET id = id + 1000 WHERE id = {key}",
    "UPDATE {table} SET _sync_deleted_at = now() WHERE id = {key}",
    "UPDATE {table} SET _sync_deleted_at = NULL",
    "UPDATE {table} SET _sync_fingerprint = NULL WHERE id = {key}",
    "UPDATE {table} SET _sync_fingerprint = (SELECT max(_sync_fingerprint::text)::uuid FROM {table}) WHERE id = {key}",
    "UPDATE {table} SET a = NULL WHERE id = {key}",
    "UPDATE {table} SET a = (SELECT a FROM {table} WHERE id = 100) WHERE id = {key}",
    "INSERT INTO {table} (id) VALUES ({key}) ON CONFLICT DO NOTHING",
    "INSERT INTO {table} (id, _sync_deleted_at) VALUES ({key}, now()) ON CONFLICT DO NOTHING",
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS own text DEFAULT 'own'",
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """How one snapshot differs from the one before it, and what happens to the mirror before it is fetched."""

    set: list[tuple[int, str, str]]
    drop: list[int]
    duplicate: list[tuple[int, str, str, bool]]
    """Key, field and value of a second record, and whether it stands before all others."""
    bad: list[tuple[int, str]]
    """Records that cannot be stored, in place of those with their keys."""
    unidentified: list[str]
    reverse: bool
    empty: bool
    edits: list[tuple[str, int]]


steps = st.builds(
    Step,
    set=st.lists(st.tuples(keys, fields, literals), max_size=6),
    drop=st.lists(keys, max_size=3),
    duplicate=st.lists(st.tuples(keys, fields, literals, st.booleans()), max_size=2),
    bad=st.lists(st.tuples(keys, st.sampled_from(BAD_VALUES)), max_size=1),
    unidentified=st.lists(st.sampled_from(UNIDENTIFIED), max_size=1),
    reverse=st.booleans(),
    empty=st.sampled_from([False] * 9 + [True]),
    edits=st.lists(st.tuples(st.sampled_from(EDITS), keys), max_size=2),
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is served, and what a mirror has to make of it."""

    body: bytes
    good: dict[Key, dict[str, Any]]
    """The records that can be stored, the last of each key."""
    bad: set[Key]
    """Keys of the others, where they can be made out."""
    unidentified: bool
    """Whether a bad record does not tell its key."""


@dataclass(kw_only=True)
class Chain:
    """The records as the steps leave them: field names and literals by key."""

    records: dict[int, dict[str, str]] = field(
        default_factory=lambda: {number: {"a": f"{number}.25"} for number in BACKGROUND}
    )

    def snapshot(self, step: Step) -> Snapshot:
        """Make a step."""
        for number, name, literal in step.set:
            self.records.setdefault(number, {})[name] = literal
        for number in step.drop:
            self.records.pop(number, None)
        if step.empty:
            return Snapshot(body=b"[]", good={}, bad=set(), unidentified=False)
        bad = dict(step.bad)
        texts = [_spell(number, record, step) for number, record in self.records.items() if number not in bad]
        for number, name, literal, first in step.duplicate:
            texts.insert(0 if first else len(texts), _spell(number, {name: literal}, step))
        good = [parse(text) for text in texts]
        texts += [_spell(number, {"b": literal}, step) for number, literal in bad.items()] + step.unidentified
        return Snapshot(
            body=f"[{', '.join(texts)}]".encode(),
            good={(record["id"],): record for record in good},
            bad={(number,) for number, literal in bad.items() if literal != LONG_NUMBER},
            unidentified=bool(step.unidentified) or LONG_NUMBER in bad.values(),
        )


def _spell(number: int, record: Mapping[str, str], step: Step) -> str:
    pairs = [("id", str(number)), *record.items()]
    texts = [f"{json.dumps(name)}: {value}" for name, value in pairs]
    return f"{{{', '.join(reversed(texts) if step.reverse else texts)}}}"


async def edit(engine: Engine, step: Step) -> None:
    """Edit the mirror by hand, as far as it has what is to be edited."""
    columns = (await engine.stored())[0]
    for statement, key in step.edits:
        if columns and ("a = " not in statement or "a" in columns):
            with suppress(asyncpg.UniqueViolationError):
                await engine.edit(statement.replace("{key}", str(key)))


async def check_step(engine: Engine, snapshot: Snapshot) -> None:
    """Sync a snapshot, and assert that the mirror is what it has to be."""
    before = await engine.state()
    live = {key: row.values for key, row in before.rows.items() if not row.deleted}
    if not before.rows and not snapshot.good and (snapshot.bad or snapshot.unidentified):
        with pytest.raises(SourceInvalid):
            await engine.sync(snapshot.body)
        return
    report = await engine.sync(snapshot.body)
    after = await engine.state()
    missing = live.keys() - snapshot.good.keys()
    holds = snapshot.unidentified or snapshot.body == b"[]"
    assert report.counts.held == (len(missing - snapshot.bad) if holds else 0)
    kept = missing if holds else missing & snapshot.bad
    assert_holds(after, {**snapshot.good, **{key: _as_kept(live[key], after.rows[key], before, after) for key in kept}})
    await _finish_switch(engine)
    await engine.check_idle()


def _as_kept(values: dict[str, Any], row: Row, before: State, after: State) -> dict[str, Any]:
    """Return the values of a row that was left alone; only instants are spelled otherwise in a wider column."""
    return {name: row.values[name] if name in respelled(before, after) else value for name, value in values.items()}


async def _finish_switch(engine: Engine) -> None:
    """Let the run come that stores fingerprints of another kind, if the last one decided on it."""
    query = "SELECT fingerprint_kind <> stored_kind FROM lockstep.mirrors WHERE name = $1"
    if await engine.sql.fetchval(query, engine.mirror):
        assert (await engine.sync()).status in ("unchanged", "held")


tables = (f"chain_{number}" for number in itertools.count())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=2, max_size=6))
async def test_chains_of_snapshots_come_out_right(engine: Engine, chain: list[Step]) -> None:
    """Whatever a source serves one time after the other, and whatever is done by hand in between, each run is right."""
    engine.configure(table=next(tables), max_delete_rows=1000)
    records = Chain()
    for step in chain:
        await edit(engine, step)
        await check_step(engine, records.snapshot(step))
