"""Every error that Lockstep raises, each with its cause and its remedy.

LockstepError
├── SettingError              a setting is missing, wrong or contradicts another
│   └── SourcesFileWrong      the sources file has mistakes
├── SourceError               the source is at fault; nothing was written
│   ├── SourceUnreachable     no connection, or it broke
│   ├── SourceTimeout         it answered too slowly
│   ├── SourceRefused         it answered with a status that is not a success
│   ├── SourceIncomplete      its answer ended early
│   ├── SourceInvalid         its answer is not the JSON that was asked for
│   ├── SourceTooLarge        its answer, or one record of it, exceeds a cap
│   ├── AddressRefused        it led to an address that may not be contacted
│   └── SchemaConflict        its values do not fit the mirror's columns
├── DatabaseError             the database is at fault; the transaction was rolled back
│   ├── DatabaseUnavailable   no connection, or it broke
│   ├── DatabaseBlocked       another session holds a lock for too long
│   ├── DatabaseContended     another session wrote to the same rows; retried before it is reported
│   └── DatabaseRefused       it refused: rights, space, limits, a constraint
├── RunError                  the run itself could not go on
│   ├── MirrorBusy            another run of the same mirror is under way
│   ├── SourcePaused          the source is paused, so that nothing is synced until it is resumed
│   ├── SourceCooling         the source is not to be asked again before a moment that it named
│   ├── RefreshFailed         the run that a request waited for came to nothing
│   ├── UndoRefused           a run's changes cannot be taken back
│   ├── PlanStale             the plan that was to be applied is not the plan any more
│   ├── SpoolFailed           the temporary file of a run could not be written
│   ├── ApprovalRefused       there is no hold that this approval could release
│   ├── RunInterrupted        the run was stopped before it could finish
│   └── SomeNotSynced         of all sources, some were not brought in step
├── NotAuthorized             the caller did not prove who it is
├── ScopeMissing              the caller may not do this
├── TooManyAttempts           somebody tried to sign in too often
├── GrantRefused              a request for an access token cannot be granted
├── CrossSiteRefused          a page of another site tried to use its visitor's rights
├── NotOneRow                 one row alone was asked for, and there are none or several
├── TooManyStreams            as many long answers are under way as may be
├── NotFound                  what was asked for does not exist
│   └── SymbolUnknown         no price has this symbol
└── BadRequest                the request itself is malformed
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

NAMED = 10
"""How many of several names a message tells."""


class LockstepError(Exception):
    """Something went wrong.

    `cause` says what happened, `remedy` what to do about it; both are fit for logs and answers,
    so they never carry a secret. `code` is stable and meant for programs. `run` is the run
    that the error ended, if any.
    """

    code = "error"
    run: int | None = None
    default_remedy = "See app.log for the details."

    def __init__(self, cause: str, *, remedy: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy or self.default_remedy

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}"


class SettingError(LockstepError):
    """A setting is missing, wrong or contradicts another."""

    code = "setting_wrong"
    default_remedy = "Correct the setting and start again; the README lists every one."


class SourcesFileWrong(SettingError):
    """The sources file has mistakes; `mistakes` has one line for each, with file and line."""

    default_remedy = "Correct them and start again; python cli.py check lists them, docs/sources.md every key."

    def __init__(self, name: str, mistakes: Sequence[str]) -> None:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "a mistake"
        super().__init__(f"{name} has {count}: {'; '.join(mistakes)}.")
        self.mistakes = tuple(mistakes)


class SourceError(LockstepError):
    """The source is at fault; nothing was written."""

    code = "source_failed"
    default_remedy = "Nothing was written. Check the source and sync again."


class SourceUnreachable(SourceError):
    """The source could not be reached, or the connection to it broke."""

    code = "source_unreachable"
    default_remedy = "Nothing was written. Check that the source is up and that its URL is right, then sync again."


class SourceTimeout(SourceError):
    """The source answered too slowly."""

    code = "source_timeout"
    default_remedy = "Nothing was written. Raise the timeout that is named, or make the source faster, then sync again."


class SourceRefused(SourceError):
    """The source answered with a status that is not a success."""

    code = "source_refused"

    def __init__(
        self, cause: str, *, status: int, retry_after_seconds: float | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(cause, remedy=remedy)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class SourceIncomplete(SourceError):
    """The source's answer ended before it was complete."""

    code = "source_incomplete"
    default_remedy = "Nothing was written. Sync again; if it stays so, the source or a proxy cuts its answers short."


class SourceInvalid(SourceError):
    """The source's answer is not the JSON that was asked for."""

    code = "source_invalid"
    default_remedy = (
        "Nothing was written. Look at what the URL answers; SOURCE_RECORDS and SOURCE_FORMAT, or records and format of "
        "the source, say where records are."
    )


class SourceTooLarge(SourceError):
    """The source's answer, or one record of it, exceeds a cap."""

    code = "source_too_large"
    default_remedy = "Nothing was written. Raise the cap that is named if the source is right to be this large."


class AddressRefused(SourceError):
    """The source led to an address that may not be contacted."""

    code = "address_refused"
    default_remedy = (
        "Nothing was fetched. Set ALLOW_PRIVATE=true, or allow_private of the source, if it is meant to be in a "
        "private network."
    )


class SchemaConflict(SourceError):
    """The source's values do not fit the mirror's columns."""

    code = "schema_conflict"
    default_remedy = "Nothing was written. Alter the column that is named, or correct the source, then sync again."


class DatabaseError(LockstepError):
    """The database is at fault; the transaction was rolled back."""

    code = "database_failed"
    default_remedy = "Nothing was written. Check the database and sync again."


class DatabaseUnavailable(DatabaseError):
    """The database could not be reached, or the connection to it broke."""

    code = "database_unavailable"
    default_remedy = (
        "Check that the database is up and that its address and password are right; the service recovers by itself."
    )


class DatabaseBlocked(DatabaseError):
    """Another session holds a lock for too long."""

    code = "database_blocked"
    default_remedy = "Nothing was written. End the session that is named, or let it finish, then sync again."


class DatabaseContended(DatabaseError):
    """Another session wrote to the same rows at the same time, again and again."""

    code = "database_contended"
    default_remedy = "Nothing was written. Sync again when the other session has finished."


class DatabaseRefused(DatabaseError):
    """The database refused: missing rights, no space, a limit or a constraint."""

    code = "database_refused"


class RunError(LockstepError):
    """The run itself could not go on."""

    code = "run_failed"


class MirrorBusy(RunError):
    """Another run of the same mirror is under way."""

    code = "busy"
    default_remedy = "Wait for that run to end, then sync again."

    def __init__(self, cause: str, *, run: int, since: datetime) -> None:
        super().__init__(cause)
        self.run = run
        self.since = since


class SourcePaused(RunError):
    """The source is paused, so that nothing is synced until it is resumed."""

    code = "paused"

    def __init__(self, *, source: str, since: datetime, reason: str) -> None:
        super().__init__(
            f"{source} has been paused since {since:%Y-%m-%d %H:%M:%S} UTC: {reason}.",
            remedy="Nothing was written; dry runs and verify still work. When the source is right again, resume it"
            f" with python cli.py resume or POST /sources/{source}/resume, then sync.",
        )


class SourceCooling(RunError):
    """The source is not to be asked again before a moment that it named."""

    code = "cooling"

    def __init__(self, *, source: str, until: datetime, reason: str, seconds_left: float) -> None:
        super().__init__(
            f"{source} must not be asked again before {until:%Y-%m-%d %H:%M:%S} UTC: {reason}.",
            remedy="The source was not contacted. Wait until then; asking again sooner may prolong it. If the source is"
            f" known to answer again, python cli.py resume or POST /sources/{source}/resume ends the wait.",
        )
        self.until = until
        self.retry_after_seconds = seconds_left


class RefreshFailed(RunError):
    """The run that a request waited for came to nothing."""

    code = "refresh_failed"

    def __init__(self, cause: str, *, run: int, remedy: str | None) -> None:
        super().__init__(cause, remedy=remedy)
        self.run = run


class UndoRefused(RunError):
    """A run's changes cannot be taken back."""

    code = "undo_refused"
    default_remedy = "Nothing was written."


class PlanStale(RunError):
    """The plan that was to be applied is not the plan any more."""

    code = "stale"
    default_remedy = "Nothing was written. Ask for a new plan with ?dry_run=1 and apply that."


class SpoolFailed(RunError):
    """The temporary file that keeps a run's records could not be written."""

    code = "spool_failed"
    default_remedy = "Nothing was written. Make room, or name another directory in SPOOL_DIR, then sync again."


class ApprovalRefused(RunError):
    """There is no hold that this approval could release."""

    code = "approval_refused"
    default_remedy = "Look at GET /runs for the newest run with status held, and approve that one."


class RunInterrupted(RunError):
    """The run was stopped before it could finish."""

    code = "interrupted"
    default_remedy = "Nothing was written. Sync again."


class SomeNotSynced(RunError):
    """Of all sources, some were not brought in step."""

    code = "some_not_synced"
    default_remedy = "The answer tells cause and remedy for each of them; the others were synced."

    def __init__(self, *, failed: Sequence[str], held: Sequence[str], of: int) -> None:
        kinds = ((failed, "failed"), (held, "hold deletions"))
        told = "; ".join(f"{len(names)} {what}: {', '.join(names[:NAMED])}" for names, what in kinds if names)
        super().__init__(f"Of {of} sources, {told}.")


class NotAuthorized(LockstepError):
    """The caller did not prove who it is."""

    code = "not_authorized"
    default_remedy = (
        "Send a token in the header Authorization, after the word Bearer: one of POST /auth/token "
        "or of python cli.py token create, or the secret key itself."
    )

    def __init__(self, cause: str, *, token_given: bool = False) -> None:
        super().__init__(cause)
        self.token_given = token_given


class ScopeMissing(LockstepError):
    """The caller may not do this."""

    code = "insufficient_scope"

    def __init__(self, cause: str, *, scope: str) -> None:
        super().__init__(cause, remedy=f"Use a token with the scope {' or '.join(dict.fromkeys((scope, 'admin')))}.")
        self.scope = scope


class TooManyAttempts(LockstepError):
    """Somebody tried to sign in too often."""

    code = "too_many_attempts"
    default_remedy = "Wait as long as Retry-After says, then try again."

    def __init__(self, cause: str, *, retry_after_seconds: float) -> None:
        super().__init__(cause)
        self.retry_after_seconds = retry_after_seconds


class GrantRefused(LockstepError):
    """A request for an access token cannot be granted."""

    default_remedy = "See docs/security.md for what to send."

    def __init__(self, code: str, cause: str) -> None:
        super().__init__(cause)
        self.code = code


class CrossSiteRefused(LockstepError):
    """A page of another site tried to use its visitor's rights."""

    code = "cross_site_refused"
    default_remedy = "Call this address directly, not from a page of another site."


class TooManyStreams(LockstepError):
    """As many long answers are under way as may be."""

    code = "too_many_streams"
    default_remedy = "Close one, or try again when one has ended; /changes in pages is answered all the same."


class NotFound(LockstepError):
    """What was asked for does not exist."""

    code = "not_found"
    default_remedy = "Check the address; the README lists the routes."


class SymbolUnknown(NotFound):
    """No price has this symbol."""

    code = "symbol_unknown"

    def __init__(self, symbol: str, *, near: Sequence[str]) -> None:
        remedy = f"Did you mean {' or '.join(near)}?" if near else "GET /symbols/get/all has all of them."
        super().__init__(f"There is no symbol {symbol!r}.", remedy=remedy)
        self.near = tuple(near)


class NotOneRow(LockstepError):
    """One row alone was asked for, and there are none or several."""

    code = "not_one_row"
    default_remedy = "Filter by the key, or accept application/json for any number of rows."


class BadRequest(LockstepError):
    """The request itself is malformed."""

    code = "bad_request"
    default_remedy = "Correct the request; the README lists the parameters."
