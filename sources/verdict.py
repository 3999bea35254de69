"""Judge single pieces of JSON: one record gone wrong must cost one record, a broken document the whole fetch."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from errors import SourceInvalid
from projection import FeedKey

EXCERPT_CHARACTERS = 80

# One surrogate escape; an even number of backslashes may stand before it. The look-behind makes a long run of
# backslashes cost linear time: only its first one can begin a match.
_SURROGATE = re.compile(rb"\\(?<!\\\\)((?:\\\\)*+)u[dD][89a-fA-F][0-9a-fA-F]{2}")
_REPLACEMENT = rb"\\\g<1>uFFFD"

_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder()


def excerpt(data: bytes) -> str:
    """Return the beginning of `data`, fit for one line of a log."""
    text = data[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace").strip()
    shown = text[:EXCERPT_CHARACTERS] + ("…" if len(text) > EXCERPT_CHARACTERS else "")
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def without_surrogates(data: bytes) -> bytes:
    """Return `data` with every escaped surrogate, paired or lone, replaced by an escaped U+FFFD.

    Lone surrogates are the one thing that RFC 8259's grammar allows and msgspec refuses, so what decodes after this is
    syntactically valid.
    """
    return _SURROGATE.sub(_REPLACEMENT, data)


def reject_or_fail(element: bytes, key: FeedKey, place: str) -> tuple[str, dict[str, Any] | None]:
    """Return the reason and, where it can be read, the key of a record that msgspec refused.

    Raises:
        SourceInvalid: the element is not JSON at all.
    """
    try:
        decoded = _raw_list.decode(b"[%b]" % without_surrogates(element))
    except msgspec.DecodeError as exc:
        raise SourceInvalid(f"{place} is not valid JSON ({_describe(exc)}): {excerpt(element)}") from exc
    except RecursionError as exc:
        raise SourceInvalid(f"{place} is nested too deeply: {excerpt(element)}") from exc
    if len(decoded) != 1:
        raise SourceInvalid(f"{place} is not valid JSON (not one value): {excerpt(element)}")
    return "It contains an unpaired surrogate escape, which no text can hold.", read_key(decoded[0], key)


def read_key(record: msgspec.Raw, key: FeedKey) -> dict[str, Any] | None:
    """Return the key of a repaired record, or None unless every part of it is beyond doubt."""
    try:
        texts = key.read(_fields.decode(record))
        values = {name: _value.decode(text) for name, text in texts.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None
    return values if all(_is_beyond_doubt(value) for value in values.values()) else None


def _is_beyond_doubt(value: object) -> bool:
    if isinstance(value, str):
        return "\ufffd" not in value and "\0" not in value
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(error: msgspec.DecodeError) -> str:
    # The byte that msgspec names counts from the beginning of a piece that nobody but us has seen.
    return re.sub(r" \(byte \d+\)$", "", str(error)).removeprefix("JSON is malformed: ").lower()
