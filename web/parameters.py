"""The parameters of a query, checked: an unknown or malformed one is refused, never ignored."""

from __future__ import annotations

import re
from datetime import datetime

from quart import request

from columns import instant
from definitions import RunMode
from errors import BadRequest

LARGEST_ID = 2**63 - 1
PLAN_HASH = re.compile(r"[0-9A-Za-z_\-]{8,128}")
FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def only(*names: str) -> None:
    """Refuse parameters other than `names`, and any given twice: a typing error must not start something else."""
    for name in request.args:
        if name not in names:
            known = f"known are {', '.join(names)}" if names else "there are none here"
            raise BadRequest(f"The parameter {name[:50]!r} is unknown; {known}.")
        if len(request.args.getlist(name)) > 1:
            raise BadRequest(f"The parameter {name} is given twice.")


def flag(name: str) -> bool:
    """Return a yes-or-no parameter; absent means no."""
    value = request.args.get(name, "0").lower()
    if value not in FLAGS:
        raise BadRequest(f"The parameter {name} must be 1 or 0.")
    return FLAGS[value]


def whole_number(name: str, *, lowest: int = 1, highest: int = LARGEST_ID) -> int | None:
    """Return a whole number between `lowest` and `highest`, or None if it is absent."""
    value = request.args.get(name)
    return None if value is None else number(value, f"The parameter {name}", lowest=lowest, highest=highest)


def number(value: str, what: str, *, lowest: int = 1, highest: int = LARGEST_ID) -> int:
    """Return a whole number that was sent as text; `what` begins the refusal."""
    # Digits of other scripts and numbers of many digits are refused before int() would take them, or its time.
    if not re.fullmatch(r"[0-9]{1,19}", value) or not lowest <= int(value) <= highest:
        raise BadRequest(f"{what} must be a whole number from {lowest} to {highest}.")
    return int(value)


def run_mode(name: str) -> RunMode | None:
    """Return how a run is to go about it, or None if that is left to the source."""
    match request.args.get(name):
        case None:
            return None
        case "snapshot" | "incremental" as mode:
            return mode
    raise BadRequest(f"The parameter {name} must be snapshot or incremental.")


def moment(name: str) -> datetime | None:
    """Return a moment, or None if it is absent."""
    value = request.args.get(name)
    if value is None:
        return None
    try:
        return instant(value)
    except ValueError:
        example = "2026-11-22T08:00:00Z"
        raise BadRequest(f"The parameter {name} must be a time such as {example}, with + written as %2B.") from None


def plan_hash(name: str) -> str | None:
    """Return a plan's hash, or None if it is absent."""
    value = request.args.get(name)
    if value is not None and not PLAN_HASH.fullmatch(value):
        raise BadRequest(f"The parameter {name} must be a hash as ?dry_run=1 shows it.")
    return value
