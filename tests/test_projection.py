"""What is made of records between feed and mirror: exactly what the settings say, or a rejection that says why not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from deciding import Approach
from definitions import Source
from gathering import Spools, gather
from projection import DEEPEST, FeedKey, Projected, Projection
from spool import open_spool
from tests.engine import Engine, dump

FEW = 30
"""Records enough for a source that respells them to be noticed."""

_raws = msgspec.json.Decoder(list[Raw])


def projection(**options: Any) -> Projection:
    made = Projection.of(source(**options))
    assert made is not None
    return made


def source(**options: Any) -> Source:
    return Source(name="test", url="http://127.0.0.1/", **options)


def project(*texts: bytes, **options: Any) -> Projected:
    return projection(**options).project(_raws.decode(b"[%b]" % b",".join(texts)))


def one(text: bytes, **options: Any) -> bytes:
    projected = project(text, **options)
    assert not projected.rejected
    return projected.records[0]


def reason(text: bytes, **options: Any) -> str:
    """Return why a record is rejected, between two others that are not."""
    projected = project(b'{"id":1}', text, b'{"id":2}', **options)
    assert list(projected.rejected) == [1]
    assert projected.records[1] == b""
    assert all((projected.records[0], projected.records[2]))
    return projected.rejected[1]


def test_an_ordinary_source_has_no_projection() -> None:
    """Records that are mirrored as they are lose no time."""
    assert Projection.of(source()) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fields": {"id": "id", "n": "amount"}}, b'{"id":1,"amount":1.10}'),
        ({"fields": {"n": "amount"}, "other_fields": "keep"}, b'{"id":1,"amount":1.10,"a":{"c":{"z":[1]},"b":null}}'),
        ({"scope": {"region": "eu", "shop": 7}, "fields": {"id": "id"}}, b'{"region":"eu","shop":7,"id":1}'),
        ({"scope": {"id": 1}}, b'{"id":1,"n":1.10,"a":{"c":{"z":[1]},"b":null}}'),
        ({"nested": "flatten"}, b'{"id":1,"n":1.10,"a_c_z":[1],"a_b":null}'),
        ({"nested": "flatten", "fields": {"a_c_z": "z", "id": "id"}}, b'{"id":1,"z":[1]}'),
        ({"nested": "flatten", "fields": {"a": "x", "a_b": "b"}}, b'{"x_c_z":[1],"b":null}'),
        (
            {"nested": "flatten", "fields": {"a_c": ""}, "other_fields": "keep"},
            b'{"id":1,"n":1.10,"_z":[1],"a_b":null}',
        ),
        ({"fields": {"a": "x", "gone": "gone"}}, b'{"x":{"c":{"z":[1]},"b":null}}'),
    ],
)
def test_settings(options: dict[str, Any], expected: bytes) -> None:
    """Fields are selected and renamed, objects become fields of their members, and the scope is added."""
    assert one(b'{"id":1,"n":1.10,"a":{"c":{"z":[1]},"b":null}}', **options) == expected


def test_empty_objects_leave_nothing_behind() -> None:
    """An object without members has no field that could be flattened; arrays and their objects stay as they are."""
    assert one(b'{"id":1,"a":{},"b":{"c":{}},"d":[{"e":{}}]}', nested="flatten") == b'{"id":1,"d":[{"e":{}}]}'


@pytest.mark.parametrize(
    "value",
    [
        b"0.1234567890123456789",
        b"1e400",
        b"9" * 5_000,
        b"-0.0",
        b'"\\u0000\\ud83d\\ude00\\/"',
        b'"\xff"',
        b'{"a":1, "a":2}',
    ],
    ids=range(7),
)
def test_values_are_carried_over_as_they_are(value: bytes) -> None:
    """Not a digit, not an escape, nor what is wrong with a value is changed: that is found out later."""
    text = b'{"id": 1, "o": {"x" : %b}, "y": %b}' % (value, value)
    assert one(text, fields={"y": "z"}) == b'{"z":%b}' % value
    assert one(text, fields={"o": "p"}) == b'{"p":{"x" : %b}}' % value
    if not value.startswith(b"{"):
        assert one(text, nested="flatten", fields={"o": "p"}) == b'{"p_x":%b}' % value


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (
            b'{"id":1,"user_id":2,"user":{"id":3}}',
            {"nested": "flatten"},
            ["'user_id' and 'user.id'", "become 'user_id'"],
        ),
        (b'{"id":1,"a":{"b_c":1},"a_b":{"c":1}}', {"nested": "flatten"}, ["'a.b_c' and 'a_b.c'"]),
        (b'{"id":1,"a":1,"b":1}', {"fields": {"a": "x", "b": "x", "id": "id"}}, ["'a' and 'b'", "become 'x'"]),
        (b'{"id":1,"a":1,"b":1}', {"fields": {"a": "b"}, "other_fields": "keep"}, ["'a' and 'b'"]),
        (b'{"id":1,"region":"us"}', {"scope": {"region": "eu"}}, ["'region'", "the scope", "differ"]),
        (b'{"id":1,"region":true}', {"scope": {"region": 1}}, ["differ"]),
        (b'{"id":1,"\xff":1}', {"fields": {"id": "id"}}, ["UTF-8"]),
        (b'{"id":1,"a":{"\xff":1}}', {"nested": "flatten"}, ["UTF-8"]),
        (b'{"id":1,"a":%b1%b}' % (b'{"a":' * 40, b"}" * 40), {"nested": "flatten"}, [str(DEEPEST), "too deep"]),
    ],
)
def test_what_cannot_be_projected_is_rejected(text: bytes, options: dict[str, Any], words: list[str]) -> None:
    """Nothing is overwritten in silence: a record whose fields would become one is rejected, and both are named."""
    told = reason(text, **options)
    assert all(word in told for word in words), told


@pytest.mark.parametrize("text", [b'{"id":1,"region":"eu"}', b'{"id":1,"region":"\\u0065u"}'])
def test_a_record_may_say_what_its_scope_says(text: bytes) -> None:
    """A field of the scope's name is no contradiction as long as it has the scope's value."""
    assert one(text, scope={"region": "eu"}) == b'{"region":"eu","id":1}'


@pytest.mark.parametrize(
    ("text", "options", "expected", "name"),
    [
        (b'{"id":1,"a":1,"a":2}', {"fields": {"a": "b"}}, b'{"b":2}', "a"),
        (b'{"id":1,"a":1,"\\u0061":2}', {"fields": {"a": "b"}}, b'{"b":2}', "a"),
        (b'{"id":1,"a":{"b":1,"b":2}}', {"nested": "flatten"}, b'{"id":1,"a_b":2}', "b"),
        (b'{"id":1,"a":{"b":1},"a":{"c":2}}', {"nested": "flatten"}, b'{"id":1,"a_c":2}', "a"),
        (b'{"id":1,"x":%b,"id":2}' % (b"9" * 5_000), {"fields": {"id": "id"}}, b'{"id":2}', "id"),
        (b'{"id":1,"a":[{"b":1,"b":2}]}', {"nested": "flatten"}, b'{"id":1,"a":[{"b":1,"b":2}]}', None),
        (b'{"id":1,"a\\":b":1}', {"nested": "flatten"}, b'{"id":1,"a\\":b":1}', None),
    ],
)
def test_repeated_names_are_told(text: bytes, options: dict[str, Any], expected: bytes, name: str | None) -> None:
    """Of a name that stands twice the last one counts, and it is told unless it can still be seen afterwards."""
    projected = project(b'{"id":0}', text, **options)
    assert projected.records[1] == expected
    assert projected.repeated == ({1: name} if name else {})


names = st.sampled_from(["id", "a", "b", "a_b", "c", "", "_", 'q":', "é"])
documents = st.recursive(
    st.sampled_from([None, True, 1, 10**30, "", "eu", '":', "é"]),
    lambda children: st.one_of(st.lists(children, max_size=2), st.dictionaries(names, children, max_size=3)),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(names, documents, max_size=4), max_size=4),
    st.dictionaries(names, names, max_size=3),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from(["jsonb", "flatten"]),
    st.dictionaries(st.sampled_from(["a", "r"]), st.sampled_from(["eu", 1]), max_size=1),
)
@example([{"a": {"b": 1}, "a_b": 2}], {}, "drop", "flatten", {})
def test_what_comes_out_is_what_a_plain_reading_says(
    records: list[dict[str, Any]], fields: dict[str, str], others: Any, nested: Any, scope: dict[str, Any]
) -> None:
    """For any records and settings, the result is that of a reading of the settings that nobody has made fast."""
    made = Projection.of(source(fields=fields, other_fields=others, nested=nested, scope=scope))
    if made is None:
        return
    projected = made.project(_raws.decode(json.dumps(records).encode()))
    for place, record in enumerate(records):
        expected = plainly(record, fields, others == "keep" or not fields, nested == "flatten", scope)
        if place in projected.rejected:
            assert expected is None
        else:
            assert json.loads(projected.records[place]) == expected
    assert not projected.repeated


def plainly(
    record: Mapping[str, Any], fields: Mapping[str, str], keeps: bool, flattens: bool, scope: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the record as the settings want it, None where two fields would become one."""
    found: list[tuple[str, Any]] = []

    def walk(members: Mapping[str, Any], path: list[str]) -> None:
        for name, value in members.items():
            if flattens and isinstance(value, dict):
                walk(value, [*path, name])
            else:
                found.append((becomes([*path, name]), value))

    def becomes(path: list[str]) -> Any:
        for length in range(len(path), 0, -1):
            whole = "_".join(path[:length])
            if whole in fields:
                return "_".join([fields[whole], *path[length:]])
        return "_".join(path) if keeps else None

    walk(record, [])
    kept = [(name, value) for name, value in found if name is not None]
    for name, value in kept:
        if name in scope and (type(value) is not type(scope[name]) or value != scope[name]):
            return None
    others = [name for name, _ in kept if name not in scope]
    return {**scope, **dict(kept)} if len(set(others)) == len(others) else None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"user":{"id":7},"sku":"a"}', {"region": "eu", "user_id": 7, "code": "a"}),
        (b'{"user_id":7,"sku":"a","x":1,"y":{"z":1},"y_z":2}', {"region": "eu", "user_id": 7, "code": "a"}),
        (b'{"user":{"id":7},"user_id":8,"sku":"a"}', None),
        (b'{"user":7,"sku":"a"}', None),
        (b'{"user":{"id":7}}', None),
    ],
)
def test_keys_are_found_where_the_feed_has_them(text: bytes, key: dict[str, Any] | None) -> None:
    """The key of a record of the feed is told by the mirror's names, unless part of it is missing or ambiguous."""
    projected = source(
        key=("region", "user_id", "code"),
        scope={"region": "eu"},
        fields={"sku": "code"},
        other_fields="keep",
        nested="flatten",
    )
    members = msgspec.json.decode(text, type=dict[str, Raw])
    try:
        found = {name: msgspec.json.decode(raw) for name, raw in FeedKey.of(projected).read(members).items()}
    except KeyError:
        found = None
    assert found == key
    leniently = projection(
        scope=projected.scope, fields=projected.fields, other_fields="keep", nested="flatten"
    ).read_key(json.loads(text), projected.key)
    assert (leniently if None not in leniently.values() else None) == key


def test_keys_of_ordinary_sources_are_read_as_they_are() -> None:
    """A source that is not projected has its key where it says."""
    assert FeedKey.of(source(key=("a",))).read({"a": Raw(b"1"), "b": Raw(b"2")}) == {"a": Raw(b"1")}


SHOP = MappingProxyType(
    {
        "key": ("region", "sku"),
        "scope": MappingProxyType({"region": "eu"}),
        "fields": MappingProxyType({"code": "sku", "name": "name", "size": "size"}),
        "nested": "flatten",
    }
)


def product(number: int, **others: Any) -> dict[str, Any]:
    return {"code": f"p{number}", "name": f"n{number}", "size": {"width": number, "unit": "cm"}, **others}


def stored(number: int, **others: Any) -> dict[str, Any]:
    return {
        "region": "eu",
        "sku": f"p{number}",
        "name": f"n{number}",
        "size_width": number,
        "size_unit": "cm",
        **others,
    }


async def test_a_projected_source_is_mirrored(engine: Engine) -> None:
    """What the mirror gets are the selected fields by their new names; changes and deletions are found as ever."""
    engine.configure(**SHOP)
    await engine.sync([product(number, ignored=1) for number in range(20)])
    await engine.check([stored(number) for number in range(20)])
    report = await engine.sync([product(number, name="new" if number == 3 else f"n{number}") for number in range(19)])
    assert (report.counts.updated, report.counts.deleted) == (1, 1)
    await engine.check([stored(number, name="new" if number == 3 else f"n{number}") for number in range(19)])


async def test_a_moving_field_that_is_not_selected_touches_nothing(engine: Engine) -> None:
    """A field that differs in every answer ends in runs that write nothing and need not decode anything."""
    engine.configure(**SHOP)
    moments = itertools.count()

    def snapshot() -> list[dict[str, Any]]:
        at = next(moments)
        return [product(number, fetched_at=at) for number in range(FEW)]

    await engine.sync(snapshot())
    assert (await engine.sync(snapshot())).status == "unchanged"
    before = await engine.stored()
    await engine.sync(snapshot())
    settled = await engine.stored()
    assert settled[1] != before[1], "the fingerprints are stored anew once"
    engine.serve(snapshot())
    assert await is_unchanged_by_fingerprints(engine)
    assert (await engine.sync()).status == "unchanged"
    assert await engine.stored() == settled
    await engine.check([stored(number) for number in range(FEW)])


async def is_unchanged_by_fingerprints(engine: Engine) -> bool:
    async with open_spool(None) as spool:
        gathered = await gather(engine.database, engine.source, Spools(records=spool), Approach())
        return gathered.is_unchanged


BROKEN = {
    "half a surrogate pair": (b'{"code":"p1","name":"\\ud800","size":{"width":1}}', "surrogate"),
    "bytes that are no text": (b'{"code":"p1","name":"\xff"}', "UTF-8"),
    "two fields for one": (b'{"code":"p1","size":{"a_b":1,"a":{"b":2}}}', "both become 'size_a_b'"),
    "a NUL": (b'{"code":"p1","name":"\\u0000"}', "NUL"),
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_record_protects_its_row(engine: Engine, broken: bytes, words: str) -> None:
    """A record that cannot be stored is told with its position and the mirror's key, and its row is not deleted."""
    engine.configure(**SHOP, max_delete_rows=0, max_delete_share=0)
    await engine.sync([product(number) for number in range(4)])
    engine.serve(b"[%b,%b]" % (dump([product(0), product(2), product(3)])[1:-1], broken))
    report = await engine.sync()
    assert (report.counts.rejected, report.counts.deleted, report.counts.held) == (1, 0, 0)
    assert [(problem.kind, problem.position, problem.key) for problem in report.problems] == [
        ("rejected", 3, {"region": "eu", "sku": "p1"})
    ]
    assert words in report.problems[0].reason
    assert list(await engine.rows()) == [("eu", f"p{number}") for number in range(4)]


async def test_a_repeated_name_and_a_copy_are_told_by_the_mirrors_key(engine: Engine) -> None:
    """What is noticed about a record on its way is told with the key that its row has."""
    engine.configure(**SHOP)
    await engine.sync([product(1), product(2)])
    twice = b'{"code":"p3","name":"old","name":"n3","size":{"width":3,"unit":"cm"}}'
    report = await engine.sync(b"[%b,%b]" % (dump([product(1), product(2), product(2)])[1:-1], twice))
    told = {problem.kind: (problem.position, problem.key) for problem in report.problems}
    assert told == {
        "duplicate": (1, {"region": "eu", "sku": "p2"}),
        "repeated_field": (3, {"region": "eu", "sku": "p3"}),
    }
    await engine.check([stored(1), stored(2), stored(3)])


@pytest.mark.parametrize("moving", [False, True], ids=["raw", "canonical"])
async def test_other_settings_are_taken_over(engine: Engine, moving: bool) -> None:
    """After other fields are selected or flattened, the next run is right; what is no longer selected becomes NULL."""
    moments = itertools.count()
    old = MappingProxyType({"code": "sku", "name": "name", "price": "price"})
    engine.configure(key=("sku",), fields=old)

    def snapshot() -> list[dict[str, Any]]:
        at = next(moments) if moving else 0
        return [product(number, price=number, fetched_at=at) for number in range(FEW)]

    for _ in range(4 if moving else 1):
        await engine.sync(snapshot())
    engine.configure(fields=MappingProxyType({"code": "sku", "name": "title", "size": "size"}))
    assert (await engine.sync(snapshot())).counts.updated == FEW
    wide = {number: {"sku": f"p{number}", "title": f"n{number}"} for number in range(FEW)}
    assert await engine.rows() == {
        f"p{number}": {**row, "size": {"width": number, "unit": "cm"}} for number, row in wide.items()
    }
    engine.configure(nested="flatten")
    await engine.sync(snapshot())
    assert await engine.rows() == {
        f"p{number}": {**row, "size_width": number, "size_unit": "cm"} for number, row in wide.items()
    }
    assert {"name", "price", "size"} <= (await engine.types()).keys()
    engine.serve(snapshot())
    assert await is_unchanged_by_fingerprints(engine)
    await engine.check_idle()


async def test_a_304_of_another_selection_is_not_believed(engine: Engine) -> None:
    """A source whose fields were changed is not asked whether its answer was modified."""
    engine.configure(key=("code",), fields=MappingProxyType({"code": "code"}))
    engine.serve([product(1)], etag='"v1"')
    await engine.sync()
    assert (await engine.sync()).not_modified
    engine.configure(fields=MappingProxyType({"code": "code", "name": "name"}))
    assert (await engine.sync()).counts.updated == 1
    assert await engine.rows() == {"p1": {"code": "p1", "name": "n1"}}
