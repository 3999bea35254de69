"""Who holds the locks that a run waits for."""

from __future__ import annotations

import sqlalchemy as sa

from definitions import Source
from store.database import Database


async def select_lock_holders(database: Database, source: Source) -> list[int]:
    """Return the backends that hold locks on a mirror's table or its rows, to be named to whoever waited for them."""
    query = sa.text("""
        SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE l.granted AND l.mode <> 'AccessShareLock' AND l.pid <> pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND n.nspname = :db_schema AND c.relname = :table
         ORDER BY l.pid
    """)
    async with database.transaction() as session:
        return list(await session.scalars(query, {"db_schema": source.db_schema, "table": source.table}))
