"""A worker program on a machine with several GPUs: real processes and a real coordinator, no GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import Engine, text

from cli.local.gpu_workers import combined_exit_code, pass_on_liveness
from coordinator.settings import CoordinatorSettings
from tests.acceptance.up import wait_for
from tests.harness.machines_with_gpus import machine
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer


class Service:
    """A coordinator, its database, and a study `s` whose trials have two folds for two workers at once."""

    def __init__(self, client: httpx.Client, engine: Engine, cache_root: Path, folder: Path) -> None:
        self._client, self._engine, self._cache_root = client, engine, cache_root
        self.alive_file, self.log = folder / "alive", folder / "log"

    def create_study(self, *, trials: int, epochs: int) -> None:
        training = {"frames": 2, "frame_size": 16, "width": 1, "batch_size": 16, "epochs": epochs}
        spec = {
            "name": "s",
            "cache": "tiny",
            "trials": trials,
            "workers_per_trial": 2,
            "protocol": {"kind": "kfold", "k": 2},
            "pruning": [],
            "space": {"dropout": {"low": 0.0, "high": 0.5}},
            "training": {**training, "augmentation": {}},
            "economies": {"stop_when_perfect": False},
            # What a faked GPU, which is the CPU, always computes soundly.
            "compute": {"precision": "fp32", "compiled": False},
        }
        answer = self._client.post("/api/v1/studies", headers=bearer(ADMIN_TOKEN), json=spec)
        assert answer.is_success, answer.text

    @contextmanager
    def worker(self, environment: dict[str, str]) -> Iterator[psutil.Popen]:
        """`foldwise worker` on this machine, serving the study."""
        options = ["--url", str(self._client.base_url).rstrip("/"), "--cache-root", str(self._cache_root)]
        options += ["--study", "s", "--name", "pod", "--threads", "1", "--require-gpu"]
        with self.log.open("w") as output:
            process = psutil.Popen(
                [sys.executable, "-m", "cli.main", "worker", *options, "--alive-file", str(self.alive_file)],
                env={**os.environ, **environment, "FOLDWISE_TOKEN": WORKER_TOKEN, "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            for left in (*process.children(), process) if process.is_running() else ():
                left.kill()
            process.wait()

    def query(self, statement: str) -> list[Any]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def trains_on(self, workers: int) -> bool:
        training = "SELECT 1 FROM foldwise.leases WHERE outcome IS NULL AND step > 0"
        return len(self.query(training)) == workers

    def outcomes(self) -> list[str | None]:
        return [row[0] for row in self.query("SELECT outcome FROM foldwise.leases ORDER BY granted_at")]


@pytest.fixture
def settings(settings: CoordinatorSettings) -> CoordinatorSettings:
    """Heartbeats come often, and no lease expires by itself."""
    return replace(settings, lease_seconds=60.0, heartbeat_seconds=0.5)


@pytest.fixture
def service(client: httpx.Client, engine: Engine, cache_root: Path, tmp_path: Path) -> Service:
    return Service(client, engine, cache_root, tmp_path)


def test_sigterm_reaches_the_worker_of_each_gpu_and_each_releases_its_fold(service: Service) -> None:
    service.create_study(trials=100, epochs=1000)
    with service.worker(machine(2)) as program:
        wait_for(lambda: service.trains_on(2))
        named = service.query("SELECT name, device FROM foldwise.workers ORDER BY name")
        assert named == [("pod-0", "Faked GPU 0"), ("pod-1", "Faked GPU 1")]
        wait_for(service.alive_file.exists)
        workers = program.children()
        program.terminate()
        assert program.wait(60) == 75, service.log.read_text()
    assert service.outcomes().count("released") == 2
    assert None not in service.outcomes()
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_is_killed_ends_the_program_and_the_other_releases_its_fold(service: Service) -> None:
    service.create_study(trials=100, epochs=1000)
    with service.worker(machine(2)) as program:
        wait_for(lambda: service.trains_on(2))
        killed = next(child for child in program.children() if "pod-0" in child.cmdline())
        killed.kill()
        assert program.wait(60) == 128 + signal.SIGKILL
    # That of the killed worker is ended by the coordinator, when it sees the end of the pod.
    assert (service.outcomes().count(None), service.outcomes().count("released")) == (1, 1)


@pytest.mark.long
def test_the_program_is_done_when_the_study_is_over(service: Service) -> None:
    service.create_study(trials=1, epochs=1)
    with service.worker(machine(2)) as program:
        assert program.wait(120) == 0
    assert service.outcomes() == ["done", "done"]


@pytest.mark.long
def test_one_unusable_gpu_of_several_is_for_another_machine(service: Service) -> None:
    service.create_study(trials=100, epochs=1000)
    with service.worker(machine(2, old_gpus=[1])) as program:
        assert program.wait(120) == 69
    assert "foldwise: cuda:1 (Faked GPU 1) has compute capability 7.0" in service.log.read_text()
    assert None not in service.outcomes()


@pytest.mark.long
def test_one_gpu_needs_no_further_process(service: Service) -> None:
    service.create_study(trials=100, epochs=1000)
    with service.worker(machine(1)) as program:
        wait_for(lambda: service.trains_on(1))
        assert program.children() == []
        assert service.query("SELECT name FROM foldwise.workers") == [("pod",)]
        program.terminate()
        assert program.wait(60) == 75


@pytest.mark.parametrize(
    ("codes", "combined"),
    [
        ([75, 75], 75),
        ([1, 75], 1),
        ([64, 1, 75], 64),
        ([69, 75], 69),
        ([-9, 75], 137),
        ([0, 0], 0),
        ([0, 1], 0),
        # Its study ended while it was told to stop.
        ([1, 0], 0),
    ],
)
def test_the_exit_code_of_all_workers(codes: list[int], combined: int) -> None:
    assert combined_exit_code(codes) == combined


def test_the_program_is_as_alive_as_the_worker_that_hangs(tmp_path: Path) -> None:
    alive, workers = tmp_path / "alive", [tmp_path / "alive-0", tmp_path / "alive-1"]
    workers[0].touch()
    pass_on_liveness(alive, workers)
    assert not alive.exists(), "one has not started yet"
    workers[1].touch()
    hangs = time.time() - 900
    os.utime(workers[1], (hangs, hangs))
    pass_on_liveness(alive, workers)
    assert alive.stat().st_mtime == pytest.approx(hangs)
    pass_on_liveness(alive, workers[:1])
    assert alive.stat().st_mtime == workers[0].stat().st_mtime
    pass_on_liveness(alive, [])
