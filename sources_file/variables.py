"""Variables in the sources file: `${NAME}` becomes the variable's value, and secrets may come in no other way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sources_file.lines import Place
from sources_file.values import SHORTEST_TOKEN, secrets_in_url

VARIABLE = re.compile(r"\$\$|\$\{([^}]*)\}?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")
"""What Python makes of other bytes in the environment."""

SECRET_MEMBERS = frozenset({"token", "password", "client_secret", "value"})
"""Of `auth`."""
SECRET_NAME = re.compile(
    r"(?:^|[-_.])(?:api|access|secret|private|auth|app|subscription|mbx-api)[-_.]?key$"
    r"|token$|secret$|passw(?:or)?d$|passphrase$|pwd$|signature$|credentials?$|^(?:key|auth|sig)$",
    re.IGNORECASE,
)
"""Names of parameters and members whose value, written down, would be a secret in a file."""
SECRET_HEADER = re.compile(rf"{SECRET_NAME.pattern}|key$|auth$|authorization$|^cookie$", re.IGNORECASE)
SUGGESTED = 63
"""How long the name of a variable is at most that a message suggests."""
SENT = frozenset({"url", "headers", "params", "body", "auth"})
"""What goes to the source; a variable in it is taken for a secret."""


@dataclass
class Expanded:
    """An entry with the values of its variables, and what was found on the way."""

    values: dict[str, Any] = field(default_factory=dict)
    mistakes: list[tuple[Place, str]] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)


def expand(values: Mapping[str, Any], variables: Mapping[str, str], *, name: str) -> Expanded:
    """Return an entry with `${NAME}` replaced; a variable that is missing, or a secret written down, is a mistake."""
    expansion = _Expansion(variables, name)
    for key, value in values.items():
        expanded = expansion.body(value) if key == "body" else expansion.expand(value, (key,))
        expansion.found.values[key] = expanded
    return expansion.found


class _Expansion:
    def __init__(self, variables: Mapping[str, str], name: str) -> None:
        self.found = Expanded()
        self._variables = variables
        self._name = name

    def expand(self, value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            return {name: self.expand(item, (*place, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self.expand(item, (*place, number)) for number, item in enumerate(value)]
        return self._text(value, place) if isinstance(value, str) else value

    def body(self, value: Any) -> Any:
        """Expand what a POST sends; inside of a text it is the JSON's own texts that have variables."""
        if not isinstance(value, str):
            return self.expand(value, ("body",))
        try:
            document = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError):
            self._mistake(("body",), "must be a table, an array, or a text with JSON in it")
            return value
        expanded = self.expand(document, ("body",))
        return value if expanded == document else json.dumps(expanded)  # in ASCII: a text may hold half a character

    def _text(self, text: str, place: Place) -> str:
        used: list[str] = []

        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            used.append(self._value(match, place))
            return used[-1]

        expanded = VARIABLE.sub(replaced, text)
        if place[0] in SENT:
            self._refuse_literals(text, place, literal=not used)
            self.found.secrets.update(_secrets(expanded, place, used))
        return expanded

    def _value(self, match: re.Match[str], place: Place) -> str:
        name = NAME.fullmatch(match[1]) if match[0].endswith("}") else None
        if name is None:
            self._mistake(place, "has a ${ that no name and } follow; for the characters themselves write $${")
            return ""
        value = self._variables.get(name[0], "")
        if not value:
            self._mistake(place, f"needs the variable {name[0]}, which is not set in the environment nor in .env")
        if NOT_UTF_8.search(value):
            self._mistake(place, f"needs the variable {name[0]}, whose value is not UTF-8")
            return ""
        return value

    def _refuse_literals(self, text: str, place: Place, *, literal: bool) -> None:
        found: list[tuple[str, Any]] = (
            [("this is a secret", place[-1])] if literal and text and _is_secret(place) else []
        )
        if _is_url(place) and _literal_userinfo(text):
            found.append(("has a secret before its @", "password"))
        if _is_url(place):
            found += [(f"has a secret in its parameter {name}", name) for name in _literal_parameters(text)]
        for what, name in found:
            suggested = re.sub(r"\W", "_", f"{self._name}_{name}").upper()[:SUGGESTED]
            self._mistake(
                place,
                f"{what}, which does not belong into a file: write ${{{suggested}}} instead of it, and set {suggested}"
                " in the environment or in .env",
            )

    def _mistake(self, place: Place, message: str) -> None:
        self.found.mistakes.append((place, message))


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and its like, which are not JSON


def _is_url(place: Place) -> bool:
    return place in {("url",), ("auth", "token_url")}


def _is_secret(place: Place) -> bool:
    match place[0]:
        case "auth":
            return place[-1] in SECRET_MEMBERS
        case "headers":
            return SECRET_HEADER.search(str(place[-1])) is not None
        case "params" | "body":
            return SECRET_NAME.search(str(place[-1])) is not None
    return False


def _literal_userinfo(url: str) -> bool:
    try:
        userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
    except ValueError:
        return False  # it is no URL, and is refused for that
    return bool(at) and "${" not in (userinfo.partition(":")[2] or userinfo)


def _literal_parameters(url: str) -> list[str]:
    """Return the names of parameters that hold a secret."""
    try:
        parameters = parse_qsl(urlsplit(url).query)
    except ValueError:
        return []
    return [name for name, value in parameters if SECRET_NAME.search(name) and "${" not in value]


def _secrets(expanded: str, place: Place, used: list[str]) -> Iterator[str]:
    """Yield what must not show in a log: short values only where secrets are, hosts not at all."""
    if _is_secret(place) and used:
        yield from (expanded, *used)
    elif not _is_url(place):
        yield from (value for value in used if len(value) >= SHORTEST_TOKEN)
    else:
        try:
            host = urlsplit(expanded).netloc.rpartition("@")[2]
            yield from secrets_in_url(expanded)
        except ValueError:
            host = ""  # it is no URL, and is refused for that
        yield from (
            value for value in used if len(value) >= SHORTEST_TOKEN and value not in host and "://" not in value
        )
