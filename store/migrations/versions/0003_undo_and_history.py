"""Undoing runs: which run a run undoes, whether a source is paused, and the history of a row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("runs", sa.Column("undoes", sa.BigInteger(), nullable=True), schema="lockstep")
    op.add_column("mirrors", sa.Column("paused_since", sa.TIMESTAMP(timezone=True), nullable=True), schema="lockstep")
    op.add_column("mirrors", sa.Column("pause_reason", sa.Text(), nullable=True), schema="lockstep")
    op.create_index(
        "changes_key_idx",
        "changes",
        [sa.text("jsonb_hash_extended(key, 0) int8_bloom_ops (n_distinct_per_range = 2500)")],
        schema="lockstep",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    )


def downgrade() -> None:
    """Take the revision back; paused sources are synced again."""
    op.drop_index("changes_key_idx", table_name="changes", schema="lockstep")
    op.drop_column("mirrors", "pause_reason", schema="lockstep")
    op.drop_column("mirrors", "paused_since", schema="lockstep")
    op.drop_column("runs", "undoes", schema="lockstep")
