"""One worker process for each GPU, run as one program: what a pod with several GPUs does.

The program behaves like a single worker in its place:

- SIGTERM reaches every worker; each releases its fold.
- When a worker ends, the others release their folds too and end, so that the pod is replaced as a whole.
- Only a worker whose study is over (exit code 0) does not end the others: the coordinator tells them the same.
- The exit code is 0 if any worker ended with 0, otherwise that of the worker that ended first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from cli.local.child_processes import foldwise_command, stop_with_parent
from services.errors import EXIT_DONE, EXIT_TRY_AGAIN

log = structlog.get_logger()

POLL_SECONDS = 0.5
"""Seconds between two looks at the workers."""

STOP_SECONDS = 45.0
"""Seconds that workers have to release their folds before they are killed; a pod has 60 by default."""


def run_one_per_gpu(arguments: Sequence[str], *, gpus: int, name: str, alive_file: Path | None) -> int:
    """Run a worker on each of the GPUs 0 to `gpus - 1` until all have ended.

    Args:
        arguments: command line of the worker, without device and name.
        gpus: number of GPUs.
        name: the workers are called `name-0`, `name-1`, ...
        alive_file: its modification time is that of the worker that made no progress for longest.

    Returns:
        The exit code of the program; that of a worker killed by a signal is 128 plus its number.
    """
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    log.info("workers_started", name=name, gpus=gpus)
    running: dict[int, subprocess.Popen[bytes]] = {}
    alive: dict[int, Path] = {}
    for gpu in range(gpus):
        own = [*arguments, "--device", f"cuda:{gpu}", "--name", f"{name}-{gpu}"]
        if alive_file is not None:
            alive[gpu] = alive_file.with_name(f"{alive_file.name}-{gpu}")
            alive[gpu].unlink(missing_ok=True)
            own += ["--alive-file", str(alive[gpu])]
        running[gpu] = _spawn(own)
    codes: list[int] = []
    killed_at: float | None = None
    while running:
        time.sleep(POLL_SECONDS)
        for gpu, process in list(running.items()):
            code = process.poll()
            if code is not None:
                log.info("worker_ended", worker=f"{name}-{gpu}", device=f"cuda:{gpu}", exit_code=code)
                # A worker that is killed before it handles SIGTERM holds no fold.
                was_stopped = killed_at is not None and code == -signal.SIGTERM
                codes.append(EXIT_TRY_AGAIN if was_stopped else code)
                del running[gpu]
        if killed_at is None and (stopping or any(code != EXIT_DONE for code in codes)):
            killed_at = time.monotonic() + STOP_SECONDS
            _signal_all(running.values(), signal.SIGTERM)
        if killed_at is not None and time.monotonic() >= killed_at:
            _signal_all(running.values(), signal.SIGKILL)
        if alive_file is not None:
            pass_on_liveness(alive_file, [alive[gpu] for gpu in running])
    return combined_exit_code(codes)


def combined_exit_code(codes: Sequence[int]) -> int:
    """The exit code of all workers together.

    Args:
        codes: exit codes in the order in which the workers ended; a negative one is the signal that killed it.
    """
    if EXIT_DONE in codes:
        return EXIT_DONE
    return codes[0] if codes[0] > 0 else 128 - codes[0]


def pass_on_liveness(alive_file: Path, workers: Sequence[Path]) -> None:
    """Set a file's modification time to the oldest of the workers' alive files, once all of them exist."""
    try:
        times = [file.stat().st_mtime for file in workers]
    except FileNotFoundError:
        return
    if times:
        if not alive_file.exists():
            alive_file.touch()
        os.utime(alive_file, (min(times), min(times)))


def _spawn(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own program
        foldwise_command(arguments),
        # In its own session, so that Ctrl-C reaches only this process, which passes it on once.
        start_new_session=True,
        preexec_fn=lambda: stop_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no other thread takes locks yet
    )


def _signal_all(processes: Iterable[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(number)
