"""A running `foldwise up` and the command line, as acceptance tests use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from sqlalchemy import NullPool, create_engine, text

from client.connection import Connection

PATIENCE = 120.0


class Up:
    """A running `foldwise up`."""

    def __init__(
        self,
        state: Path,
        *,
        workers: int | None = None,
        devices: str | None = "cpu",
        threads: int | None = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.state = state
        options = [*(["--workers", str(workers)] if workers is not None else [])]
        options += ["--devices", devices] if devices is not None else []
        options += ["--threads", str(threads)] if threads is not None else []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli.main", "up"),
                *("--state", str(state), *options, "--port", "0"),
            ],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Up:
        wait_for(lambda: (self.state / "service.json").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()[0]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.output = self.process.communicate(timeout=60)[0]

    def service(self) -> dict[str, Any]:
        service: dict[str, Any] = json.loads((self.state / "service.json").read_text())
        return service

    def study(self, *arguments: str) -> str:
        return foldwise("study", *arguments, "--state", str(self.state)).stdout

    def create(self, name: str, *settings: str) -> None:
        small = [
            "trials=2",
            "training.width=2",
            "training.frame_size=32",
            "training.epochs=2",
            "training.augmentation={}",
        ]
        small += ["space={temporal_size: [1, 3], dropout: {low: 0.0, high: 1.0}}"]
        small += ["protocol={kind: kfold, k: 4}", "pruning=[]", *settings]
        flags = [part for setting in small for part in ("--set", setting)]
        self.study("create", "--preset", "ckplus-loso", "--name", name, *flags)

    def show(self, name: str) -> dict[str, Any]:
        service = self.service()
        with Connection(service["url"], service["admin_token"], give_up_after=10) as connection:
            study: dict[str, Any] = connection.call("GET", f"/studies/{name}")
        return study

    def wait_until_over(self, name: str) -> dict[str, Any]:
        wait_for(lambda: self.show(name)["state"] != "running")
        return self.show(name)

    def query(self, statement: str) -> list[Any]:
        engine = create_engine(self.service()["database_url"], poolclass=NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def execute(self, statement: str) -> None:
        engine = create_engine(self.service()["database_url"], poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(statement))

    def worker(self, name: str) -> psutil.Process:
        return self._child("worker", name)

    def coordinator(self) -> psutil.Process:
        return self._child("coordinator")

    def _child(self, *words: str) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children():
            if set(words) <= set(child.cmdline()):
                return child
        raise AssertionError(f"no process {words} runs")

    def log(self, name: str) -> str:
        path = self.state / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""


def foldwise(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **environment},
    )


def foldwise_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`foldwise` with these arguments, in this process: half a second less than a new one takes."""
    from cli.main import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stdout, stderr, code = StringIO(), StringIO(), 0
    try:
        with (
            patch.object(sys, "argv", ["foldwise", *arguments]),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
