"""Progress of long work: a bar in a terminal, otherwise a line every ten seconds."""

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
    from worker.training.fit import Progress as TrainingProgress

LINE_SECONDS = 10.0
_STAGES = {"hash": "reading", "clips": "clips", "sequences": "sequences"}


@contextmanager
def preprocessing_progress(console: Console) -> Iterator[Report]:
    """Yield a function (stage, done, total) that shows the progress.

    Speed and remaining time are measured from a stage's first call, so work of an earlier run does not distort
    them.
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

            def show_bar(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(_STAGES[stage], completed=done, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield show_bar
        return
    first_calls: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def print_line(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        started, before = first_calls.setdefault(stage, (now, done))
        finished = done == total and stage != "hash" and done > before
        if now - last >= LINE_SECONDS or finished:
            last = now
            rate = (done - before) / max(now - started, 1e-9)
            remaining = f", {_duration((total - done) / rate)} remaining" if rate > 0 and not finished else ""
            console.print(
                f"    {_STAGES[stage]} {done}/{total}, {rate:.1f} per second{remaining}", highlight=False
            )

    yield print_line


@contextmanager
def writing_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows how many sequences are written."""
    with preprocessing_progress(console) as report:
        yield lambda done, total: report("sequences", done, total)


@contextmanager
def training_progress(console: Console, epochs: int | None) -> Iterator[Callable[[TrainingProgress], None]]:
    """Yield a function to call after every training step; it prints a line every ten seconds.

    Args:
        console: where to print.
        epochs: number of epochs of the training, if known.
    """
    last = time.monotonic()

    def print_line(progress: TrainingProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            total = "" if epochs is None else f"/{epochs}"
            console.print(f"    epoch {progress.epoch}{total}, step {progress.step}", highlight=False)

    yield print_line


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """The speed, or nothing until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
