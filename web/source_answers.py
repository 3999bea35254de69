"""What is told of a source: how it stands, and what the sources file says of it, without anything secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import telemetry
from definitions import Source
from models import Report
from schedules import Tick
from sources import redact
from store.states import SourceState
from web.answers import run_content

TOLD_APART = frozenset({"name", "table", "db_schema", "mode", "scope", "schedules"})
"""Fields of a source that stand in its answer under names of their own."""


def source_content(source: Source, state: SourceState) -> dict[str, Any]:
    """Return how a source stands."""
    content: dict[str, Any] = {
        "source": source.name,
        "table": f"{source.db_schema}.{source.table}",
        "mode": source.mode,
        "status": "active",
        **_kept_back(state),
        "live_rows": state.live_rows,
        "schedules": _schedules(source, state),
        "last_run": run_content(state.last_run, with_problems=False) if state.last_run else None,
    }
    return content | ({"scope": source.scope} if source.scope else {})


def full_content(source: Source, state: SourceState, runs: list[Report]) -> dict[str, Any]:
    """Return how a source stands, its last runs, and its settings; of what may be secret there is the kind or the name.

    `settings` has the names that the code has for them.
    """
    settings = {
        field.name: _shown(getattr(source, field.name))
        for field in fields(source)
        if field.repr and field.name not in TOLD_APART
    }
    return source_content(source, state) | {
        "url": redact(source.url),
        "headers": sorted(source.headers),
        "params": sorted(source.params),
        "settings": settings,
        "runs": [run_content(run, with_problems=False) for run in runs],
    }


def _kept_back(state: SourceState) -> dict[str, Any]:
    """Return what keeps jobs from syncing a source, if anything does; the gravest first."""
    if state.parked:
        parked = state.parked[0]
        return {"status": "parked", "since": parked.since, "reason": telemetry.redact(parked.reason)}
    if state.pause:
        return {"status": "paused", "since": state.pause.since, "reason": telemetry.redact(state.pause.reason)}
    if state.cooldown:
        cooldown = state.cooldown
        told = {"since": cooldown.since, "until": cooldown.until, "reason": telemetry.redact(cooldown.reason)}
        return {"status": "cooling", **told}
    return {}


def _schedules(source: Source, state: SourceState) -> list[dict[str, Any]]:
    """Return the schedules that the file has, and when each is due next."""
    rows = {(due.mode, due.spelled): due for due in state.due}
    parked = {one.mode for one in state.parked}
    told = []
    for schedule in source.schedules:
        _, mode, spelled = Tick(source=source, schedule=schedule).identity
        row = rows.get((mode, spelled))
        told.append(
            {
                "mode": mode,
                "when": spelled,
                "next_due": row.due if row and mode not in parked else None,
                "last_tick": row.last_tick if row else None,
            }
        )
    return told


def _shown(value: Any) -> Any:
    """Return a setting as JSON knows it; fields that are kept from logs are kept from here too."""
    if is_dataclass(value):
        shown = {field.name: _shown(getattr(value, field.name)) for field in fields(value) if field.repr}
        return {"kind": type(value).__name__, **shown}
    return dict(value) if isinstance(value, Mapping) else value
