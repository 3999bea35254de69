"""Scopes: what is known of a mirror, of its runs and of foreign writes, for each source of a table; and cursors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEYS = {"mirrors": ["name"], "foreign_writes": ["mirror", "xid"]}
"""The primary keys without a scope."""
RUNNING = "runs_one_running_per_mirror"
IS_RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    """Apply the revision."""
    for table, key in KEYS.items():
        op.add_column(table, _scope(), schema="lockstep")
        _replace_key(table, [key[0], "scope", *key[1:]])
    op.add_column("mirrors", sa.Column("cursor", sa.Text(), nullable=True), schema="lockstep")
    op.add_column("runs", _scope(), schema="lockstep")
    op.drop_index(RUNNING, "runs", schema="lockstep")
    op.create_index(RUNNING, "runs", ["mirror", "scope"], unique=True, schema="lockstep", postgresql_where=IS_RUNNING)


def downgrade() -> None:
    """Take the revision back; sources with a scope are unknown from then on, and so are cursors."""
    op.execute("UPDATE lockstep.runs SET status = 'interrupted' WHERE status = 'running' AND scope <> ''")
    op.drop_index(RUNNING, "runs", schema="lockstep")
    op.create_index(RUNNING, "runs", ["mirror"], unique=True, schema="lockstep", postgresql_where=IS_RUNNING)
    op.drop_column("runs", "scope", schema="lockstep")
    op.drop_column("mirrors", "cursor", schema="lockstep")
    for table, key in KEYS.items():
        op.execute(f"DELETE FROM lockstep.{table} WHERE scope <> ''")  # noqa: S608 # a constant
        _replace_key(table, key)
        op.drop_column(table, "scope", schema="lockstep")


def _scope() -> sa.Column[str]:
    return sa.Column("scope", sa.Text(), server_default="", nullable=False)


def _replace_key(table: str, columns: list[str]) -> None:
    op.drop_constraint(f"{table}_pkey", table, schema="lockstep")
    op.create_primary_key(f"{table}_pkey", table, columns, schema="lockstep")
