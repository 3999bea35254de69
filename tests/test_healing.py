"""What runs rely on: fingerprints and 304s, as long as nobody edits the mirror by hand and the source spells alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from models import Counts
from tests.engine import Engine, dump

SNAPSHOT: Sequence[dict[str, Any]] = [
    {"id": number, "name": f"n{number}", "price": number / 4, "at": "2024-01-01T00:00:00Z"} for number in range(1, 21)
]

EDITS = {
    "a value": ["UPDATE {table} SET name = 'edited' WHERE id = 3"],
    "a value to null": ["UPDATE {table} SET name = NULL WHERE id = 3"],
    "all values": ["UPDATE {table} SET price = price + 1"],
    "a value there and back": [
        "UPDATE {table} SET name = 'edited' WHERE id = 3",
        "UPDATE {table} SET name = 'n3' WHERE id = 3",
    ],
    "a key": ["UPDATE {table} SET id = 300 WHERE id = 3"],
    "two keys exchanged": [
        "UPDATE {table} SET id = -3 WHERE id = 3",
        "UPDATE {table} SET id = 3 WHERE id = 4",
        "UPDATE {table} SET id = 4 WHERE id = -3",
    ],
    "a row deleted": ["DELETE FROM {table} WHERE id = 3"],
    "all rows deleted": ["DELETE FROM {table}"],
    "table emptied": ["TRUNCATE {table}"],
    "a row inserted": ["INSERT INTO {table} (id, name) VALUES (300, 'mine')"],
    "a row deleted and inserted": [
        "DELETE FROM {table} WHERE id = 3",
        "INSERT INTO {table} (id, name) VALUES (3, 'mine')",
    ],
    "a copied fingerprint": [
        "INSERT INTO {table} (id, name, _sync_fingerprint) SELECT 300, 'x', _sync_fingerprint FROM {table} WHERE id = 3"
    ],
    "a row buried": ["UPDATE {table} SET _sync_deleted_at = now() WHERE id = 3"],
    "a row dug up": ["UPDATE {table} SET _sync_deleted_at = NULL WHERE id = 21"],
    "a tombstone's value": ["UPDATE {table} SET name = 'rip' WHERE id = 21"],
    "a tombstone removed": ["DELETE FROM {table} WHERE id = 21"],
    "a fingerprint taken": ["UPDATE {table} SET _sync_fingerprint = NULL WHERE id = 3"],
    "all fingerprints taken": ["UPDATE {table} SET _sync_fingerprint = NULL"],
    "a fingerprint invented": ["UPDATE {table} SET _sync_fingerprint = gen_random_uuid() WHERE id = 3"],
    "triggers dropped and a row deleted": [
        "DROP TRIGGER lockstep_forget ON {table}",
        "DROP TRIGGER lockstep_note ON {table}",
        "DELETE FROM {table} WHERE id = 3",
    ],
    "triggers disabled and a row inserted": [
        "ALTER TABLE {table} DISABLE TRIGGER ALL",
        "INSERT INTO {table} (id, name) VALUES (300, 'mine')",
    ],
    "a column of another type": [
        "DROP VIEW my_data_live",
        "DROP TRIGGER lockstep_forget ON {table}",
        "ALTER TABLE {table} ALTER COLUMN price TYPE numeric(10,3)",
    ],
    "a rounding column": [
        "DROP VIEW my_data_live",
        "DROP TRIGGER lockstep_forget ON {table}",
        "ALTER TABLE {table} ALTER COLUMN price TYPE numeric(10,2)",
    ],
    "a column dropped": ["ALTER TABLE {table} DROP COLUMN name CASCADE"],
    "a column added": ["ALTER TABLE {table} ADD COLUMN own text NOT NULL DEFAULT 'mine'"],
    "the primary key dropped": ["ALTER TABLE {table} DROP CONSTRAINT my_data_pkey"],
    "a bookkeeping column dropped": ["ALTER TABLE {table} DROP COLUMN _sync_fingerprint CASCADE"],
    "the table dropped": ["DROP TABLE {table} CASCADE"],
}


async def load(engine: Engine) -> None:
    """Mirror the snapshot, with a tombstone beside it."""
    await engine.sync([*SNAPSHOT, {"id": 21, "name": "gone"}])
    await engine.sync(SNAPSHOT)


class TestBetweenRuns:
    @pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS.keys())
    async def test_the_next_run_puts_it_right(self, engine: Engine, edits: Sequence[str]) -> None:
        """Whatever is done to a mirror by hand, the next run makes it right, though the source had a 304."""
        await load(engine)
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        assert (await engine.sync()).not_modified
        await engine.edit(*edits)
        await engine.sync()
        await engine.check()

    async def test_a_fingerprint_of_another_row_is_replaced(self, engine: Engine) -> None:
        """Rows that share a fingerprint get their own again, so that fingerprints can be relied on from then on."""
        await load(engine)
        first = f"(SELECT _sync_fingerprint FROM {engine.table} WHERE id = 1)"
        await engine.edit(f"UPDATE {{table}} SET _sync_fingerprint = {first} WHERE id = 2")
        assert (await engine.sync()).status == "unchanged"
        assert await engine.sql.fetchval(f"SELECT count(DISTINCT _sync_fingerprint) FROM {engine.table}") == 21
        await engine.check()

    async def test_the_users_own_columns_are_no_concern(self, engine: Engine) -> None:
        """A write to a column that is not the source's leaves the fingerprint where it is."""
        await load(engine)
        await engine.edit("ALTER TABLE {table} ADD COLUMN own text", "UPDATE {table} SET own = 'mine'")
        assert await engine.sql.fetchval(f"SELECT count(_sync_fingerprint) FROM {engine.table}") == 21
        await engine.check()
        assert await engine.sql.fetchval(f"SELECT count(*) FROM {engine.table} WHERE own = 'mine'") == 21

    async def test_an_edit_that_is_right_already_is_not_journaled(self, engine: Engine) -> None:
        """A row that was edited to what the source says now has not changed for the run."""
        await load(engine)
        await engine.edit("UPDATE {table} SET name = 'new' WHERE id = 3")
        report = await engine.sync([{**record, "name": "new"} if record["id"] == 3 else record for record in SNAPSHOT])
        assert report.counts == Counts(records=20, unchanged=20)
        await engine.check()

    async def test_a_foreign_write_that_is_rolled_back_is_none(self, engine: Engine) -> None:
        """What was rolled back leaves no note, so a 304 is trusted still."""
        await load(engine)
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        transaction = engine.sql.transaction()
        await transaction.start()
        await engine.edit("DELETE FROM {table}")
        await transaction.rollback()
        assert (await engine.sync()).not_modified

    async def test_whoever_writes_needs_no_rights_on_the_service(self, engine: Engine) -> None:
        """A user with rights on the mirror alone can edit it, and the edit is noticed."""
        await load(engine)
        await engine.edit(
            "DROP ROLE IF EXISTS lockstep_test_editor",
            "CREATE ROLE lockstep_test_editor",
            "GRANT SELECT, UPDATE, INSERT, DELETE ON {table} TO lockstep_test_editor",
            "SET ROLE lockstep_test_editor",
        )
        try:
            await engine.edit("UPDATE {table} SET name = 'edited' WHERE id = 3", "DELETE FROM {table} WHERE id = 4")
        finally:
            await engine.edit("RESET ROLE", "DROP OWNED BY lockstep_test_editor", "DROP ROLE lockstep_test_editor")
        report = await engine.sync()
        assert (report.counts.updated, report.counts.created) == (1, 1)
        await engine.check()

    async def test_columns_are_watched_as_they_come(self, engine: Engine) -> None:
        """An edit of a column that was added later is noticed too."""
        await engine.sync([{"id": 1, "a": 1}])
        await engine.sync([{"id": 1, "a": 1, "b": 1}])
        await engine.edit("UPDATE {table} SET b = 2")
        report = await engine.sync()
        assert report.counts == Counts(records=1, updated=1)
        await engine.check()


class TestDuringRuns:
    @pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS.keys())
    @pytest.mark.parametrize("changed", [False, True], ids=["nothing else", "records changed"])
    async def test_an_edit_while_the_source_answers(
        self, engine: Engine, edits: Sequence[str], *, changed: bool
    ) -> None:
        """An edit between the reading of the fingerprints and the writing does not make the run wrong."""
        await load(engine)
        records = [{**record, "name": "new"} if changed and record["id"] % 3 == 0 else record for record in SNAPSHOT]
        async with engine.syncing(records) as run:
            await engine.edit(*edits)
        await run
        await engine.check()


class TestConditionalRequests:
    async def test_an_etag_is_honoured(self, engine: Engine) -> None:
        """A source that has not changed answers with 304, and nothing is read or written."""
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        before = await engine.stored()
        report = await engine.sync()
        assert engine.feed.requests[-1].headers["if-none-match"] == '"1"'
        assert (report.status, report.not_modified, report.body_bytes) == ("unchanged", True, 0)
        assert report.counts == Counts(records=20, unchanged=20)
        assert await engine.stored() == before

    async def test_a_date_is_honoured(self, engine: Engine) -> None:
        """Last-Modified serves as well."""
        engine.serve(SNAPSHOT, last_modified="Mon, 01 Jan 2024 00:00:00 GMT")
        await engine.sync()
        assert (await engine.sync()).not_modified

    async def test_a_new_version_is_fetched(self, engine: Engine) -> None:
        """Another ETag brings the new records."""
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        engine.serve(SNAPSHOT[1:], etag='"2"')
        report = await engine.sync()
        assert report.counts == Counts(records=19, unchanged=19, deleted=1)
        assert (await engine.sync()).not_modified

    async def test_a_hold_is_not_hidden(self, engine: Engine) -> None:
        """As long as deletions are held, the source is asked for everything."""
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        engine.serve([], etag='"2"')
        for _ in range(2):
            report = await engine.sync()
            assert (report.status, report.counts.held, report.not_modified) == ("held", 20, False)

    async def test_rejected_records_are_not_hidden(self, engine: Engine) -> None:
        """As long as records are rejected, each run says so."""
        engine.serve([*SNAPSHOT, {"id": 99, "name": "\0"}], etag='"1"')
        for _ in range(2):
            report = await engine.sync()
            assert (report.counts.rejected, report.not_modified) == (1, False)

    @pytest.mark.parametrize(
        "option",
        [{"types": {"price": "numeric"}}, {"nul_characters": "strip"}, {"records": ("x",)}, {"key": ("name",)}],
    )
    async def test_other_options_call_for_the_records(self, engine: Engine, option: dict[str, Any]) -> None:
        """A 304 means nothing once the operator reads the source otherwise."""
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.sync()
        engine.configure(**option)
        if "records" in option:
            engine.serve(b'{"x": %b}' % dump(SNAPSHOT), etag='"1"')
        assert not (await engine.sync()).not_modified

    async def test_without_triggers_no_304_is_relied_on(self, engine: Engine) -> None:
        """Where nobody would tell of foreign writes, everything is fetched, and said once that it is so."""
        engine.serve(SNAPSHOT, etag='"1"')
        await engine.edit(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no triggers here' USING ERRCODE = '0A000'; END $$",
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION refuse()",
        )
        with capture_logs() as logs:
            for _ in range(3):
                assert not (await engine.sync()).not_modified
        assert [entry["event"] for entry in logs].count("triggers_refused") == 1
        await engine.edit("DELETE FROM {table} WHERE id = 3", "INSERT INTO {table} (id) VALUES (300)")
        await engine.sync()
        await engine.check()


class TestSpelling:
    async def test_another_spelling_is_no_change(self, engine: Engine) -> None:
        """Order of fields, white space and the spelling of numbers do not make a record another one."""
        await engine.sync(b'[{"id": 1, "a": 1.50, "b": "x"}, {"id": 2, "a": 2.0, "b": "y"}]')
        before = await engine.stored()
        report = await engine.sync(b'[ {"b":"\\u0078","a":1.5,"id":1}, {"a": 2, "b": "y", "id": 2.0} ]')
        assert report.counts == Counts(records=2, unchanged=2)
        assert report.status == "unchanged"
        assert await engine.stored() == before

    async def test_a_source_that_respells_everything_is_read_canonically(self, engine: Engine) -> None:
        """A run that decodes many records in vain switches to canonical fingerprints, once."""
        records = [{"id": number, "a": number / 4, "b": {"x": 1, "y": 2}} for number in range(60)]
        respelled = [{"b": {"y": 2, "x": 1}, "a": number / 4, "id": number} for number in range(60)]
        with capture_logs() as logs:
            await engine.sync(records)
            for _ in range(2):
                assert (await engine.sync(respelled)).status == "unchanged"
                assert (await engine.sync(records)).status == "unchanged"
            await engine.sync(respelled)
            await engine.check()
            await engine.sync(records)
            await engine.check()
        assert [entry["event"] for entry in logs].count("fingerprints_switched") == 1

    async def test_changes_are_found_under_canonical_fingerprints(self, engine: Engine) -> None:
        """Canonical fingerprints tell a changed record from a respelled one."""
        records = [{"id": number, "a": number} for number in range(60)]
        await engine.sync(records)
        for _ in range(2):
            await engine.sync([{"a": record["a"], "id": record["id"]} for record in records])
        report = await engine.sync(
            [{"a": record["a"] + (record["id"] == 7), "id": record["id"]} for record in records[1:]]
        )
        assert report.counts == Counts(records=59, updated=1, unchanged=58, deleted=1)
        await engine.check()
