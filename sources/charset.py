"""Turn a body in any declared or recognisable encoding into UTF-8; never guess a letter.

UTF-8 that nobody declared to be something else passes untouched, broken sequences included: they cost only the record
that they stand in, once that is decoded.
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Callable
from typing import Literal

from errors import SourceInvalid

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ZERO_PATTERNS: dict[tuple[bool, ...], str] = {
    # JSON begins with an ASCII character, and an array of records goes on with another one.
    (True, True, True, False): "utf-32-be",
    (False, True, True, True): "utf-32-le",
    (True, False, True, False): "utf-16-be",
    (False, True, False, True): "utf-16-le",
}
_LONGEST_MARK_BYTES = 4
_UTF_8_ALIASES = frozenset({"utf-8", "ascii"})
_ASCII = bytes([*range(0x20, 0x7F), *b"\t\r\n"])
_PASSED_BACKSLASH = rb"\u0041"


class Transcoder:
    """Decode a body piece by piece.

    A declared charset is believed only where the bytes are not UTF-8: servers declare wrongly more often than text
    happens to be valid UTF-8 by chance.
    """

    def __init__(self, declared: str | None) -> None:
        self._declared = declared
        self._head = b""
        self._decode: Callable[[bytes, bool], bytes] | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the next piece of the body as UTF-8."""
        if self._decode is None:
            self._head += data
            if len(self._head) < _LONGEST_MARK_BYTES:
                return b""
            return self._begin(is_all=False)
        return self._decode(data, False)

    def finish(self) -> bytes:
        """Return what is left of the body; raise if it ends inside a character."""
        return self._begin(is_all=True) if self._decode is None else self._decode(b"", True)

    def _begin(self, *, is_all: bool) -> bytes:
        head, encoding = _recognise(self._head)
        self._head = b""
        if encoding not in (None, "utf-8"):
            self._decode = _converter(str(encoding))
        elif encoding == "utf-8" or _is_utf_8(self._declared):
            self._decode = _pass
        else:
            self._decode = _Believer(str(self._declared)).decode
        return self._decode(head, is_all)


class _Believer:
    """Take bytes for UTF-8 until they are not, and then for what was declared, unless that would contradict itself."""

    def __init__(self, declared: str) -> None:
        self._declared = declared
        self._kept = b""
        self._saw_other_than_ascii = False
        self._convert: Callable[[bytes, bool], bytes] | None = None

    def decode(self, data: bytes, is_all: Literal[True, False]) -> bytes:
        if self._convert:
            return self._convert(data, is_all)
        text = self._kept + data
        try:
            _, valid = codecs.utf_8_decode(text, "strict", is_all)
        except UnicodeDecodeError as exc:
            return self._switch(text, exc.start, is_all)
        self._saw_other_than_ascii |= not text[:valid].isascii()
        self._kept = text[valid:]
        return text[:valid]

    def _switch(self, text: bytes, place: int, is_all: bool) -> bytes:
        if self._saw_other_than_ascii or not text[:place].isascii():
            raise SourceInvalid(f"The answer is declared as {self._declared!r} but mixes it with UTF-8.")
        self._convert = _converter(_usable(self._declared))
        return text[:place] + self._convert(text[place:], is_all)


def _pass(data: bytes, _is_all: bool) -> bytes:
    return data


def _recognise(head: bytes) -> tuple[bytes, str | None]:
    """Return `head` without a byte order mark, and the Unicode encoding that the mark or the zero bytes show."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return head[len(mark) :], encoding
    return head, _ZERO_PATTERNS.get(tuple(byte == 0 for byte in head[:_LONGEST_MARK_BYTES]))


def _is_utf_8(declared: str | None) -> bool:
    if not declared:
        return True
    try:
        return codecs.lookup(declared).name in _UTF_8_ALIASES
    except (LookupError, ValueError):
        return False


def _usable(declared: str) -> str:
    """Return the codec for a declared charset, if it is one in which ASCII text means itself."""
    try:
        name = codecs.lookup(declared).name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            is_transparent = _ASCII.decode(name) == _ASCII.decode("ascii")
            reads_escapes = _PASSED_BACKSLASH.decode(name) != _PASSED_BACKSLASH.decode("ascii")
    except (LookupError, ValueError, DeprecationWarning):
        is_transparent, reads_escapes = False, False
    if not is_transparent or reads_escapes:
        raise SourceInvalid(f"The answer is not UTF-8, and the charset it declares, {declared!r}, cannot be used.")
    # What the Web calls ISO 8859-1 is windows-1252 (WHATWG Encoding Standard, 4.2).
    return "cp1252" if name == "iso8859-1" else name


def _converter(encoding: str) -> Callable[[bytes, bool], bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()

    def convert(data: bytes, is_all: bool) -> bytes:
        try:
            return decoder.decode(data, is_all).encode()
        except UnicodeError as exc:
            raise SourceInvalid(f"The answer is not valid {encoding}, which it is declared or appears to be.") from exc

    return convert
