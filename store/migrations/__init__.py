"""Migrations of the service's own tables: Alembic, in one transaction, under a lock that all replicas share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncSession

from models import SERVICE_SCHEMA
from store.database import Database

MIGRATION_LOCK = 0x10C5_7E9_0002
"""Key of the advisory lock under which migrations run; Alembic has none of its own."""


async def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the service's tables up to a revision; a second replica waits and then finds nothing to do."""
    await _run(database, lambda config: command.upgrade(config, revision))


async def downgrade(database: Database, revision: str) -> None:
    """Take the service's tables back to a revision, `base` for none; mirrors stay as they are."""
    await _run(database, lambda config: command.downgrade(config, revision))


async def revision(database: Database, message: str, *, autogenerate: bool = True) -> Path:
    """Write a new revision from the difference between the models and the database; return its file."""
    written: list[Path] = []

    def write(config: Config) -> None:
        script = command.revision(config, message, autogenerate=autogenerate)
        found = script if isinstance(script, list) else [script]
        written.extend(Path(each.path) for each in found if each is not None)

    await _run(database, write)
    return written[0]


async def current(database: Database) -> str | None:
    """Return the revision of the database, None before the first migration."""
    async with database.transaction() as session:
        if not await session.scalar(sa.select(sa.func.to_regclass(f"{SERVICE_SCHEMA}.alembic_version"))):
            return None
        version = sa.table("alembic_version", sa.column("version_num", sa.Text), schema=SERVICE_SCHEMA)
        return await session.scalar(sa.select(version.c.version_num))


def head() -> str | None:
    """Return the newest revision."""
    return ScriptDirectory.from_config(_config()).get_current_head()


async def _run(database: Database, action: Callable[[Config], None]) -> None:
    async with database.transaction() as session:
        await wait_for_turn(session)
        connection = await session.connection()

        def act(synchronous: sa.Connection) -> None:
            config = _config()
            config.attributes["connection"] = synchronous
            action(config)

        await connection.run_sync(act)


async def wait_for_turn(session: AsyncSession) -> None:
    """Hold the lock under which tables are made and altered until the transaction ends."""
    await session.execute(sa.text("SET LOCAL lock_timeout = 0"))
    await session.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    if not await session.scalar(sa.select(sa.func.to_regnamespace(SERVICE_SCHEMA))):
        await session.execute(sa.schema.CreateSchema(SERVICE_SCHEMA, if_not_exists=True))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
