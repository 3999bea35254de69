"""Read the beginning of a feed that nothing is known about: how it is laid out, and where in it the records are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from errors import SourceInvalid

Path = tuple[str, ...]

DEEPEST = 5
"""How many objects may stand around the array of records."""
MAX_NAMED = 10
"""How many fields a message names."""
LINE_TYPE = re.compile(r"(?:application|text)/(?:x-)?(?:nd-?json|json-?l(?:ines)?)")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],"]', re.DOTALL)
CLOSING = {"{": "}", "[": "]"}

REMEDY = "Nothing was written. If the source is right, write the entry by hand: docs/sources.md tells how."


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The records that were seen, and what stands around them."""

    format: Literal["auto", "ndjson"]
    path: Path
    """The way to the array; empty for one at the top level, and for lines."""
    records: Sequence[Mapping[str, Any]]
    others: int = 0
    """How many elements of the array are no objects, and so no records."""
    around: Mapping[str, Any] = field(default_factory=dict)
    """The object around the array, as far as it was seen."""
    is_whole: bool = True


def read_sample(body: bytes, *, content_type: str, is_whole: bool) -> Sample:
    """Find the records in the beginning of an answer, or in all of it.

    Raises:
        SourceInvalid: there are none, or the answer is no JSON.
    """
    text = body.decode(errors="replace").strip()
    if not text:
        raise SourceInvalid("The answer is empty.", remedy=REMEDY)
    if _is_lines(text, content_type):
        return _read_lines(text, is_whole=is_whole)
    document = _parse(text if is_whole else closed(text))
    if isinstance(document, list):
        return _sample((), document, {}, is_whole=is_whole)
    if not isinstance(document, dict):
        raise SourceInvalid("The answer is neither an array nor an object.", remedy=REMEDY)
    found = max(_arrays(document), key=lambda entry: (_objects_in(entry[1]), -len(entry[0])), default=None)
    if found is None:
        raise SourceInvalid(f"The answer has no array that could hold records. {_describe(document)}", remedy=REMEDY)
    return _sample(*found, document, is_whole=is_whole)


def closed(text: str) -> str:
    """Return JSON that ends early up to its last complete element, with all that is open closed."""
    open_ones: list[str] = []
    end, closing = 0, ""
    for token in TOKEN.finditer(text):
        match token[0]:
            case "{" | "[" as opening:
                open_ones.append(CLOSING[opening])
            case "}" | "]" if open_ones:
                open_ones.pop()
            case ",":
                end, closing = token.start(), "".join(reversed(open_ones))
            case '"':
                break  # a string that does not end
    return text[:end] + closing


def _is_lines(text: str, content_type: str) -> bool:
    if not text.startswith("{"):
        return False
    if LINE_TYPE.fullmatch(content_type):
        return True
    first, _, following = text.partition("\n")
    try:
        return isinstance(json.loads(first), dict) and following.lstrip().startswith("{")
    except (ValueError, RecursionError):
        return False


def _read_lines(text: str, *, is_whole: bool) -> Sample:
    lines = [line for line in text.split("\n") if line.strip()]
    records = [_parse(line) for line in (lines if is_whole else lines[:-1])]
    return _sample((), records, {}, is_whole=is_whole, layout="ndjson")


def _sample(
    path: Path,
    elements: Sequence[Any],
    around: Mapping[str, Any],
    *,
    is_whole: bool,
    layout: Literal["auto", "ndjson"] = "auto",
) -> Sample:
    if not is_whole and layout == "auto":
        elements = elements[:-1]  # the last one may be cut short
    records = [element for element in elements if isinstance(element, dict)]
    if not records:
        where = f"under {'.'.join(path)}" if path else "at the top level"
        what = "is empty" if not elements else "holds no objects"
        raise SourceInvalid(
            f"The array {where} {what}, so nothing tells what its records look like.",
            remedy="Nothing was written. Run this again when the source has records, or write the entry by hand:"
            " docs/sources.md tells how.",
        )
    return Sample(
        format=layout,
        path=path,
        records=records,
        others=len(elements) - len(records),
        around=around,
        is_whole=is_whole,
    )


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as exc:
        shown = "".join(character if character.isprintable() else " " for character in text[:80])
        raise SourceInvalid(f"The answer is not JSON that can be read: {shown}", remedy=REMEDY) from exc


def _arrays(members: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, list[Any]]]:
    """Yield all arrays that a path of names with dots between them can lead to."""
    for name, value in members.items():
        if not name or "." in name:
            continue
        if isinstance(value, list):
            yield (*path, name), value
        elif isinstance(value, dict) and len(path) < DEEPEST:
            yield from _arrays(value, (*path, name))


def _objects_in(elements: Sequence[Any]) -> int:
    return sum(isinstance(element, dict) for element in elements)


def _describe(document: Mapping[str, Any]) -> str:
    values = list(document.values())
    names = ", ".join(list(document)[:MAX_NAMED])
    if len(values) > 1 and all(isinstance(value, dict) for value in values):
        return (
            f"Its {len(values)} members, such as {names[:80]}, are objects themselves; records have to be in an array."
        )
    return f"Its fields are: {names or 'none'}."
