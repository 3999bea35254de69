"""The command that works on the jobs of schedules, on this machine or another."""

from __future__ import annotations

import sys

import click

import app
from commands.support import reporting


@click.command()
def worker() -> None:
    """Sync sources on their schedules until SIGTERM or Ctrl-C, together with other workers; serves nothing."""
    sys.exit(reporting(app.work))
