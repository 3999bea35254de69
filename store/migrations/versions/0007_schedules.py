"""Schedules: when sources are due, which are parked, and which worker has which job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JOB_ENGINE = ("pgqueuer", "pgqueuer_log", "pgqueuer_statistics", "pgqueuer_schedules")
"""Tables that the job engine makes for itself when the first worker starts."""


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "schedules",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("spelled", sa.Text(), nullable=False),
        sa.Column("due", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_tick", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("longest_wait", sa.Interval(), nullable=True),
        sa.Column("named_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="schedules_pkey"),
        sa.UniqueConstraint("source", "mode", "spelled", name="schedules_source_mode_spelled_key"),
        schema="lockstep",
    )
    op.create_index("schedules_due_idx", "schedules", ["due"], schema="lockstep")
    op.create_table(
        "parked",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("since", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("source", "mode", name="parked_pkey"),
        schema="lockstep",
    )
    op.create_table(
        "job_starts",
        sa.Column("job", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("worker", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("started", sa.Boolean(), nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("job", name="job_starts_pkey"),
        schema="lockstep",
    )


def downgrade() -> None:
    """Take the revision back, and the job engine's tables with it; jobs that wait are forgotten."""
    for table in ("job_starts", "parked", "schedules"):
        op.drop_table(table, schema="lockstep")
    for table in JOB_ENGINE:
        op.execute(f"DROP TABLE IF EXISTS lockstep.{table}")
    op.execute("DROP FUNCTION IF EXISTS lockstep.fn_pgqueuer_changed()")
    op.execute("DROP TYPE IF EXISTS lockstep.pgqueuer_status")
