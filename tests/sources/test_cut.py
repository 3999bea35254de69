"""Cutting gives the records that a plain parse gives, however the document arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import SourceIncomplete, SourceInvalid
from tests.sources.support import cut

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["},", "}]", '"},{"', "\\", '\\"', "[{", "\\\\", "},\n", ","]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)
records = st.lists(st.dictionaries(st.text(max_size=4), values, max_size=4), max_size=6)
separators = st.sampled_from([(",", ":"), (", ", ": "), (",\n  ", ":"), (" ,", " : "), ("\n,", ":"), ("\r\n,\t", ":")])


def dump(value: Any, how: tuple[str, str], *, ascii_only: bool) -> bytes:
    return json.dumps(value, separators=how, ensure_ascii=ascii_only).encode()


@settings(max_examples=50, deadline=None)
@given(records=records, how=separators, ascii_only=st.booleans(), piece_bytes=st.integers(1, 40))
def test_array(records: list[Any], how: tuple[str, str], ascii_only: bool, piece_bytes: int) -> None:
    """An array is cut into what a plain parse gives."""
    document = dump(records, how, ascii_only=ascii_only)
    assert cut(document, piece_bytes=piece_bytes).values == records
    assert cut(b" \n" + document + b"\r\n\t ").values == records


@settings(max_examples=10, deadline=None)
@given(records=records, how=separators)
def test_array_at_every_piece_size(records: list[Any], how: tuple[str, str]) -> None:
    """It makes no difference where a document is split."""
    document = dump(records, how, ascii_only=False)
    for piece_bytes in range(1, len(document) + 1):
        assert cut(document, piece_bytes=piece_bytes).values == records


@settings(max_examples=50, deadline=None)
@given(
    records=records,
    beside=st.dictionaries(st.text(max_size=3), values, max_size=3),
    how=separators,
    piece_bytes=st.integers(1, 40),
)
def test_array_under_a_path(records: list[Any], beside: dict[str, Any], how: tuple[str, str], piece_bytes: int) -> None:
    """An array under a path is found among any neighbours."""
    inner = {**beside, "items": records, **{f"{name} after": value for name, value in beside.items()}}
    document = dump({**beside, "data": inner, "total": 3}, how, ascii_only=True)
    assert cut(document, piece_bytes=piece_bytes, records=("data", "items")).values == records


@settings(max_examples=50, deadline=None)
@given(
    records=st.lists(st.dictionaries(st.text(max_size=4), values, max_size=4), min_size=1, max_size=6),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]),
    ends_line=st.booleans(),
    piece_bytes=st.integers(1, 40),
)
def test_lines(records: list[Any], line_end: str, ends_line: bool, piece_bytes: int) -> None:
    """Lines are cut into what parsing each of them gives."""
    document = line_end.join(json.dumps(record) for record in records) + (line_end if ends_line else "")
    assert cut(document.encode(), piece_bytes=piece_bytes, format="ndjson").values == records
    if len(records) > 1:
        assert cut(document.encode(), piece_bytes=piece_bytes).values == records


@settings(max_examples=50, deadline=None)
@given(records=records.filter(bool), data=st.data(), piece_bytes=st.integers(1, 40))
def test_every_prefix_is_refused(records: list[Any], data: st.DataObject, piece_bytes: int) -> None:
    """A document that ends early never passes for a complete one."""
    document = json.dumps({"data": records, "total": 1}).encode()
    length = data.draw(st.integers(0, len(document) - 1))
    with pytest.raises((SourceIncomplete, SourceInvalid)):
        cut(document[:length], piece_bytes=piece_bytes, records=("data",))
    document = json.dumps(records).encode()
    with pytest.raises((SourceIncomplete, SourceInvalid)):
        cut(document[: min(length, len(document) - 1)], piece_bytes=piece_bytes)
