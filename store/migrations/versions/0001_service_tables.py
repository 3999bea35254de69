"""The service's own tables, and the functions behind the triggers on mirrors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FORGET_FINGERPRINT = """
    CREATE FUNCTION lockstep.forget_fingerprint() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW._sync_fingerprint := NULL;
        RETURN NEW;
    END $$
"""

# Whoever may write to a mirror need not have rights on the service's own tables.
NOTE_FOREIGN_WRITE = """
    CREATE FUNCTION lockstep.note_foreign_write() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        INSERT INTO lockstep.foreign_writes (mirror, xid)
        VALUES (TG_ARGV[0], pg_current_xact_id()::text::bigint)
        ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$
"""

# A cast cuts and rounds to a length or a scale without a word, so the value is also read without them: what comes out
# must be the same. A domain stands for the type behind it.
FITS = """
    CREATE FUNCTION lockstep.fits(value text, type_name text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
    DECLARE
        base oid := to_regtype(type_name);
        limitless text;
        comparable text;
        same boolean;
    BEGIN
        WHILE (SELECT typtype FROM pg_type WHERE oid = base) = 'd' LOOP
            SELECT typbasetype INTO base FROM pg_type WHERE oid = base;
        END LOOP;
        limitless := format_type(base, -1);
        comparable := CASE base WHEN 'numeric'::regtype THEN 'numeric' ELSE 'text' END;
        EXECUTE format('SELECT $1::%s::%s::%s = $1::%s::%s', type_name, limitless, comparable, limitless, comparable)
          INTO same USING value;
        RETURN same;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        RETURN false;
    END $$
"""


def create_changes() -> None:
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("mirror", sa.Text(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("key", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("changes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint("op IN ('created', 'updated', 'restored', 'deleted')", name=op.f("changes_op_check")),
        sa.PrimaryKeyConstraint("seq", name=op.f("changes_pkey")),
        schema="lockstep",
    )
    op.create_index("changes_run_idx", "changes", ["run"], unique=False, schema="lockstep")


def create_foreign_writes() -> None:
    op.create_table(
        "foreign_writes",
        sa.Column("mirror", sa.Text(), nullable=False),
        sa.Column("xid", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("mirror", "xid", name=op.f("foreign_writes_pkey")),
        schema="lockstep",
    )


def create_mirrors() -> None:
    op.create_table(
        "mirrors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fields", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("key", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("signature", sa.Text(), server_default="", nullable=False),
        sa.Column("fingerprint_kind", sa.Text(), server_default="raw", nullable=False),
        sa.Column("stored_kind", sa.Text(), server_default="raw", nullable=False),
        sa.Column("feed", sa.Text(), nullable=True),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("last_modified", sa.Text(), nullable=True),
        sa.Column("watched", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("live_rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_run", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("fingerprint_kind IN ('raw', 'canonical')", name=op.f("mirrors_fingerprint_kind_check")),
        sa.CheckConstraint("stored_kind IN ('raw', 'canonical')", name=op.f("mirrors_stored_kind_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("mirrors_pkey")),
        schema="lockstep",
    )


def create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("mirror", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("started_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("records", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("restored", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("deleted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unchanged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejected", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("duplicates", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("body_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("first_load", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("not_modified", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("approves", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("remedy", sa.Text(), nullable=True),
        sa.Column("problems", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'unchanged', 'held', 'failed', 'interrupted')",
            name=op.f("runs_status_check"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("runs_pkey")),
        schema="lockstep",
    )
    op.create_index(
        "runs_one_running_per_mirror",
        "runs",
        ["mirror"],
        unique=True,
        schema="lockstep",
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index("runs_source_id_idx", "runs", ["source", "id"], unique=False, schema="lockstep")


def upgrade() -> None:
    """Apply the revision."""
    create_changes()
    create_foreign_writes()
    create_mirrors()
    create_runs()
    for function in (FORGET_FINGERPRINT, NOTE_FOREIGN_WRITE, FITS):
        op.execute(function)


def downgrade() -> None:
    """Take the revision back; mirrors keep their rows and lose their triggers."""
    op.execute("DROP FUNCTION lockstep.fits(text, text)")
    op.execute("DROP FUNCTION lockstep.note_foreign_write() CASCADE")
    op.execute("DROP FUNCTION lockstep.forget_fingerprint() CASCADE")
    op.drop_index("runs_source_id_idx", table_name="runs", schema="lockstep")
    op.drop_index(
        "runs_one_running_per_mirror",
        table_name="runs",
        schema="lockstep",
        postgresql_where=sa.text("status = 'running'"),
    )
    op.drop_table("runs", schema="lockstep")
    op.drop_table("mirrors", schema="lockstep")
    op.drop_table("foreign_writes", schema="lockstep")
    op.drop_index("changes_run_idx", table_name="changes", schema="lockstep")
    op.drop_table("changes", schema="lockstep")
