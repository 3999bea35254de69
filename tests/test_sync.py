"""One source, one mirror: what runs create, update, restore, delete, leave alone and reject."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from errors import SourceError, SourceIncomplete, SourceInvalid
from models import Counts, Problem
from sync import plan_data
from tests.engine import Engine
from tests.feed_server import Answer, Truncate

TWO = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]


def numbered(*ids: int, **fields: Any) -> list[dict[str, Any]]:
    """Make records that differ in their key only."""
    return [{"id": number, **fields} for number in ids]


def problems_of(found: Sequence[Problem]) -> list[tuple[str, int, Any]]:
    """Reduce problems to kind, position and key."""
    return [(problem.kind, problem.position, problem.key and dict(problem.key)) for problem in found]


class TestChanges:
    async def test_a_first_load_creates_every_record(self, engine: Engine) -> None:
        """The first run creates a row for every record, and is journaled as a run, not row by row."""
        report = await engine.sync(TWO)
        assert (report.status, report.first_load) == ("succeeded", True)
        assert report.counts == Counts(records=2, created=2)
        await engine.check()

    async def test_each_kind_of_change_is_counted(self, engine: Engine) -> None:
        """A run counts what it creates, updates, restores, deletes and leaves alone."""
        await engine.sync(numbered(1, 2, 3, 4, price=1.5))
        await engine.sync(numbered(1, 2, 3, price=1.5))
        report = await engine.sync([*numbered(1, 4, 5, price=1.5), {"id": 2, "price": 2.5}])
        assert report.counts == Counts(records=4, created=1, updated=1, restored=1, deleted=1, unchanged=1)
        await engine.check()

    async def test_a_tombstone_keeps_its_last_values(self, engine: Engine) -> None:
        """A deleted record's row stays with its values and the time of its deletion."""
        await engine.sync(TWO)
        await engine.sync(TWO[:1])
        row = await engine.sql.fetchrow(f"SELECT name, _sync_deleted_at FROM {engine.table} WHERE id = 2")
        assert row is not None
        assert row["name"] == "two"
        assert row["_sync_deleted_at"] is not None
        await engine.check()

    async def test_a_restored_record_takes_its_new_values(self, engine: Engine) -> None:
        """A record that comes back revives its row, and the journal tells which values changed meanwhile."""
        await engine.sync(TWO)
        await engine.sync(TWO[:1])
        report = await engine.sync([TWO[0], {"id": 2, "name": "new"}])
        assert report.counts == Counts(records=2, restored=1, unchanged=1)
        assert (await engine.journal(report.run))[(2,)].changes == {"name": ["two", "new"]}
        await engine.check()

    async def test_times_tell_when_a_row_was_made_and_changed(self, engine: Engine) -> None:
        """An update moves the time of the last change alone, and only on the rows that changed."""
        await engine.sync(TWO)
        times = f"SELECT _sync_created_at, _sync_updated_at FROM {engine.table} ORDER BY id"
        before = await engine.sql.fetch(times)
        await engine.sync([TWO[0], {"id": 2, "name": "new"}])
        after = await engine.sql.fetch(times)
        assert after[0] == before[0]
        assert after[1]["_sync_created_at"] == before[1]["_sync_created_at"]
        assert after[1]["_sync_updated_at"] > before[1]["_sync_updated_at"]

    async def test_everything_can_change_at_once(self, engine: Engine) -> None:
        """A run may update every row."""
        await engine.sync(numbered(*range(500), price=1))
        report = await engine.sync(numbered(*range(500), price=2))
        assert report.counts == Counts(records=500, updated=500)
        await engine.check()

    async def test_there_and_back_again(self, engine: Engine) -> None:
        """Two snapshots in turn are mirrored exactly each time."""
        one, other = numbered(*range(50), a=1), [*numbered(*range(25, 50), a=1), *numbered(*range(45, 60), a=2)]
        other = list({record["id"]: record for record in other}.values())
        engine.configure(max_delete_rows=100)
        for snapshot in (one, other, one, other):
            await engine.sync(snapshot)
            await engine.check()

    async def test_an_empty_first_snapshot_creates_nothing(self, engine: Engine) -> None:
        """With no records there are no columns, and so no table yet."""
        report = await engine.sync([])
        assert (report.status, report.counts) == ("unchanged", Counts())
        assert await engine.sql.fetchval("SELECT to_regclass('my_data')") is None
        await engine.sync(TWO)
        await engine.check()


class TestShapes:
    async def test_nested_values_are_kept_whole(self, engine: Engine) -> None:
        """Objects and arrays become jsonb, and a change deep inside is a change of the field."""
        deep = {"names": {"native": [{"x": 1.10, "y": None}, [], {}]}, "ok": True}
        await engine.sync([{"id": 1, "deep": deep, "list": [1, "2", None]}])
        await engine.check()
        changed = {**deep, "names": {"native": [{"x": 1.20, "y": None}, [], {}]}}
        report = await engine.sync([{"id": 1, "deep": changed, "list": [1, "2", None]}])
        assert (await engine.journal(report.run))[(1,)].changes.keys() == {"deep"}
        await engine.check()

    async def test_text_is_kept_to_the_character(self, engine: Engine) -> None:
        """Text of any script, controls and escapes included, comes out as it went in."""
        texts = [
            "ÅngströmN̈",
            "日本語",
            "👩‍👩‍👧",
            '"\\/\b\f\n\r\t',
            "\x01\x1f\x7f",
            " ",
            "",
            "'; DROP TABLE x; --",
            "%s :x $1",
        ]
        await engine.sync([{"id": number, "text": text} for number, text in enumerate(texts)])
        await engine.check()
        assert [row["text"] for row in (await engine.rows()).values()] == texts

    async def test_numbers_are_kept_to_the_digit(self, engine: Engine) -> None:
        """No number is rounded, whatever its size."""
        literals = [
            "9223372036854775807",
            "9223372036854775808",
            "-123456789012345678901234567890",
            "0.1234567890123456789",
        ]
        records = [f'{{"id": {number}, "n{number}": {literal}}}' for number, literal in enumerate(literals)]
        await engine.sync(f"[{','.join(records)}]".encode())
        await engine.check()
        assert (await engine.types())["n3"] == "numeric"

    async def test_several_fields_make_one_key(self, engine: Engine) -> None:
        """Records that agree in part of a composite key are different records."""
        engine.configure(key=("shop", "sku"))
        first = [{"shop": shop, "sku": sku, "n": 1} for shop in ("a", "b") for sku in (1, 2)]
        await engine.sync(first)
        await engine.check()
        report = await engine.sync([{**first[0], "n": 2}, *first[1:3]])
        assert report.counts == Counts(records=3, updated=1, deleted=1, unchanged=2)
        await engine.check()

    async def test_keys_may_be_text(self, engine: Engine) -> None:
        """Text keys are told apart to the character."""
        await engine.sync([{"id": key, "n": 1} for key in ("a", "A", "ä", "a ", "", "1", "null")])
        await engine.check()
        report = await engine.sync([{"id": key, "n": 2} for key in ("a", "A", "ä", "a ", "", "1", "null")])
        assert report.counts == Counts(records=7, updated=7)
        await engine.check()

    async def test_records_may_lie_under_a_path(self, engine: Engine) -> None:
        """SOURCE_RECORDS leads to the array; what stands beside it does not matter."""
        engine.configure(records=("data", "items"))
        await engine.sync(json.dumps({"total": 2, "data": {"items": TWO, "next": None}, "at": "now"}).encode())
        await engine.check()
        report = await engine.sync(json.dumps({"total": 9, "data": {"items": TWO, "next": 1}, "at": "then"}).encode())
        assert report.status == "unchanged"

    async def test_records_may_stand_on_lines(self, engine: Engine) -> None:
        """NDJSON is mirrored like an array."""
        engine.configure(format="ndjson")
        await engine.sync(b"\n".join(json.dumps(record).encode() for record in TWO) + b"\n")
        await engine.check()
        report = await engine.sync(json.dumps(TWO[1]).encode() + b"\n")
        assert report.counts == Counts(records=1, deleted=1, unchanged=1)
        await engine.check()

    async def test_an_unmirrored_null_is_an_absent_field(self, engine: Engine) -> None:
        """A field that is null and one that is absent are the same NULL, so neither becomes the other."""
        await engine.sync([{"id": 1, "a": 1, "b": None}, {"id": 2, "a": 1, "b": 1}])
        report = await engine.sync([{"id": 1, "a": 1}, {"id": 2, "a": 1, "b": 1}])
        assert report.counts == Counts(records=2, unchanged=2)
        await engine.check()


class TestDuplicates:
    async def test_the_last_of_several_wins(self, engine: Engine) -> None:
        """Of records that share a key, the last one is mirrored; the others are reported with position and key."""
        report = await engine.sync([*numbered(1, 2, a=1), *numbered(1, a=2), *numbered(3, 1, a=3)])
        assert report.counts == Counts(records=5, created=3, duplicates=2)
        assert report.first_load, "a first load that has to be staged is still journaled as one run"
        assert problems_of(report.problems) == [("duplicate", 0, {"id": 1}), ("duplicate", 2, {"id": 1})]
        await engine.check()

    async def test_copies_are_counted(self, engine: Engine) -> None:
        """A record that stands there twice, to the byte, is applied once, on the first load and later."""
        snapshot = [*numbered(1, 2, a=1), *numbered(1, a=1)]
        report = await engine.sync(snapshot)
        assert report.counts == Counts(records=3, created=2, duplicates=1)
        report = await engine.check_idle()
        assert report.counts == Counts(records=3, unchanged=2, duplicates=1)
        assert problems_of(report.problems) == [("duplicate", 2, {"id": 1})]
        await engine.check()

    @pytest.mark.parametrize("unchanged_first", [True, False])
    async def test_a_changed_and_an_unchanged_one(self, engine: Engine, *, unchanged_first: bool) -> None:
        """It does not matter for who wins that one of the two is mirrored already."""
        old, new = {"id": 1, "a": 1}, {"id": 1, "a": 2}
        others = numbered(*range(2, 8), a=1)
        await engine.sync([old, *others])
        pair = [old, new] if unchanged_first else [new, old]
        report = await engine.sync([*others, *pair])
        assert report.counts.duplicates == 1
        assert problems_of(report.problems) == [("duplicate", 6, {"id": 1})]
        assert (await engine.rows())[1] == pair[1]
        await engine.check()

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
    async def test_three_of_a_kind(self, engine: Engine, order: tuple[int, int, int]) -> None:
        """One mirrored and two new records of one key: the last wins in whatever order they come."""
        records = [{"id": 1, "a": version} for version in range(3)]
        others = numbered(2, 3, 4, a=1)
        await engine.sync([records[0], *others])
        report = await engine.sync([*(records[place] for place in order), *others])
        assert report.counts.duplicates == 2
        assert problems_of(report.problems) == [("duplicate", 0, {"id": 1}), ("duplicate", 1, {"id": 1})]
        assert (await engine.rows())[1] == records[order[2]]
        await engine.check()

    async def test_copies_of_a_loser_and_of_the_winner(self, engine: Engine) -> None:
        """Copies among the duplicates change neither the winner nor that every loser is counted."""
        old, new = {"id": 1, "a": 1}, {"id": 1, "a": 2}
        await engine.sync([old, *numbered(2, 3, a=1)])
        report = await engine.sync([old, new, old, new, *numbered(2, 3, a=1)])
        assert report.counts == Counts(records=6, updated=1, unchanged=2, duplicates=3)
        await engine.check()

    async def test_repeated_field_names_are_reported(self, engine: Engine) -> None:
        """Of a field that stands twice in a record the last value counts, and the run says so."""
        report = await engine.sync(b'[{"id": 1, "a": 1, "a": 2}, {"id": 2, "a": 3}]')
        assert report.counts == Counts(records=2, created=2)
        assert problems_of(report.problems) == [("repeated_field", 0, {"id": 1})]
        await engine.check()

    async def test_an_empty_table_that_has_a_key(self, engine: Engine) -> None:
        """Duplicates are settled also where the first load goes into a table whose key would refuse them."""
        await engine.edit("CREATE TABLE {table} (id bigint PRIMARY KEY, a bigint)")
        report = await engine.sync([*numbered(1, 2, a=1), *numbered(1, a=2)])
        assert report.counts == Counts(records=3, created=2, duplicates=1)
        await engine.check()


class TestRejected:
    @pytest.mark.parametrize(
        ("bad", "key"),
        [
            pytest.param('{"id": 2, "a": "x\\u0000y"}', {"id": 2}, id="nul"),
            pytest.param('{"id": 2, "\\u0000": 1}', {"id": 2}, id="nul in a name"),
            pytest.param('{"id": 2, "a": 1e400}', {"id": 2}, id="huge exponent"),
            pytest.param('{"id": 2, "a": 1e999999999}', {"id": 2}, id="absurd exponent"),
            pytest.param('{"id": 2, "a": [{"b": -1e-99999}]}', {"id": 2}, id="nested tiny number"),
            pytest.param('{"id": 2, "a": %s}' % ("9" * 5000), None, id="5,000 digits"),
            pytest.param('{"id": 2, "a": "\\ud800"}', {"id": 2}, id="half a surrogate pair"),
            pytest.param('{"id": "2", "a": "text for a number"}', {"id": "2"}, id="text key"),
            pytest.param('{"id": 2.5, "a": "b"}', None, id="fractional key"),
            pytest.param('{"id": null, "a": "b"}', None, id="null key"),
            pytest.param('{"id": {"x": 2}, "a": "b"}', None, id="object key"),
            pytest.param('{"id": [2], "a": "b"}', None, id="array key"),
            pytest.param('{"id": true, "a": "b"}', None, id="boolean key"),
            pytest.param('{"a": "b"}', None, id="no key"),
            pytest.param("3", None, id="number"),
            pytest.param("null", None, id="null"),
            pytest.param('[{"id": 2}]', None, id="array"),
        ],
    )
    async def test_a_bad_record_costs_itself_alone(self, engine: Engine, bad: str, key: dict[str, Any] | None) -> None:
        """A record that cannot be stored is reported, its row is left alone, and the others are applied."""
        await engine.sync(numbered(1, 2, 3, a="old"))
        report = await engine.sync(f'[{{"id": 1, "a": "new"}}, {bad}, {{"id": 3, "a": "old"}}]'.encode())
        assert (report.counts.updated, report.counts.unchanged, report.counts.rejected) == (1, 1, 1)
        assert report.counts.deleted == 0
        assert [(problem.kind, problem.position) for problem in report.problems] == [("rejected", 1)]
        if key is not None:
            assert report.problems[0].key == key
        assert await engine.rows() == {1: {"id": 1, "a": "new"}, 2: {"id": 2, "a": "old"}, 3: {"id": 3, "a": "old"}}
        await engine.check_idle()

    @pytest.mark.parametrize("bad", [b'{"id": null}', b'{"name": "x"}', b"7", b'{"id": 1.5}'])
    async def test_an_unreadable_key_withholds_all_deletions(self, engine: Engine, bad: bytes) -> None:
        """As long as a rejected record could be anybody's, nobody is deleted."""
        await engine.sync(numbered(1, 2, 3))
        report = await engine.sync(b'[{"id": 1}, {"id": 2}, %b]' % bad)
        assert report.status == "held"
        assert (report.counts.held, report.counts.rejected, report.counts.deleted) == (1, 1, 0)
        assert report.cause is not None
        assert "no usable key" in report.cause
        assert (await engine.rows()).keys() == {1, 2, 3}
        await engine.check_idle()

    async def test_a_readable_key_withholds_its_own_deletion_only(self, engine: Engine) -> None:
        """Rows of rejected records are protected; other rows that vanished are deleted."""
        await engine.sync(numbered(1, 2, 3, a=1))
        report = await engine.sync(b'[{"id": 1, "a": 1}, {"id": 2, "a": "\\u0000"}]')
        assert report.counts == Counts(records=2, deleted=1, rejected=1, unchanged=1)
        assert (await engine.rows()).keys() == {1, 2}
        await engine.check_idle()

    async def test_nul_characters_can_be_stripped(self, engine: Engine) -> None:
        """By the policy `strip`, text is stored without its NUL characters."""
        engine.configure(nul_characters="strip")
        report = await engine.sync(b'[{"id": 1, "a": "x\\u0000y", "b": "\\\\u0000"}]')
        assert report.counts == Counts(records=1, created=1)
        assert (await engine.rows())[1] == {"id": 1, "a": "xy", "b": "\\u0000"}
        await engine.check_idle()

    async def test_rejected_records_of_a_first_load_are_reported(self, engine: Engine) -> None:
        """The first load, too, applies what it can and reports the rest."""
        report = await engine.sync(b'[{"id": 1, "a": "b"}, {"id": 2, "a": "\\u0000"}, {"a": "c"}, 4]')
        assert report.counts == Counts(records=4, created=1, rejected=3)
        assert sorted(problem.position for problem in report.problems) == [1, 2, 3]
        await engine.check_idle()

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b'[{"name": "one"}, {"name": "two"}]', "missing or null"),
            (b"[1, 2]", "object"),
            (b'[{"id": "\\ud800"}]', "surrogate"),
        ],
    )
    async def test_nothing_but_rejected_records_is_an_error(self, engine: Engine, body: bytes, reason: str) -> None:
        """A source of which nothing can be stored is most likely the wrong one, so run and plan fail and say why."""
        with pytest.raises(SourceInvalid, match=reason) as caught:
            await engine.sync(body)
        assert caught.value.run is not None
        assert await engine.sql.fetchval("SELECT to_regclass('my_data')") is None
        with pytest.raises(SourceInvalid, match=reason):
            await plan_data(engine.database, engine.source)

    async def test_many_problems_are_counted_and_some_are_kept(self, engine: Engine) -> None:
        """All rejected records are counted; the first hundred are kept in detail."""
        report = await engine.sync([{"id": 0}, *({"name": str(number)} for number in range(250))])
        assert report.counts == Counts(records=251, created=1, rejected=250)
        assert len(report.problems) == 100


class TestFailures:
    @pytest.mark.parametrize(
        "body", [b"", b"null", b"{}", b'{"error": "down"}', b'"x"', b"<html>", b'[{"id": 1}', b"[1,]"]
    )
    async def test_a_broken_answer_changes_nothing(self, engine: Engine, body: bytes) -> None:
        """Whatever is not a complete array of records is an error, never "no records"."""
        engine.configure(attempts=1)
        await engine.sync(TWO)
        with pytest.raises(SourceError):
            await engine.sync(body)
        engine.serve(TWO)
        await engine.check()

    async def test_a_cut_answer_changes_nothing(self, engine: Engine) -> None:
        """An answer that ends early is tried again and then given up, and the next run converges."""
        engine.configure(attempts=1)
        await engine.sync(TWO)
        body = json.dumps([{**record, "name": "new"} for record in TWO]).encode()
        engine.feed.answers = Answer(body=body, fault=Truncate(at=len(body) - 10))
        with pytest.raises(SourceIncomplete):
            await engine.sync()
        await engine.sync(body)
        await engine.check()

    async def test_an_answer_that_breaks_once_is_fetched_again(self, engine: Engine) -> None:
        """A retry within the run starts from nothing, so that no record counts twice."""
        body = json.dumps(numbered(*range(100))).encode()
        engine.served = body
        engine.feed.answers = [Answer(body=body, fault=Truncate(at=len(body) // 2)), Answer(body=body)]
        report = await engine.sync()
        assert report.counts == Counts(records=100, created=100)
        await engine.check()
