"""Ctrl-C and SIGTERM as one exception, so that every command cleans up and exits with code 75."""

from __future__ import annotations

import signal


class Interrupted(BaseException):
    """A signal asked the command to stop. Not KeyboardInterrupt: typer turns that into its own exit code."""


def raise_on_signals() -> None:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM and SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    raise Interrupted
