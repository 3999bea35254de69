"""Deciding: the guard, the columns, the kind of fingerprint, the counts; all of it pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from columns import BIGINT, DOUBLE, JSONB, NUMERIC, TEXT, TIMESTAMPTZ, Column
from deciding import decide_columns, feed_digest, reason_to_hold, should_switch_to_canonical, total
from definitions import Source
from errors import SchemaConflict
from models import Counts
from rows import ColumnMisfit

SOURCE = Source(name="test", url="http://127.0.0.1/feed")


def reason(source: Source = SOURCE, **facts: Any) -> str | None:
    """Ask the guard about a run in which, unless said otherwise, a few of many rows vanished."""
    usual: dict[str, Any] = {"deletions": 5, "live": 1_000, "records": 995, "unidentified": 0, "approved": None}
    return reason_to_hold(**(usual | facts), source=source)


def test_few_deletions_pass() -> None:
    """Deletions within both limits are carried out."""
    assert reason() is None


def test_many_of_very_many_pass() -> None:
    """More rows than the one limit, but no larger a share than the other, may vanish."""
    assert reason(deletions=100, live=1_000, records=900) is None


def test_all_of_a_few_pass() -> None:
    """A large share, but no more rows than the other limit, may vanish."""
    assert reason(deletions=10, live=11, records=1) is None


def test_deletions_over_both_limits_are_held() -> None:
    """Deletions over both limits are held, and the reason names numbers and settings."""
    held = reason(deletions=101, live=1_000, records=899)
    assert held is not None
    assert all(part in held for part in ("101 of 1000", "10%", "MAX_DELETE_ROWS (10)", "MAX_DELETE_SHARE (10%)"))


def test_the_limits_are_the_source_s() -> None:
    """Both limits come from the source, and limits of nothing hold everything."""
    assert reason(replace(SOURCE, max_delete_rows=5), deletions=6, live=7, records=1) is not None
    assert reason(replace(SOURCE, max_delete_share=1.0), deletions=999, live=1_000, records=1) is None
    assert reason(replace(SOURCE, max_delete_rows=0, max_delete_share=0.0), deletions=1) is not None


def test_an_empty_snapshot_is_held() -> None:
    """However few rows the mirror has, an empty snapshot does not empty it."""
    held = reason(deletions=1, live=1, records=0)
    assert held is not None
    assert "no records" in held


def test_an_empty_snapshot_may_be_allowed() -> None:
    """A source that may be empty empties its mirror."""
    assert reason(replace(SOURCE, allow_empty=True), deletions=1_000, live=1_000, records=0) is None


def test_allowing_empty_allows_nothing_else() -> None:
    """A source that may be empty is guarded like any other while it is not."""
    assert reason(replace(SOURCE, allow_empty=True), deletions=999, live=1_000, records=1) is not None


def test_records_without_key_hold_deletions() -> None:
    """Where a rejected record may be that of any missing row, no row is deleted."""
    held = reason(deletions=1, unidentified=1)
    assert held is not None
    assert "no usable key" in held


def test_without_deletions_nothing_is_held() -> None:
    """Where nothing would be deleted there is nothing to hold, whatever else happened."""
    assert reason(deletions=0, unidentified=5, records=0, live=0) is None


def test_approval_releases_what_was_shown() -> None:
    """Approved deletions are carried out up to the number that was shown."""
    assert reason(deletions=500, approved=500) is None
    assert reason(deletions=500, approved=500, records=0) is None
    assert reason(deletions=1, approved=1, unidentified=1) is None


def test_approval_is_capped() -> None:
    """One deletion more than was approved holds all of them, even if the guard alone would let them pass."""
    held = reason(deletions=6, approved=5)
    assert held is not None
    assert "6 rows" in held
    assert "5 were approved" in held


def column(field: str, sql_type: str, *, owned: bool = True) -> Column:
    """Describe a column that is named like its field."""
    return Column(name=field, field=field, sql_type=sql_type, owned=owned)


COLUMNS = (column("id", BIGINT), column("n", BIGINT), column("at", TIMESTAMPTZ), column("mine", "integer", owned=False))
TYPES = {found.name: found.sql_type for found in COLUMNS}


def misfits(*fields: str) -> dict[str, ColumnMisfit]:
    """Describe the values that did not fit."""
    have = {found.field: found for found in COLUMNS}
    return {
        field: ColumnMisfit(column=have.get(field), position=3, key={"id": place}, reason=f"is wrong in {field}")
        for place, field in enumerate(fields)
    }


def test_columns_follow_the_source() -> None:
    """New fields get columns and misfits widen them, without fetching anything again."""
    decided = decide_columns(COLUMNS, {"n": DOUBLE, "x": TEXT}, misfits("n", "x"), TYPES, SOURCE)
    assert decided.columns == (COLUMNS[0], column("n", NUMERIC), *COLUMNS[2:], column("x", TEXT))
    assert not decided.must_fetch_all


def test_instants_that_become_texts_are_fetched_again() -> None:
    """A column that did not keep the source's spelling needs all records once more."""
    decided = decide_columns(COLUMNS, {"at": TEXT}, misfits("at"), TYPES, SOURCE)
    assert decided.columns[2] == column("at", TEXT)
    assert decided.must_fetch_all


def test_a_column_that_may_not_be_widened_fails_the_run() -> None:
    """A value that does not fit the user's own column, or a declared one, names table, column, key and reason."""
    with pytest.raises(SchemaConflict) as own:
        decide_columns(COLUMNS, {"mine": TEXT}, misfits("mine"), TYPES, SOURCE)
    assert all(part in own.value.cause for part in ("my_data", "'mine' (integer)", "id=0", "is wrong"))
    with pytest.raises(SchemaConflict, match="'n' \\(bigint\\)"):
        decide_columns(COLUMNS, {"n": TEXT}, misfits("n"), TYPES, replace(SOURCE, types={"n": "bigint"}))


def test_the_column_to_blame_is_named() -> None:
    """Of several misfits the one that cannot be helped is named, wherever it was met."""
    wanted: dict[str, str | None] = {"new": TEXT, "n": TEXT, "mine": TEXT}
    with pytest.raises(SchemaConflict, match=r"id=2 .* column 'mine' \(integer\) is wrong in mine"):
        decide_columns(COLUMNS, wanted, misfits(*wanted), TYPES, SOURCE)


def test_a_frozen_schema_fails_the_run() -> None:
    """Under SCHEMA=freeze a table that is there is not changed; one that is yet to be made may become anything."""
    frozen = replace(SOURCE, on_schema_change="freeze")
    with pytest.raises(SchemaConflict) as caught:
        decide_columns(COLUMNS, {"x": TEXT}, misfits("x"), TYPES, frozen)
    assert "field 'x'" in caught.value.cause
    assert caught.value.remedy is not None
    assert "SCHEMA=evolve" in caught.value.remedy
    assert decide_columns(COLUMNS, {"x": TEXT}, misfits("x"), {}, frozen).columns[-1] == column("x", TEXT)


def test_nothing_wanted_changes_nothing() -> None:
    """Without a misfit the columns stay as they are, frozen or not."""
    decided = decide_columns(COLUMNS, {}, {}, TYPES, replace(SOURCE, on_schema_change="freeze"))
    assert (decided.columns, decided.must_fetch_all) == (COLUMNS, False)


@pytest.mark.parametrize(
    ("decoded", "differing", "kind", "switches"),
    [
        (1_000, 0, "raw", True),
        (1_000, 100, "raw", True),
        (1_000, 101, "raw", False),
        (20, 0, "raw", True),
        (19, 0, "raw", False),
        (0, 0, "raw", False),
        (1_000, 0, "canonical", False),
    ],
)
def test_when_to_switch(decoded: int, differing: int, kind: str, switches: bool) -> None:
    """Only a raw source of which very many records were decoded in vain is switched."""
    assert should_switch_to_canonical(decoded=decoded, differing=differing, kind=kind) is switches


def test_feed_digest_covers_what_changes_the_meaning() -> None:
    """Whatever makes an answer mean something else changes the digest; what does not leaves it alone."""
    others = [
        replace(SOURCE, url="http://127.0.0.1/other"),
        replace(SOURCE, key=("id", "code")),
        replace(SOURCE, records=("items",)),
        replace(SOURCE, format="ndjson"),
        replace(SOURCE, types={"x": "text"}),
        replace(SOURCE, nul_characters="strip"),
        replace(SOURCE, params={"region": "eu"}),
        replace(SOURCE, headers={"Accept-Language": "en"}),
    ]
    assert len({feed_digest(source) for source in (SOURCE, *others)}) == 1 + len(others)
    assert feed_digest(replace(SOURCE, max_delete_rows=1, attempts=9, name="other")) == feed_digest(SOURCE)
    either, other = ({"a": TEXT, "b": JSONB}, {"b": JSONB, "a": TEXT})
    assert feed_digest(replace(SOURCE, types=either)) == feed_digest(replace(SOURCE, types=other))


counts = st.integers(0, 1_000)


@given(counts, counts, counts, counts, counts, counts)
def test_every_record_is_counted_once(
    created: int, updated: int, restored: int, rejected: int, duplicates: int, unchanged: int
) -> None:
    """Records that nothing else became of are unchanged, so that all kinds add up to the snapshot."""
    records = created + updated + restored + rejected + duplicates + unchanged
    found = total(
        Counts(records=records, created=created, updated=updated, restored=restored, rejected=rejected,
               duplicates=duplicates, deleted=9, held=9)
    )  # fmt: skip
    assert found.unchanged == unchanged
    assert (found.deleted, found.held) == (9, 9)
