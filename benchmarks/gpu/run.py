"""Runs the parts one after another within a time, each in a process that can be ended without the others."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.gpu import measurements
from benchmarks.gpu.report import Record, as_markdown, summary
from benchmarks.gpu.workload import Workload, make_workload
from services.contracts import ComputePlan
from worker.training.device import choose_device
from worker.training.precision import possible_plans

MIN_SECONDS = 5.0
"""Seconds below which a part is not begun."""

REPEATED_IN = 2
"""Processes in which a fold is repeated; their bits are compared."""


def run(folder: Path, out: Path, device: str | None, *, seconds: float) -> None:
    """Measure, and write and print the results.

    Args:
        folder: for the generated clips.
        out: folder of the results; made if it is missing.
        device: a torch device; None means the first GPU, or else the CPU.
        seconds: for everything.

    Raises:
        InvalidInput: there is no such device.
    """
    chosen = choose_device(device)
    parts = Parts(out, until=time.monotonic() + seconds)
    workload = make_workload(folder, str(chosen))
    plans = possible_plans(chosen)
    parts.take("machine", measurements.machine, workload, at_most=60)
    for precision in dict.fromkeys(plan.precision for plan in plans):
        parts.take("peak", measurements.peak, workload, precision, at_most=60, precision=precision)
    parts.take("plain loop", measurements.plain_loop, workload, at_most=120)
    preferred, tried = _first_sound(parts, workload, plans)
    # What matters most comes first: a cut-off run has at least the plan that studies take.
    parts.take("fold", measurements.fold, workload, preferred, at_most=300, plan=str(preferred))
    for process in range(REPEATED_IN):
        parts.restart()
        parts.take(
            "repeat",
            measurements.repeat,
            workload,
            preferred,
            at_most=180,
            plan=str(preferred),
            process=process,
        )
    parts.take("kernels", measurements.profiled, workload, preferred, at_most=120, plan=str(preferred))
    parts.take("out of memory", measurements.out_of_memory, workload, preferred, at_most=120)
    parts.take("first convolution", measurements.first_convolution, workload, preferred, at_most=60)
    for plan in plans[tried:]:
        parts.take("plan", measurements.plan, workload, plan, at_most=240, plan=str(plan))
        parts.take("plain loop", measurements.plain_loop, workload, at_most=120)
    for plan in plans:
        if plan != preferred:
            parts.take("repeat", measurements.repeat, workload, plan, at_most=240, plan=str(plan), process=0)
    parts.close()
    print(json.dumps(summary(parts.records, plan=str(preferred), seconds=parts.elapsed())))


def _first_sound(parts: Parts, workload: Workload, plans: Sequence[ComputePlan]) -> tuple[ComputePlan, int]:
    """The plan that a study takes here, and how many were measured to find it."""
    for tried, plan in enumerate(plans, start=1):
        record = parts.take("plan", measurements.plan, workload, plan, at_most=240, plan=str(plan))
        parts.take("plain loop", measurements.plain_loop, workload, at_most=120)
        if record.found.get("clips_per_second"):
            return plan, tried
    return plans[-1], len(plans)


class Parts:
    """The parts taken so far and their process."""

    def __init__(self, out: Path, *, until: float) -> None:
        self.records: list[Record] = []
        self._out, self._until = out, until
        self._began = time.monotonic()
        self._pool: ProcessPoolExecutor | None = None
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.jsonl").write_text("")

    def take(
        self,
        part: str,
        measure: Callable[..., dict[str, Any]],
        *arguments: object,
        at_most: float,
        **about: object,
    ) -> Record:
        """Run a part and write what it found; `about` says which one of its kind it is."""
        remaining = self._until - time.monotonic()
        began = time.monotonic()
        if remaining < MIN_SECONDS:
            found: dict[str, Any] = {"failed": "no time was left"}
        else:
            found = self._measure(measure, arguments, min(at_most, remaining))
        record = Record(part=part, about=about, found=found, seconds=time.monotonic() - began)
        self.records.append(record)
        self._write(record)
        return record

    def restart(self) -> None:
        """Run the following parts in a fresh process."""
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def elapsed(self) -> float:
        """Seconds since the first part."""
        return time.monotonic() - self._began

    def _measure(
        self, measure: Callable[..., dict[str, Any]], arguments: tuple[object, ...], seconds: float
    ) -> dict[str, Any]:
        if self._pool is None:
            # Not forked: CUDA does not survive it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            return self._pool.submit(_within, seconds, measure, arguments).result()
        except BrokenProcessPool:
            self._pool = None
            return {"failed": f"its process ended, after at most {seconds:.0f} s"}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:500]}

    def _write(self, record: Record) -> None:
        with (self._out / "gpu.jsonl").open("a") as lines:
            lines.write(json.dumps(record.as_json()) + "\n")
        text = as_markdown(self.records)
        partial = self._out / "gpu.md.partial"
        partial.write_text(text)
        partial.replace(self._out / "gpu.md")
        print(record.line(), flush=True)


def _within(
    seconds: float, measure: Callable[..., dict[str, Any]], arguments: tuple[object, ...]
) -> dict[str, Any]:
    # Its default action ends the process, even inside a kernel or the compiler; the parent then starts another.
    signal.alarm(max(1, int(seconds)))
    try:
        return measure(*arguments)
    finally:
        signal.alarm(0)
