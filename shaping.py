"""The shape of a table that several sources share: settled in a short transaction of its own, before rows are written.

So their runs write at the same time, and none waits for the rows of another. A run that fails afterwards may leave an
empty table or an empty column behind, but no row and no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import structlog

from columns import Column, join
from definitions import Source
from errors import SchemaConflict, SourcePaused
from store import mirrors, runs, scopes, shapes
from store.database import Database
from store.mirrors import Mirror

log = structlog.get_logger()


def demand_scope(mirror: Mirror, source: Source) -> None:
    """Raise SchemaConflict if a table's rows belong to scopes, and a source without one would take all for its own.

    Such a table has columns, but no run of the whole table has made them.
    """
    if mirror.columns and mirror.state.last_run is None and not mirror.scope:
        raise SchemaConflict(
            f"Table {mirror.name} is shared by sources that have a `scope`, and {source.name} has none.",
            remedy="Nothing was written. Give the source its `scope` back, or another table.",
        )


def is_settled(mirror: Mirror, columns: Iterable[Column]) -> bool:
    """Tell whether a table is as a run of one of its scopes needs it."""
    is_watched = mirror.watched or not mirror.may_watch
    return set(columns) == set(mirror.columns) and mirror.is_adopted and mirror.keyed and is_watched


def united(mine: Sequence[Column], theirs: Sequence[Column]) -> tuple[Column, ...]:
    """Return columns that hold what either side needs; `theirs` are those that the table has."""
    have = {column.field: column for column in theirs}
    wide = tuple(_wider(column, have[column.field]) if column.field in have else column for column in mine)
    known = {column.field for column in mine}
    return (*wide, *(column for column in theirs if column.field not in known))


def _wider(mine: Column, theirs: Column) -> Column:
    if not theirs.owned:
        return theirs
    return replace(theirs, sql_type=join(theirs.sql_type, mine.sql_type) or theirs.sql_type)


async def settle_shape(database: Database, source: Source, run: int, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Bring a shared table into the shape that a run needs; return its columns, among them those of other sources."""
    async with database.transaction(run=run) as session:
        await runs.lock_run(session, run)
        await scopes.insert_scope(session, mirrors.mirror_name(source), source.scope_id, source.key)
        await scopes.lock_shape(session, mirrors.mirror_name(source), alone=True)
        mirror = await mirrors.select_mirror(session, source)
        if mirror.pause:
            raise SourcePaused(source=source.name, since=mirror.pause.since, reason=mirror.pause.reason)
        columns = united(columns, mirror.columns)
        if is_settled(mirror, columns):
            return columns
        if mirror.exists:
            await shapes.alter_mirror(session, mirror, columns)
        else:
            await shapes.create_mirror(session, mirror, columns, keyed=True)
        watched = await shapes.watch(session, mirror, columns)
        if not watched and mirror.may_watch:
            log.warning("triggers_refused", table=mirror.name, consequence="a 304 is never relied on")
        await mirrors.update_shape(session, mirror, columns, watched=watched)
    return columns
