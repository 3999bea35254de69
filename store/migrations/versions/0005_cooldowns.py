"""Cooldowns: until when a source is not to be asked again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "cooldowns",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("since", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("until", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("source", name="cooldowns_pkey"),
        schema="lockstep",
    )


def downgrade() -> None:
    """Take the revision back; sources may be asked at once."""
    op.drop_table("cooldowns", schema="lockstep")
