"""From the parameters of a request to what is asked of a table's rows, in the words that PostgREST's users know.

    ?price=gt.10&price=lte.20&or=(name.ilike.*oak*,stock.is.null)&select=id,name,label:data->>title&order=price.desc,id

A name that is quoted, as in `"a.b"`, may hold anything; inside of quotes a backslash keeps its successor as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, get_args

from columns import MAX_NAME_BYTES
from errors import BadRequest
from store.query import ALL, Condition, Deleted, Field, Filter, Group, Operator, Ordering, Query, Shown

OPERATORS: tuple[str, ...] = get_args(Operator)
TRUTHS = ("null", "not_null", "true", "false", "unknown")
GROUPS = {"and": True, "or": False}
WORDS = ("select", "order", "limit", "after", "deleted", "as_of", "format", "raw")
"""Parameters that are no columns; a column of such a name is written in quotes."""
DEEPEST = 10
"""How deep conditions may be nested."""
LARGEST_ID = 2**63 - 1
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
INDEX = re.compile(r"-?[0-9]{1,9}")
NO_OFFSET = "Pages are not counted here: rows that come and go meanwhile would be skipped or shown twice."

Item = TypeVar("Item")


class Reader:
    """A text, and how far it has been read."""

    def __init__(self, text: str, parameter: str) -> None:
        self.text = text
        self.place = 0
        self.parameter = parameter

    def error(self, cause: str, remedy: str | None = None) -> BadRequest:
        """Return the error that names the parameter and the place."""
        return BadRequest(
            f"The parameter {self.parameter[:50]!r}: {cause} (character {self.place + 1}).", remedy=remedy
        )

    @property
    def at_end(self) -> bool:
        """Whether all was read."""
        return self.place >= len(self.text)

    def sees(self, word: str) -> bool:
        """Tell whether `word` comes next."""
        return self.text.startswith(word, self.place)

    def skip(self, word: str) -> bool:
        """Go past `word` if it comes next."""
        found = self.sees(word)
        self.place += len(word) if found else 0
        return found

    def demand(self, word: str) -> None:
        """Go past `word`, which must come next."""
        if not self.skip(word):
            found = repr(self.text[self.place : self.place + 10]) if not self.at_end else "the end"
            raise self.error(f"{word!r} is missing before {found}")

    def until(self, stops: str, *, arrows: bool = False) -> str:
        """Read what comes before any of the characters `stops`; with `arrows`, before `->` too."""
        start = self.place
        while not self.at_end and self.text[self.place] not in stops and not (arrows and self.sees("->")):
            self.place += 1
        return self.text[start : self.place]

    def word(self, stops: str, *, arrows: bool = False) -> str:
        """Read a word, in quotes or up to one of `stops`."""
        return self.quoted() if self.sees('"') else self.until(stops, arrows=arrows)

    def quoted(self) -> str:
        """Read a word in quotes."""
        self.demand('"')
        characters = []
        while not self.skip('"'):
            self.skip("\\")
            if self.at_end:
                raise self.error("a quotation mark is not closed")
            characters.append(self.text[self.place])
            self.place += 1
        return "".join(characters)

    def rest(self) -> str:
        """Read all that is left."""
        return self.until("")

    def field(self, stops: str) -> Field:
        """Read a column's name and the path into it."""
        column, path, as_text = self.word(stops, arrows=True), [], False
        if not column:
            raise self.error("the name of a column is missing")
        while not as_text and self.skip("->"):
            as_text = self.skip(">")
            is_quoted = self.sees('"')
            step = self.word(stops, arrows=True)
            path.append(int(step) if INDEX.fullmatch(step) and not is_quoted else step)
        if self.sees("->"):
            raise self.error("nothing can come after ->>, which takes what it leads to as text")
        return Field(column=column, path=tuple(path), as_text=as_text)

    def items(self, read: Callable[[], Item]) -> tuple[Item, ...]:
        """Read a list with commas, each of its items by `read`."""
        found = [read()]
        while self.skip(","):
            found.append(read())
        return tuple(found)


def read_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Return what the parameters of a request ask for; BadRequest says what is wrong with which of them."""
    given: dict[str, str] = {}
    filters: list[Filter] = []
    for name, value in parameters:
        if UNSTORABLE.search(name + value):
            raise BadRequest("A parameter holds U+0000 or half of a character, which no text in PostgreSQL can.")
        if name == "offset":
            raise BadRequest(NO_OFFSET, remedy="Follow the header Link of each page to the next one.")
        if name not in WORDS:
            filters.append(read_filter(name, value))
        elif name in given:
            raise BadRequest(f"The parameter {name} is given twice.")
        else:
            given[name] = value
    return Query(
        shown=read_select(given["select"]) if "select" in given else (ALL,),
        filters=tuple(filters),
        ordering=read_order(given["order"]) if given.get("order") else (),
        limit=_number("limit", given),
        after=given.get("after"),
        deleted=_deleted(given.get("deleted", "exclude")),
        as_of=_number("as_of", given),
    )


def read_filter(name: str, value: str) -> Filter:
    """Read a parameter that says which rows are wanted."""
    bare = name.removeprefix("not.")
    if bare in GROUPS:
        reader = Reader(value, name)
        reader.demand("(")
        group = _members(reader, every=GROUPS[bare], negated=bare != name, depth=1)
        _demand_end(reader)
        return group
    reader = Reader(name, name)
    field = reader.field("")
    _demand_end(reader)
    return _comparison(Reader(value, name), field, nested=False)


def _tree(reader: Reader, depth: int) -> Filter:
    """Read one member of a group."""
    if depth > DEEPEST:
        raise reader.error(f"conditions are nested deeper than {DEEPEST} levels")
    for spelled, every in GROUPS.items():
        for prefix in ("", "not."):
            if reader.skip(f"{prefix}{spelled}("):
                return _members(reader, every=every, negated=bool(prefix), depth=depth + 1)
    field = reader.field(".,()")
    reader.demand(".")
    return _comparison(reader, field, nested=True)


def _members(reader: Reader, *, every: bool, negated: bool, depth: int) -> Group:
    members = reader.items(lambda: _tree(reader, depth))
    reader.demand(")")
    return Group(every=every, members=members, negated=negated)


def _comparison(reader: Reader, field: Field, *, nested: bool) -> Condition:
    """Read an operator and what comes after it; inside of a group, that ends before a comma or a bracket."""
    negated = reader.skip("not.")
    start = reader.place
    word = reader.until(".,()")
    operator = _operator(word)
    if operator is None or not reader.skip("."):
        reader.place = start
        raise reader.error(
            f"there is no operator {word[:20]!r}" if word else "an operator is missing",
            f"Write {field}=eq.VALUE, or instead of eq another of {', '.join(OPERATORS)}; not. before it negates it."
            f" Parameters that are no columns: {', '.join((*WORDS, *GROUPS))}.",
        )
    values = _list(reader) if operator == "in" else (reader.word(",)") if nested else reader.rest(),)
    if not nested:
        _demand_end(reader)
    _check(reader, operator, values)
    return Condition(field=field, operator=operator, values=values, negated=negated)


def _operator(word: str) -> Operator | None:
    match word:
        case "eq" | "neq" | "gt" | "gte" | "lt" | "lte" | "like" | "ilike" | "in" | "is":
            return word
    return None


def _list(reader: Reader) -> tuple[str, ...]:
    reader.demand("(")
    if reader.skip(")"):
        return ()
    values = reader.items(lambda: reader.word(",)"))
    reader.demand(")")
    return values


def _check(reader: Reader, operator: Operator, values: Sequence[str]) -> None:
    if operator == "is" and values[0].lower() not in TRUTHS:
        raise reader.error(f"after is. comes {', '.join(TRUTHS)}")
    if operator in ("like", "ilike") and (len(values[0]) - len(values[0].rstrip("\\"))) % 2:
        raise reader.error("a pattern cannot end with a backslash", "Write two of them for a backslash itself.")


def read_select(text: str) -> tuple[Shown | str, ...]:
    """Read which fields are wanted, under which names."""
    reader = Reader(text, "select")
    shown = reader.items(lambda: _shown(reader))
    _demand_end(reader)
    return shown


def _shown(reader: Reader) -> Shown | str:
    if reader.skip(ALL):
        return ALL
    name, field = None, reader.field(",:()")
    if reader.sees("::") or reader.sees("("):
        raise reader.error(
            "casts, functions and other tables are not offered", "Name columns, as in select=id,alias:name."
        )
    if reader.skip(":"):
        if field.path:
            raise reader.error("before a colon comes the name that the field is to get")
        name, field = field.column, reader.field(",:()")
    shown = Shown(field=field, name=field.label if name is None else name)
    if not 0 < len(shown.name.encode()) <= MAX_NAME_BYTES:
        raise reader.error(f"a name may have 1 to {MAX_NAME_BYTES} bytes")
    return shown


def read_order(text: str) -> tuple[Ordering, ...]:
    """Read what rows are to be ordered by."""
    reader = Reader(text, "order")
    ordering = reader.items(lambda: _ordering(reader))
    _demand_end(reader)
    return ordering


def _ordering(reader: Reader) -> Ordering:
    field = reader.field(".,()")
    words = []
    while reader.skip("."):
        words.append(reader.until(".,()"))
    direction = words.pop(0) if words and words[0] in ("asc", "desc") else "asc"
    nulls = words.pop(0) if words and words[0] in ("nullsfirst", "nullslast") else None
    if words:
        raise reader.error(
            f"{words[0][:20]!r} is no direction",
            "Write column.asc or column.desc, and .nullsfirst or .nullslast after that; a name with a dot in quotes.",
        )
    return Ordering(
        field=field, descending=direction == "desc", nulls_first=None if nulls is None else nulls == "nullsfirst"
    )


def _demand_end(reader: Reader) -> None:
    if not reader.at_end:
        raise reader.error(f"{reader.text[reader.place : reader.place + 20]!r} was not expected")


def _number(name: str, given: dict[str, str]) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", value) or not 1 <= int(value) <= LARGEST_ID:
        raise BadRequest(f"The parameter {name} must be a whole number from 1 to {LARGEST_ID}.")
    return int(value)


def _deleted(value: str) -> Deleted:
    match value:
        case "exclude" | "include" | "only":
            return value
    raise BadRequest("The parameter deleted must be include, only or exclude.")
