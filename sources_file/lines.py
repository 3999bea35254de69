"""Where things stand in a TOML file: the line of every table, key and element, which tomllib does not tell.

tomllib decides what a file says, and whether it is TOML at all. What is read here is therefore valid, and a few
patterns are enough to find its keys again.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

Place = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and numbers of elements from 0."""

_PART = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_BLANKS = re.compile(r"(?:\s|#[^\n]*)*")
_SCALAR = re.compile(
    r'"""(?:\\.|[^"\\]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|[^\s,\]}#]+(?: [0-9][^\s,\]}#]*)?",  # a date and a time may have a blank between them
    re.DOTALL,
)


class TomlLines:
    """The lines of a text that tomllib has accepted, counted from 1."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._tables_in_array: dict[Place, int] = {}
        self._lines: dict[Place, int] = {}
        self._read()

    def line(self, place: Place) -> int:
        """Return the line where something stands, or where the innermost of what it belongs to does."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def places(self) -> set[Place]:
        """Return the ways to all tables, keys and elements."""
        return set(self._lines)

    def _read(self) -> None:
        table: Place = ()
        while self._peek():
            if self._peek() == "[":
                table = self._read_header()
            else:
                self._read_pair(table)

    def _read_header(self) -> Place:
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._skip(brackets)
        line, parts = self._read_key()
        self._skip(brackets)
        place = self._note((), parts[:-1], line)
        place = (*place, parts[-1])
        if brackets == 1:
            self._lines[place] = line  # its own header says more than a mention in a header before it
            return place
        self._lines.setdefault(place, line)
        number = self._tables_in_array[place] = self._tables_in_array.get(place, -1) + 1
        self._lines[(*place, number)] = line
        return (*place, number)

    def _read_pair(self, table: Place) -> None:
        line, parts = self._read_key()
        self._skip(1)  # the equals sign
        self._read_value(self._note(table, parts, line))

    def _read_value(self, place: Place) -> None:
        match self._peek():
            case "[":
                self._read_array(place)
            case "{":
                self._read_inline_table(place)
            case _:
                self._take(_SCALAR)

    def _read_array(self, place: Place) -> None:
        self._skip(1)
        number = 0
        while self._peek() != "]":
            self._lines[(*place, number)] = self._line
            self._read_value((*place, number))
            number += 1
            if self._peek() == ",":
                self._skip(1)
        self._skip(1)

    def _read_inline_table(self, place: Place) -> None:
        self._skip(1)
        while self._peek() != "}":
            self._read_pair(place)
            if self._peek() == ",":
                self._skip(1)
        self._skip(1)

    def _read_key(self) -> tuple[int, list[str]]:
        self._peek()
        line = self._line
        parts: list[str] = []
        inside: Any = tomllib.loads(f"{self._take(_KEY)} = 0")
        while isinstance(inside, dict):
            ((part, inside),) = inside.items()
            parts.append(part)
        return line, parts

    def _note(self, place: Place, parts: list[str], line: int) -> Place:
        """Go from a table along the parts of a key, noting where each was first met."""
        for part in parts:
            place = (*place, part)
            self._lines.setdefault(place, line)
            if place in self._tables_in_array:
                place = (*place, self._tables_in_array[place])
        return place

    def _peek(self) -> str:
        """Return the next character that is neither blank nor in a comment, or nothing at the end."""
        self._take(_BLANKS)
        return self._text[self._at : self._at + 1]

    def _skip(self, characters: int) -> None:
        self._peek()
        self._at += characters

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, "tomllib accepts what is not TOML"  # noqa: S101 (tomllib has read it before)
        self._at = found.end()
        self._line += found.group().count("\n")
        return found.group()
