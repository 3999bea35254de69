"""The views of live rows: `<table>_live` shows a mirror without its tombstones.

A view is known for ours by its comment. It is made with the mirror, in the same transaction, and follows its columns;
whatever else bears its name is left alone. Rights that were granted on it outlive its being made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from models import DELETED_AT, FINGERPRINT
from store.database import sqlstate

log = structlog.get_logger()

SUFFIX = "_live"
MAX_NAME_BYTES = 63
INSUFFICIENT_PRIVILEGE = "42501"

LIVE_VIEW = """
    SELECT v.relkind = 'v' AND obj_description(v.oid, 'pg_class') = :live_comment AS live_is_ours,
           (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
             WHERE a.attrelid = v.oid AND a.attnum > 0) AS live_columns,
           v.reloptions AS live_options
      FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace
     WHERE n.nspname = :db_schema AND v.relname = :live_name
"""
"""What stands under a view's name, to be joined to what is read of the mirror."""

GRANTS = sa.text("""
    SELECT rights.privilege_type, rights.columns, rights.is_grantable,
           CASE rights.grantee WHEN 0 THEN 'PUBLIC' ELSE rights.grantee::regrole::text END AS grantee
      FROM (SELECT c.oid, c.relowner, acl.*, '' AS columns FROM pg_class c, aclexplode(c.relacl) acl
             UNION ALL
            SELECT c.oid, c.relowner, acl.*, format(' (%I)', a.attname)
              FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, aclexplode(a.attacl) acl) rights
     WHERE rights.oid = to_regclass(:view) AND rights.grantee <> rights.relowner
""")

_quote = asyncpg.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """The view of a mirror's live rows as it stands; it may not be there yet."""

    name: str
    db_schema: str
    comment: str
    columns: tuple[str, ...] = ()
    """Those it shows; empty if it is not there."""
    options: tuple[str, ...] = ()
    is_taken: bool = False
    """Whether something else bears its name."""

    def __str__(self) -> str:
        return f"{self.db_schema}.{self.name}"

    @property
    def qualified(self) -> str:
        """Its name as SQL spells it."""
        return f"{_quote(self.db_schema)}.{_quote(self.name)}"


def live_name(table: str) -> str:
    """Return the name of a table's view of live rows; one that would be too long is cut, and told apart by a hash."""
    encoded = table.encode()
    if len(encoded) + len(SUFFIX) <= MAX_NAME_BYTES:
        return table + SUFFIX
    digest = f"_{hashlib.blake2s(encoded, digest_size=4).hexdigest()}{SUFFIX}"
    return encoded[: MAX_NAME_BYTES - len(digest)].decode(errors="ignore") + digest


def live_comment(mirror: str) -> str:
    """Return the comment that tells a view for ours."""
    return f"Live rows of {mirror}; Lockstep keeps this view."


def shown(columns: Iterable[str]) -> tuple[str, ...]:
    """Return those of a table's columns that its view of live rows shows."""
    return tuple(name for name in columns if name not in (FINGERPRINT, DELETED_AT))


async def bring_view(
    session: AsyncSession, view: LiveView, table: str, columns: Sequence[str], *, is_new: bool
) -> None:
    """Make the view, or have it show these columns, unless something else has its name.

    `table` is as SQL spells it; `is_new` says that the table has become a mirror only now.
    """
    if view.is_taken and is_new:
        log.warning("live_view_not_made", view=str(view), reason="something else has this name")
    if view.is_taken or view.columns == tuple(columns):
        return
    if view.columns == tuple(columns[: len(view.columns)]):
        await _create_if_allowed(session, view, table, columns)
    else:
        grants = await drop_view(session, view)
        await create_view(session, view, table, columns, grants)


async def drop_view(session: AsyncSession, view: LiveView) -> list[str]:
    """Drop the view, so that its table can be altered; return the statements that grant the rights on it again."""
    grants = await _grants(session, view)
    await _execute(session, f"DROP VIEW {view.qualified}")
    return [
        f"GRANT {right.privilege_type}{right.columns} ON {view.qualified} TO {right.grantee}"
        + (" WITH GRANT OPTION" if right.is_grantable else "")
        for right in grants
    ]


async def create_view(
    session: AsyncSession, view: LiveView, table: str, columns: Sequence[str], grants: Sequence[str] = ()
) -> None:
    """Make the view, or replace it by one with more columns; `grants` are the rights it had before it was dropped."""
    options = f" WITH ({', '.join(view.options)})" if view.options else ""
    comment = view.comment.replace("'", "''")
    await _execute(
        session,
        f"CREATE OR REPLACE VIEW {view.qualified}{options} AS SELECT {', '.join(map(_quote, columns))}"  # noqa: S608 # quoted
        f" FROM {table} WHERE {_quote(DELETED_AT)} IS NULL",
    )
    await _execute(session, f"COMMENT ON VIEW {view.qualified} IS '{comment}'")
    if grants:
        # Default privileges may have given rights that had been taken away from the old view.
        for grantee in {right.grantee for right in await _grants(session, view)}:
            await _execute(session, f"REVOKE ALL ON {view.qualified} FROM {grantee}")
    for grant in grants:
        await _execute(session, grant)


async def _create_if_allowed(session: AsyncSession, view: LiveView, table: str, columns: Sequence[str]) -> None:
    """Make the view; a service that may write to a table need not have the right to make anything beside it."""
    try:
        async with session.begin_nested():
            await create_view(session, view, table, columns)
    except sa.exc.DBAPIError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        log.warning("live_view_refused", view=str(view), consequence="there is no view of the live rows")


async def _grants(session: AsyncSession, view: LiveView) -> Sequence[sa.Row[tuple[str, str, bool, str]]]:
    return (await session.execute(GRANTS, {"view": view.qualified})).all()


async def _execute(session: AsyncSession, statement: str) -> None:
    await (await session.connection()).exec_driver_sql(statement)
