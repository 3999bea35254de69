"""The triggers that tell when anyone but a run writes to a mirror.

The functions behind them are made by the migrations. `lockstep_forget` takes a row's fingerprint away when one of its
mirrored columns is set, so that the next run writes the record again. The others note the transaction that wrote, so
that the next run does not rely on what the last one knew: a note is a row of its own, so writers never wait for one
another, and it is committed or rolled back together with what it tells of.
"""

from __future__ import annotations

from collections.abc import Sequence

TRIGGERS = ("lockstep_forget", "lockstep_note", "lockstep_note_truncate")

BY_OTHERS = "WHEN (COALESCE(current_setting('lockstep.run', true), '') = '')"


def create_triggers(qualified: str, mirror: str, columns: Sequence[str]) -> list[str]:
    """Return the statements that put the triggers on a table; `columns` are the quoted names of mirrored columns."""
    forget, note, note_truncate = TRIGGERS
    name = mirror.replace("'", "''")
    forgetting = f"FOR EACH ROW {BY_OTHERS} EXECUTE FUNCTION lockstep.forget_fingerprint()"
    noting = f"FOR EACH STATEMENT {BY_OTHERS} EXECUTE FUNCTION lockstep.note_foreign_write('{name}')"
    return [
        f"CREATE OR REPLACE TRIGGER {forget} BEFORE UPDATE OF {', '.join(columns)} ON {qualified} {forgetting}",
        f"CREATE OR REPLACE TRIGGER {note} AFTER INSERT OR UPDATE OR DELETE ON {qualified} {noting}",
        f"CREATE OR REPLACE TRIGGER {note_truncate} AFTER TRUNCATE ON {qualified} {noting}",
    ]
