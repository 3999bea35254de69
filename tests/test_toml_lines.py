"""The lines of a TOML file: everything that tomllib finds in it has one, and it is the right one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sources_file.lines import Place, TomlLines


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the ways to everything in a document."""
    if at:
        yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*at, key))


KEYS = st.sampled_from(["a", "b-1", '"c.d"', "'e f'", '"\\u00e9"', "a . 'b'", "1.2"])
SCALARS = st.sampled_from(
    ["1", "1.5", "true", '"x # \\" ]"', "'\\'", "1979-05-27 07:32:00", "07:32:00", '"""\na""b\\"""""', "'''\n'x'''"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[ # ]\n" + ",\n".join(items) + "]"),
        st.lists(st.tuples(KEYS, inner), max_size=2).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=5,
)
STATEMENTS = st.one_of(
    st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]} # = ["),
    KEYS.map(lambda key: f"[ {key} ]"),
    KEYS.map(lambda key: f"[[{key}]]"),
    st.just("# a = 1"),
)


@settings(deadline=None)
@given(st.lists(STATEMENTS, max_size=8))
def test_lines_are_those_of_tomllib(statements: list[str]) -> None:
    """Whatever tomllib accepts has a line for everything that tomllib finds in it, and for nothing else."""
    text = "\n".join(statements)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = TomlLines(text)
    assert lines.places() == set(places(document))


def test_lines_are_exact() -> None:
    """Keys of inline tables, dotted keys, elements of arrays and tables of arrays have the lines that they stand on."""
    lines = TomlLines('a.b = [\n  1,\n  { c = """\n""", d = 2 }]\n[[t]]\nx = 1\n[[t]]\n[t.u]\n[a.z]\ny = 1\n')
    told = {(): 1, ("a", "b"): 1, ("a", "b", 0): 2, ("a", "b", 1): 3, ("a", "b", 1, "c"): 3, ("a", "b", 1, "d"): 4,
            ("t", 0, "x"): 6, ("t", 1): 7, ("t", 1, "u"): 8, ("a", "z"): 9, ("a", "z", "y", "absent"): 10}  # fmt: skip
    assert {place: lines.line(place) for place in told} == told
