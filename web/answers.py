"""How answers look: JSON, and one shape for everything that did not go well.

A problem is a document as RFC 9457 describes it: `type`, `title`, `status`, `detail`, and as extensions `http_status`,
`code`, `remedy` and, where a run is concerned, `run`. In answers about a run `status` is the word that the run ended
with, as in every other answer about runs; RFC 9457, 3.1 has consumers ignore a `status` that is not a number, and
`http_status` is always the number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import errors
import telemetry
from definitions import Source
from models import Change, Difference, FirstLoad, Plan, Problem, Report

COMPLETED = "Data synchronization completed"
PROBLEM_TYPE = "application/problem+json"
BUSY_RETRY_SECONDS = 5
DATABASE_RETRY_SECONDS = 2

HTTP_STATUS: Mapping[type[errors.LockstepError], HTTPStatus] = MappingProxyType(
    {
        errors.SourceTimeout: HTTPStatus.GATEWAY_TIMEOUT,
        errors.SourceError: HTTPStatus.BAD_GATEWAY,
        errors.DatabaseError: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.MirrorBusy: HTTPStatus.CONFLICT,
        errors.PlanStale: HTTPStatus.CONFLICT,
        errors.SourcePaused: HTTPStatus.CONFLICT,
        errors.SourceCooling: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.RefreshFailed: HTTPStatus.BAD_GATEWAY,
        errors.UndoRefused: HTTPStatus.CONFLICT,
        errors.ApprovalRefused: HTTPStatus.CONFLICT,
        errors.RunInterrupted: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.SomeNotSynced: HTTPStatus.BAD_GATEWAY,
        errors.TooManyStreams: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.NotAuthorized: HTTPStatus.UNAUTHORIZED,
        errors.ScopeMissing: HTTPStatus.FORBIDDEN,
        errors.TooManyAttempts: HTTPStatus.TOO_MANY_REQUESTS,
        errors.CrossSiteRefused: HTTPStatus.FORBIDDEN,
        errors.NotFound: HTTPStatus.NOT_FOUND,
        errors.NotOneRow: HTTPStatus.NOT_ACCEPTABLE,
        errors.BadRequest: HTTPStatus.BAD_REQUEST,
        errors.LockstepError: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
RUN_WORDS = MappingProxyType(
    {
        errors.MirrorBusy: "busy",
        errors.SourcePaused: "paused",
        errors.SourceCooling: "cooling",
        errors.PlanStale: "stale",
        errors.RunInterrupted: "interrupted",
    }
)
"""What `status` says of a run that did not succeed, where it is not "failed"."""

WRONG_ADDRESS = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


def _encode_other(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_encoder = msgspec.json.Encoder(enc_hook=_encode_other, decimal_format="number")


def encode(content: Mapping[str, Any]) -> bytes:
    """Return `content` as JSON on one line."""
    return _encoder.encode(content)


def answer(content: Mapping[str, Any], status: int = HTTPStatus.OK, **headers: str) -> Response:
    """Return `content` as JSON; the names of `headers` are written with underscores."""
    response = Response(encode(content), status=int(status), content_type="application/json")
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    response.headers["Cache-Control"] = "no-store"
    return response


def problem(
    *,
    title: str,
    detail: str,
    remedy: str,
    code: str,
    http_status: int,
    word: str | None = None,
    **extensions: Any,
) -> Response:
    """Return a problem document; `word` stands as its `status` where a run is concerned."""
    content = {
        "type": f"urn:lockstep:problem:{code}",
        "title": title,
        "status": word or int(http_status),
        "http_status": int(http_status),
        "detail": telemetry.redact(detail),
        "remedy": telemetry.redact(remedy),
        "code": code,
        **extensions,
    }
    response = answer(content, http_status)
    response.content_type = PROBLEM_TYPE
    return response


def error_answer(error: errors.LockstepError, *, of_run: bool = False) -> Response:
    """Return what the caller is told of an error; `of_run` where it ended, or kept from starting, a run."""
    status = status_of(error)
    extensions: dict[str, Any] = {}
    if (run := getattr(error, "run", None)) is not None:
        extensions["run"] = run
    if isinstance(error, errors.MirrorBusy):
        extensions["since"] = error.since
    if isinstance(error, errors.SourceCooling):
        extensions["until"] = error.until
    if isinstance(error, errors.SymbolUnknown):
        extensions["near"] = error.near
    response = problem(
        title=_title(error),
        detail=error.cause,
        remedy=error.remedy,
        code=error.code,
        http_status=status,
        word=RUN_WORDS.get(type(error), "failed") if of_run else None,
        **extensions,
    )
    if isinstance(error, errors.MirrorBusy):
        response.headers["Retry-After"] = str(BUSY_RETRY_SECONDS)
    elif isinstance(error, errors.SourceCooling):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(DATABASE_RETRY_SECONDS)
    elif isinstance(error, errors.NotAuthorized | errors.ScopeMissing):
        response.headers["WWW-Authenticate"] = _challenge(error)
    return response


def status_of(error: errors.LockstepError) -> HTTPStatus:
    """Return the HTTP status for an error."""
    return next(status for kind, status in HTTP_STATUS.items() if isinstance(error, kind))


def ping_answer(error: errors.LockstepError | None, parts: Mapping[str, Any]) -> Response:
    """Return how those answered that prices depend on; `error` says what is wrong with one of them."""
    if error is None:
        return answer({"status": "ok", **parts})
    response = problem(
        title=_title(error),
        detail=error.cause,
        remedy=error.remedy,
        code=error.code,
        http_status=HTTPStatus.SERVICE_UNAVAILABLE,
        **parts,
    )
    seconds = error.retry_after_seconds if isinstance(error, errors.SourceCooling) else DATABASE_RETRY_SECONDS
    response.headers["Retry-After"] = str(math.ceil(seconds))
    return response


def _challenge(error: errors.NotAuthorized | errors.ScopeMissing) -> str:
    """Return what RFC 6750, section 3, has the caller told."""
    challenge = 'Bearer realm="lockstep"'
    if isinstance(error, errors.ScopeMissing):
        return f'{challenge}, error="insufficient_scope", scope="{error.scope}"'
    return f'{challenge}, error="invalid_token"' if error.token_given else challenge


def http_error_answer(error: HTTPException) -> Response:
    """Return what the caller is told of a request that the framework refused."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    response = problem(
        title=error.name,
        detail=error.description or error.name,
        remedy=(errors.NotFound if status in WRONG_ADDRESS else errors.BadRequest).default_remedy,
        # Werkzeug's names; those of HTTPStatus differ between versions of Python.
        code=error.name.lower().replace(" ", "_"),
        http_status=status,
    )
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def unexpected_error_answer() -> Response:
    """Return what the caller is told of a defect: that there is one, and where to look."""
    return problem(
        title="Something went wrong",
        detail="The service met an error that it does not know.",
        remedy=errors.LockstepError.default_remedy,
        code=errors.LockstepError.code,
        http_status=HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def _title(error: errors.LockstepError) -> str:
    return (type(error).__doc__ or error.code).splitlines()[0].rstrip(".")


def report_answer(report: Report) -> Response:
    """Return what `/sync_data` answers once a run has ended well, or with a hold."""
    if report.status != "held":
        return answer(report_content(report))
    held = report.counts.held
    return problem(
        title="Deletions are held for approval",
        detail=f"{held} rows of {report.table} were kept although the source no longer has them: {report.cause}. "
        "Everything else was applied.",
        remedy=f"If the source is right, call /sync_data?approve={report.run} to delete up to {held} rows; "
        "if not, correct the source and sync again.",
        code="held",
        http_status=HTTPStatus.UNPROCESSABLE_ENTITY,
        word="held",
        **{name: value for name, value in report_content(report).items() if name != "status"},
        approve=f"/sync_data?approve={report.run}",
    )


def all_answer(outcomes: Sequence[tuple[Source, Report | errors.LockstepError]]) -> Response:
    """Return what `/sync_data?source=all` answers: what became of every source, and the worst of it as the status."""
    failed = [source.name for source, outcome in outcomes if not isinstance(outcome, Report)]
    held = [source.name for source, outcome in outcomes if isinstance(outcome, Report) and outcome.status == "held"]
    contents = [_outcome_content(source, outcome) for source, outcome in outcomes]
    if not failed and not held:
        return answer({"source": "all", "status": "succeeded", "message": COMPLETED, "sources": contents})
    statuses = [status_of(outcome) for _, outcome in outcomes if isinstance(outcome, errors.LockstepError)]
    error = errors.SomeNotSynced(failed=failed, held=held, of=len(outcomes))
    return problem(
        title=_title(error),
        detail=error.cause,
        remedy=error.remedy,
        code=error.code,
        http_status=max(statuses, default=HTTPStatus.UNPROCESSABLE_ENTITY),
        word="failed" if failed else "held",
        source="all",
        sources=contents,
    )


def _outcome_content(source: Source, outcome: Report | errors.LockstepError) -> dict[str, Any]:
    if isinstance(outcome, Report):
        return report_content(outcome)
    content = {"run": outcome.run} if outcome.run is not None else {}
    return content | {
        "source": source.name,
        "status": RUN_WORDS.get(type(outcome), "failed"),
        "error": outcome.code,
        "cause": telemetry.redact(outcome.cause),
        "remedy": telemetry.redact(outcome.remedy),
    }


def report_content(report: Report) -> dict[str, Any]:
    """Return the members of an answer about a run that has ended."""
    content: dict[str, Any] = {
        "run": report.run,
        "source": report.source,
        "status": report.status,
        "message": COMPLETED if report.status != "held" else f"{COMPLETED}, except for deletions that are held",
        **_changed(report),
        "duration_ms": report.duration_ms,
        "records": report.counts.records,
    }
    return content | _problems(report.counts.duplicates, report.problems)


def undo_content(report: Report) -> dict[str, Any]:
    """Return the members of an answer about a run that undid another."""
    return {
        "run": report.run,
        "undoes": report.undoes,
        "source": report.source,
        "status": report.status,
        "message": f"Run {report.undoes} is undone, and the source is paused",
        **_changed(report),
        "duration_ms": report.duration_ms,
        "resume": f"/sources/{report.source}/resume",
    }


def run_content(report: Report, *, with_problems: bool) -> dict[str, Any]:
    """Return a run as `/runs` shows it, whatever became of it."""
    content: dict[str, Any] = {
        "run": report.run,
        "source": report.source,
        "table": report.table,
        "status": report.status,
        **_changed(report),
        "records": report.counts.records,
        "duplicates": report.counts.duplicates,
        "started_at": report.started_at,
        "finished_at": report.finished_at,
        "duration_ms": report.duration_ms,
        "body_bytes": report.body_bytes,
        "first_load": report.first_load,
        "not_modified": report.not_modified,
    }
    optional = {name: getattr(report, name) for name in ("approves", "undoes", "error", "cause", "remedy")}
    content |= {name: value for name, value in optional.items() if value is not None}
    if with_problems:
        content["problems"] = [problem_content(item) for item in report.problems]
    return content


def plan_content(plan: Plan) -> dict[str, Any]:
    """Return what a dry run answers."""
    return {
        "source": plan.source,
        "table": plan.table,
        "status": "planned",
        "message": "Nothing was written",
        **_changed(plan),
        "duration_ms": plan.duration_ms,
        "records": plan.counts.records,
        **_problems(plan.counts.duplicates, plan.problems),
        "differences": [difference_content(difference) for difference in plan.differences],
        "plan": plan.hash,
        "apply": f"/sync_data?source={quote(plan.source)}&plan={plan.hash}",
    }


def change_content(change: Change) -> dict[str, Any]:
    """Return an entry of the journal."""
    return {
        "seq": change.seq,
        "run": change.run,
        "table": change.table,
        "key": change.key,
        "op": change.op,
        "changes": change.changes,
        "at": change.at,
    }


def first_load_content(load: FirstLoad) -> dict[str, Any]:
    """Return the journal's entry for a run that filled an empty mirror."""
    return {
        "seq": load.seq,
        "run": load.run,
        "source": load.source,
        "table": load.table,
        "rows": load.rows,
        "at": load.at,
    }


def difference_content(difference: Difference) -> dict[str, Any]:
    """Return what would be done to one row."""
    return {"key": difference.key, "op": difference.op, "changes": difference.changes}


def problem_content(item: Problem) -> dict[str, Any]:
    """Return a record that was rejected, or one of several with the same key."""
    content = {"kind": item.kind, "position": item.position, "reason": telemetry.redact(item.reason)}
    return content if item.key is None else content | {"key": item.key}


def _changed(result: Report | Plan) -> dict[str, int]:
    counts = result.counts
    names = ("created", "updated", "restored", "deleted", "unchanged", "held", "rejected")
    return {name: getattr(counts, name) for name in names}


def _problems(duplicates: int, problems: tuple[Problem, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"duplicates": duplicates} if duplicates else {}
    if problems:
        found["problems"] = [problem_content(item) for item in problems]
    return found
