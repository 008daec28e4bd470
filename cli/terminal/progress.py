"""Progress of long work: a bar in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from preprocessing.job import Report

if TYPE_CHECKING:
    # torch takes seconds to load, and not every image has it.
    from worker.training.fit import Progress as Training

LINE_SECONDS = 10.0
_STAGES = {"hash": "reading", "clips": "clips", "sequences": "sequences"}


@contextmanager
def preprocessing_progress(console: Console) -> Iterator[Report]:
    """A reporter of (stage, done, total).

    Rate and time left count from a stage's first report: what an earlier run has done is not this one's speed.
    """
    if console.is_terminal:
        with Progress(
            TextColumn("    {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
        ) as bars:
            tasks: dict[str, TaskID] = {}

            def bar(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(_STAGES[stage], completed=done, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield bar
        return
    begun: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def line(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        started, before = begun.setdefault(stage, (now, done))
        over = done == total and stage != "hash" and done > before
        if now - last >= LINE_SECONDS or over:
            last = now
            rate = (done - before) / max(now - started, 1e-9)
            left = f", {_duration((total - done) / rate)} left" if rate > 0 and not over else ""
            console.print(f"    {_STAGES[stage]} {done}/{total}, {rate:.1f} per second{left}", highlight=False)

    yield line


@contextmanager
def writing_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A reporter of (done, total)."""
    with preprocessing_progress(console) as report:
        yield lambda done, total: report("sequences", done, total)


@contextmanager
def training_progress(console: Console, epochs: int | None) -> Iterator[Callable[[Training], None]]:
    """A reporter of training steps: a line every ten seconds."""
    last = time.monotonic()

    def line(progress: Training) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            of = "" if epochs is None else f"/{epochs}"
            console.print(f"    epoch {progress.epoch}{of}, step {progress.step}", highlight=False)

    yield line


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """Blank until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
