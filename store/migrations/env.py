"""Alembic's entry point: it migrates over the connection that store.migrations hands it."""

from __future__ import annotations

from typing import Any

from alembic import context

import access  # noqa: F401 (its tables join those of the models)
import store.schedules  # noqa: F401 (likewise)
from models import SERVICE_SCHEMA, ServiceBase

NOT_COMPARED = frozenset({"changes_key_idx"})
"""Indexes over expressions with an operator class, which PostgreSQL spells otherwise than the model does."""


JOB_ENGINE = "pgqueuer"
"""What the names of the job engine's tables begin with; it makes them itself."""


def is_ours(_object: Any, name: str | None, type_: str, _reflected: bool, _compare_to: Any) -> bool:
    """Tell whether autogenerate may look at an object: at the service's own tables, never at mirrors."""
    if type_ == "index" and name in NOT_COMPARED:
        return False
    if type_ == "table" and (name or "").startswith(JOB_ENGINE):
        return False
    return type_ != "table" or (name != "alembic_version" and _object.schema == SERVICE_SCHEMA)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=ServiceBase.metadata,
    version_table_schema=SERVICE_SCHEMA,
    include_schemas=True,
    include_name=lambda name, type_, _parents: type_ != "schema" or name == SERVICE_SCHEMA,
    include_object=is_ours,
    compare_server_default=True,
)
context.run_migrations()
