"""Logging that a test sets up for itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

import telemetry


@contextmanager
def own_logging() -> Iterator[None]:
    """Let the block set up logging, and give the process its own logging back afterwards."""
    root, configured = logging.getLogger(), structlog.get_config()
    handlers, level, excepthook = root.handlers[:], root.level, sys.excepthook
    for handler in handlers:
        root.removeHandler(handler)
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        sys.excepthook = excepthook
        telemetry._secrets.clear()
        structlog.configure(**configured)
        structlog.contextvars.clear_contextvars()
