"""Write a proposal as an entry of the sources file, with no secret in it; the file's own text is left as it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tomlkit
from tomlkit.items import InlineTable, Table

from definitions import (
    CursorPaging,
    LinkHeaderPaging,
    NextUrlPaging,
    OffsetPaging,
    PageNumberPaging,
    Paging,
)
from errors import SettingError
from sources_file.proposing import Proposal
from sources_file.values import SECRET_PARAMETER, SHORTEST_TOKEN
from sources_file.variables import SECRET_HEADER, SECRET_NAME

NEW_FILE = "# The feeds that are mirrored; docs/sources.md tells every setting.\n"
NO_NAME = re.compile(r"[^A-Za-z0-9]+")
NO_NAME_OF_VARIABLE = re.compile(r"\W", re.ASCII)
LONGEST_NAME = 63
SHOWN = 5
"""How many names a comment tells."""
EXTENSION = re.compile(r"\.(?:ndjson|jsonl?|gz|php|aspx?)$", re.IGNORECASE)
PAGING_TYPES: Mapping[type[Paging], str] = {
    LinkHeaderPaging: "link",
    NextUrlPaging: "next_url",
    CursorPaging: "cursor",
    PageNumberPaging: "page",
    OffsetPaging: "offset",
}


@dataclass(kw_only=True)
class Request:
    """How a feed is asked for, as the file has it: a variable in place of every secret."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    auth: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """The secrets that were given, by the names of the variables that they are to be put into."""

    def without(self, parameters: set[str]) -> Request:
        """Return the request without some parameters of its URL, which something else is to set."""
        head, _, query = self.url.partition("?")
        kept = [pair for pair in query.split("&") if pair and unquote(pair.partition("=")[0]) not in parameters]
        url = "?".join([head, "&".join(kept)] if kept else [head])
        return Request(
            url=url, headers=self.headers, params=self.params, auth=self.auth, variables=dict(self.variables)
        )


def name_of(url: str) -> str:
    """Return a name for the source at a URL: that of its last part, or of its host."""
    parts = urlsplit(url)
    last = EXTENSION.sub("", EXTENSION.sub("", parts.path.rstrip("/").rpartition("/")[2]))
    for candidate in (last, (parts.hostname or "").removeprefix("www.").removeprefix("api.").partition(".")[0]):
        name = NO_NAME.sub("-", candidate).strip("-").lower()[:LONGEST_NAME]
        if name and not name.isdigit() and name != "all":
            return name
    return "feed"


def without_secrets(name: str, url: str, headers: Mapping[str, str]) -> Request:
    """Return how to ask for a feed with the secrets of its URL and headers put into variables.

    What is written as `${NAME}` already stays as it is.
    """
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    request = Request(url=parts._replace(netloc=host, fragment="", query="").geturl())
    if userinfo:
        user, _, password = userinfo.partition(":")
        request.auth = {
            "type": "basic",
            "username": _put(request, name, "username", unquote(user)),
            "password": _put(request, name, "password", unquote(password)),
        }
    kept = []
    for pair in filter(None, parts.query.split("&")):
        parameter, _, value = pair.partition("=")
        if _is_secret_parameter(unquote(parameter), value):
            request.params[unquote(parameter)] = _put(
                request, name, unquote(parameter), unquote(value.replace("+", " "))
            )
        else:
            kept.append(pair)
    request.url += f"?{'&'.join(kept)}" if kept else ""
    for header, value in headers.items():
        is_secret = SECRET_HEADER.search(header) is not None
        request.headers[header] = _put(request, name, header, value) if is_secret else value
    return request


def entry(name: str, table: str | None, request: Request, proposal: Proposal | None = None) -> str:
    """Return the entry as TOML; without a proposal, as much of it as is needed to ask for the feed."""
    written = tomlkit.table()
    written["url"] = request.url
    if table is not None:
        written["table"] = table
    for part in ("headers", "params", "auth"):
        if values := getattr(request, part):
            written[part] = _inline(values)
    if proposal is not None:
        _add_proposal(written, proposal)
    sources = tomlkit.table(is_super_table=True)
    sources[name] = written
    document = tomlkit.document()
    document["sources"] = sources
    return tomlkit.dumps(document)


def _add_proposal(written: Table, proposal: Proposal) -> None:
    sample = proposal.sample
    if sample.path:
        written["records"] = ".".join(sample.path)
    if sample.format != "auto":
        written["format"] = sample.format
    if proposal.key is None:
        written.add(tomlkit.comment('key = "..."  # nothing that was seen identifies a record; name it here'))
    else:
        fields = proposal.key.fields
        written["key"] = fields[0] if len(fields) == 1 else list(fields)
    if proposal.paging is not None:
        values = {name: value for name, value in asdict(proposal.paging).items() if value is not None}
        written["paging"] = _inline({"type": PAGING_TYPES[type(proposal.paging)], **values})
    if proposal.total is not None:
        written["total"] = _inline({name: value for name, value in asdict(proposal.total).items() if value})
    for comment in _comments(proposal):
        written.add(tomlkit.comment(comment))


def _comments(proposal: Proposal) -> list[str]:
    """Return what is a matter of taste, or cannot be known, to be taken over by whoever wants it."""
    comments = []
    if nested := [each.name for each in proposal.fields if each.is_object]:
        comments.append(f'nested = "flatten"  # would make columns of what is inside of {_named(nested)}')
    if decimals := [each.name for each in proposal.fields if each.holds_decimals]:
        types = _inline(dict.fromkeys(decimals, "numeric")).as_string()
        comments.append(f"types = {types}  # would keep as numbers what the source writes as texts")
    if proposal.cursor is not None:
        field_name = tomlkit.item(proposal.cursor).as_string()
        comments += [
            'mode = "both"  # would fetch only what is new, if a parameter of the source asks for that:',
            f'cursor = {{field = {field_name}, parameter = "updated_since"}}',
        ]
    return comments


def _named(names: list[str]) -> str:
    shown = ", ".join("".join(each if each.isprintable() else "?" for each in name) for name in names[:SHOWN])
    return shown + (", …" if len(names) > SHOWN else "")


def _inline(values: Mapping[str, Any]) -> InlineTable:
    table = tomlkit.inline_table()
    for name, value in values.items():
        table[name] = ".".join(value) if isinstance(value, tuple) else value
    return table


def _put(request: Request, name: str, what: str, value: str) -> str:
    """Put a secret into a variable, unless it is one or there is none; return what stands for it."""
    if not value or "${" in value:
        return value
    variable = NO_NAME_OF_VARIABLE.sub("_", f"{name}_{what}").upper()[:LONGEST_NAME]
    variable = f"_{variable}" if variable[0].isdigit() else variable
    request.variables[variable] = value
    return f"${{{variable}}}"


def _is_secret_parameter(name: str, value: str) -> bool:
    if SECRET_NAME.search(name):
        return bool(value)
    return SECRET_PARAMETER.search(name) is not None and len(value) >= SHORTEST_TOKEN


def demand_new(name: str, text: str, path: Path) -> None:
    """Raise SettingError if a file has a source of this name already."""
    if name in tomllib.loads(text.removeprefix("\ufeff").replace("\r\n", "\n")).get("sources", {}):
        raise SettingError(
            f"{path} has a source {name} already, and an entry is never overwritten.",
            remedy=f"Choose another name with --name, or change sources.{name} in {path} by hand.",
        )


def appended(text: str, entry_text: str) -> str:
    """Return a file's text with an entry at its end, in the file's own line ends."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text or NEW_FILE
    gap = "" if before.endswith("\n") else newline
    return before + gap + newline + entry_text.replace("\n", newline)


def addition(text: str, entry_text: str) -> str:
    """Return what has to be written behind a file's text."""
    return appended(text, entry_text)[len(text) :]
