"""Crashes of a coordinator at any point where it speaks to the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event


class Crash(BaseException):
    """The process is gone; nothing catches this on its way out."""


class Failpoint:
    """Counts the points that are passed, and says whether it struck."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.struck = False

    def reach(self) -> None:
        self.passed += 1
        if self.passed > self.at:
            # Once struck it strikes again: a dead process sends nothing while its stack unwinds.
            self.struck = True
            raise Crash


@contextmanager
def crash_at(point: int) -> Iterator[Failpoint]:
    """Let whatever runs inside die at its `point`-th statement or commit, counted from 0, on any engine.

    A point after the last one strikes nothing: `struck` is false, and all boundaries were tried.
    """
    failpoint = Failpoint(point)

    def before_statement(*_: Any) -> None:
        failpoint.reach()

    def before_commit(_: Connection) -> None:
        failpoint.reach()

    event.listen(Engine, "before_cursor_execute", before_statement)
    event.listen(Engine, "commit", before_commit)
    try:
        yield failpoint
    except Crash:
        pass
    finally:
        event.remove(Engine, "before_cursor_execute", before_statement)
        event.remove(Engine, "commit", before_commit)
