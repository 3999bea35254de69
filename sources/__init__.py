"""Sources: fetch a JSON feed, cut it into records without decoding them, fingerprint each."""

from __future__ import annotations

from definitions import Source
from models import Problem, Progress, Validators
from sources.address import redact
from sources.batch import DIGEST, Batch
from sources.feed import Feed, open_feed
from sources.retry import attempts, is_retryable, retry_wait_seconds

__all__ = [
    "DIGEST",
    "Batch",
    "Feed",
    "Problem",
    "Progress",
    "Source",
    "Validators",
    "attempts",
    "is_retryable",
    "open_feed",
    "redact",
    "retry_wait_seconds",
]
