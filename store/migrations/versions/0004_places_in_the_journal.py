"""Which numbers of the journal are whose: that leads readers to the entries of a source or table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEXES = {
    "runs_last_seq_idx": ["last_seq"],
    "runs_source_last_seq_idx": ["source", "last_seq"],
    "runs_mirror_last_seq_idx": ["mirror", "last_seq"],
}
PLACES = """
    UPDATE lockstep.runs r SET first_seq = c.first_seq, last_seq = c.last_seq
      FROM (SELECT run, min(seq) AS first_seq, max(seq) AS last_seq FROM lockstep.changes GROUP BY run) c
     WHERE c.run = r.id
"""
"""Runs numbered their entries one after the other, so each has its numbers to itself. First loads had none."""


def upgrade() -> None:
    """Apply the revision."""
    for column in ("first_seq", "last_seq"):
        op.add_column("runs", sa.Column(column, sa.BigInteger(), nullable=True), schema="lockstep")
    op.execute(PLACES)
    for name, columns in INDEXES.items():
        op.create_index(name, "runs", columns, schema="lockstep", postgresql_where=sa.text("last_seq IS NOT NULL"))


def downgrade() -> None:
    """Take the revision back."""
    for name in INDEXES:
        op.drop_index(name, table_name="runs", schema="lockstep")
    for column in ("last_seq", "first_seq"):
        op.drop_column("runs", column, schema="lockstep")
