"""Progress of long work: a bar in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preprocessing.job import Report

if TYPE_CHECKING:
    # torch takes seconds to load, and not every image has it.
    from worker.training.fit import Progress as Training

LINE_SECONDS = 10.0
_STAGES = {"hash": "reading", "clips": "clips", "frames": "frames"}


@contextmanager
def preprocessing_progress(console: Console) -> Iterator[Report]:
    """A reporter of (stage, done, total)."""
    if console.is_terminal:
        with Progress(
            TextColumn("    {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as bars:
            tasks = {stage: bars.add_task(title, visible=False) for stage, title in _STAGES.items()}

            def bar(stage: str, done: int, total: int) -> None:
                bars.update(tasks[stage], completed=done, total=total, visible=True)

            yield bar
        return
    started = last = time.monotonic()

    def line(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS or (done == total and stage != "hash"):
            last = now
            rate = done / max(now - started, 1e-9)
            console.print(f"    {_STAGES[stage]} {done}/{total}, {rate:.1f} per second", highlight=False)

    yield line


@contextmanager
def writing_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A reporter of (done, total)."""
    with preprocessing_progress(console) as report:
        yield lambda done, total: report("frames", done, total)


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
