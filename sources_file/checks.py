"""What the settings of a source, and several sources together, must agree in.

Every check yields where a mistake is, and the rest of a sentence that begins with that place.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from definitions import Source
from sources_file.entries import KEEP_OTHERS, Entry
from sources_file.lines import Place
from sources_file.tables import ApiKey, Basic, Bearer, NextUrl, OAuth2, Page, PageCursor
from sources_file.values import closest_ticks_seconds

Mistake = tuple[Place, str]


def check_entry(entry: Entry) -> Iterator[Mistake]:
    """Yield what contradicts itself in one entry."""
    yield from _check_request(entry)
    yield from _check_paging(entry)
    yield from _check_mode(entry)
    yield from _check_schedules(entry)
    yield from _check_fields(entry)
    yield from _check_names_in_mirror(entry)


def check_together(entries: Mapping[str, Entry], sources: Sequence[Source]) -> Iterator[tuple[str, Place, str]]:
    """Yield the name of a source with each mistake by which it and one before it stand in each other's way.

    A source that has no entry is that of the environment, and comes first.
    """
    first_of_table: dict[tuple[str, str], Source] = {}
    first_of_scope: dict[tuple[str, str, str], Source] = {}
    for place, source in enumerate(sources):
        if place and source.name == sources[0].name:
            yield source.name, (), f"has the name of the source that SOURCE_URL and table_name={source.name} describe"
            continue
        first = first_of_table.setdefault((source.db_schema, source.table), source)
        alike = first_of_scope.setdefault((source.db_schema, source.table, source.scope_id), source)
        if first is not source and source.name in entries:
            for where, message in _check_shared_table(first, source, alike):
                yield source.name, where, message


def near(name: str, known: Sequence[str]) -> str:
    """Return a question for the known name that is most like one that is not known, or a list of all that are."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(known)}"


def _check_request(entry: Entry) -> Iterator[Mistake]:
    if entry.body is not None and entry.method != "POST":
        yield ("body",), 'is only sent with method = "POST"'
    names = Counter(name.lower() for name in entry.headers)
    yield from ((("headers", name), "stands there twice") for name in entry.headers if names[name.lower()] > 1)
    taken = None
    if isinstance(entry.auth, Bearer | Basic | OAuth2):
        taken = "authorization"
    elif isinstance(entry.auth, ApiKey):
        taken = entry.auth.header.lower()
    yield from ((("headers", name), "is set by `auth` already") for name in entry.headers if name.lower() == taken)


def _check_paging(entry: Entry) -> Iterator[Mistake]:
    paging = entry.paging
    used = [*entry.params, *([entry.cursor.parameter] if entry.cursor else [])]
    for key in ("parameter", "size_parameter", "limit_parameter"):
        if (parameter := getattr(paging, key, None)) is None:
            continue
        if parameter in used:
            yield ("paging", key), "is a parameter that is set by something else already"
        used.append(parameter)
    if entry.cursor and entry.cursor.parameter in entry.params:
        yield ("cursor", "parameter"), "is one of `params` already"
    if isinstance(paging, Page) and paging.size_parameter and not paging.size:
        yield ("paging", "size_parameter"), "needs `size`, which it is to carry"
    if isinstance(paging, NextUrl | PageCursor):
        yield from _check_outside_of_records(entry, ("paging", "path"), paging.path)
    if entry.total is not None:
        if (entry.total.header is None) == (entry.total.path is None):
            yield ("total",), "needs either `header` or `path`"
        elif entry.total.path:
            yield from _check_outside_of_records(entry, ("total", "path"), entry.total.path)


def _check_outside_of_records(entry: Entry, place: Place, path: tuple[str, ...]) -> Iterator[Mistake]:
    if entry.format == "ndjson" or not entry.records:
        yield place, "leads into an object around the records, so `records` has to say where in it they are"
    elif path[: len(entry.records)] == entry.records:
        yield place, "leads into the array of records, which is not kept"


def _check_mode(entry: Entry) -> Iterator[Mistake]:
    if entry.mode == "snapshot" and entry.cursor is not None:
        yield ("cursor",), 'is only used with mode = "incremental" or "both"'
    if entry.mode != "snapshot" and entry.cursor is None:
        yield ("mode",), "needs `cursor`, which says how to ask for what is new"


def _check_schedules(entry: Entry) -> Iterator[Mistake]:
    if entry.every is not None and entry.cron is not None:
        yield ("cron",), "cannot go with `every`"
    if entry.snapshot_every is not None and entry.snapshot_cron is not None:
        yield ("snapshot_cron",), "cannot go with `snapshot_every`"
    for key in ("snapshot_every", "snapshot_cron"):
        if entry.mode != "both" and getattr(entry, key) is not None:
            yield (key,), f'is only used with mode = "both"; here it is `{key.removeprefix("snapshot_")}`'
    for key in ("every", "cron", "snapshot_every", "snapshot_cron"):
        if entry.jitter and (when := getattr(entry, key)) is not None:
            interval = closest_ticks_seconds(when) if isinstance(when, str) else when
            if entry.jitter >= interval:
                yield ("jitter",), f"must be shorter than the {interval:g} seconds between two runs by `{key}`"


def _check_fields(entry: Entry) -> Iterator[Mistake]:
    if "fields" in entry.model_fields_set and not entry.fields:
        yield ("fields",), "must name a field; leave it out to mirror all of them"
    if entry.fields.get(KEEP_OTHERS, KEEP_OTHERS) != KEEP_OTHERS:
        yield ("fields", KEEP_OTHERS), f'stands for all other fields, which keep their names: "{KEEP_OTHERS}"'
    names = Counter(entry.renamed.values())
    yield from (
        (("fields", field), "gives two fields the same name") for field, new in entry.renamed.items() if names[new] > 1
    )
    for name in entry.key:
        if entry.name_in_mirror(name) is None:
            yield ("key",), f"names {name}, which is not among `fields`"


def _check_names_in_mirror(entry: Entry) -> Iterator[Mistake]:
    for name in entry.scope:
        if name in entry.renamed.values() or name in map(entry.name_in_mirror, entry.key):
            yield ("scope", name), "is the name of one of the feed's fields too"
    known = [*entry.renamed.values(), *entry.scope]
    for name in entry.types:
        if name in known:
            continue
        if name in entry.renamed:
            yield ("types", name), f"is called {entry.renamed[name]} in the table, and is declared by that name"
        elif not entry.keeps_others and entry.nested != "flatten":
            yield ("types", name), f"is not among `fields`; {near(name, known)}"


def _check_shared_table(first: Source, second: Source, alike: Source) -> Iterator[Mistake]:
    """Compare a source with the first one of its table, and with the first one of its scope, itself maybe."""
    if not first.scope or not second.scope:
        table = f"{second.db_schema}.{second.table}"
        yield (), f"has the table {table} of {first.name}, so both need a `scope` by which their rows are told apart"
        return
    if first.scope.keys() != second.scope.keys():
        yield ("scope",), f"must have the fields of {first.name}, which has the same table: {', '.join(first.scope)}"
    for name in first.scope.keys() & second.scope.keys():
        if type(first.scope[name]) is not type(second.scope[name]):
            yield ("scope", name), f"must be of the same type as in {first.name}, which has the same table"
            return
    if alike is not second:
        yield ("scope",), f"is that of {alike.name}, which has the same table"
    yield from _check_shared_columns(first, second)


def _check_shared_columns(first: Source, second: Source) -> Iterator[Mistake]:
    key = first.key[len(first.scope) :]
    if key != second.key[len(second.scope) :]:
        yield ("key",), f"must be that of {first.name}, which has the same table: {', '.join(key)}"
    for name in sorted(first.types.keys() & second.types.keys()):
        if first.types[name] != second.types[name]:
            yield ("types", name), f"must be declared as in {first.name}, which has the same table"
    for attribute, setting in {"on_schema_change": "schema", "nested": "nested"}.items():
        if getattr(first, attribute) != getattr(second, attribute):
            yield (setting,), f"must be as in {first.name}, which has the same table: {getattr(first, attribute)}"
