"""`foldwise demo`: one table of trials and one digest, for any number of workers and after kills."""

from __future__ import annotations

import csv
import json
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from services.presets import get_preset
from tests.acceptance.up import wait_for
from tests.harness.documented_commands import PROJECT


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_demo_is_the_same_for_any_number_of_workers_and_when_two_processes_are_killed(
    tmp_path: Path,
) -> None:
    results = [
        Demo(tmp_path / "one", workers=1).result(),
        Demo(tmp_path / "two", workers=2).result(),
        Demo(tmp_path / "three", workers=3).result(),
        killed(tmp_path / "killed"),
    ]
    assert len({result["digest"] for result in results}) == 1
    tables = {(Path(result["report"]).parent / "tables" / "trials.csv").read_text() for result in results}
    assert len(tables) == 1
    trials = list(csv.DictReader(tables.pop().splitlines()))
    assert len(trials) == get_preset("demo").trials
    assert {trial["State"] for trial in trials} == {"complete", "pruned"}
    assert results[0]["best_accuracy"] >= 0.75
    # Other processors and versions round otherwise.
    documented = re.search(
        r"family (\d+), model (\d+), and torch (\S+), its digest is\s+`([0-9a-f]{64})`",
        (PROJECT / "README.md").read_text(encoding="utf-8"),
    )
    assert documented is not None
    if documented.groups()[:3] == (*processor(), torch.__version__.partition("+")[0]):
        assert results[0]["digest"] == documented[4]


class Demo:
    """A running `foldwise demo` on the CPU."""

    def __init__(self, state: Path, *, workers: int) -> None:
        self.state = state
        command = [sys.executable, "-m", "cli.main", "demo", "--json", "--state", str(state)]
        self.process = subprocess.Popen(
            [*command, "--devices", "cpu", "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> dict[str, Any]:
        """Wait for its end, and return what it printed as JSON."""
        stdout, self.messages = self.process.communicate(timeout=1200)
        assert self.process.returncode == 0, self.messages
        result: dict[str, Any] = json.loads(stdout)
        return result

    def log(self, name: str) -> str:
        path = self.state / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def kill(self, *words: str) -> None:
        """Kill the child process with these words in its command line."""
        (child,) = (
            one for one in psutil.Process(self.process.pid).children() if set(words) <= set(one.cmdline())
        )
        child.send_signal(signal.SIGKILL)


def killed(state: Path) -> dict[str, Any]:
    """The result of a demo of which a worker and the coordinator are killed in the middle."""
    demo = Demo(state, workers=2)
    wait_for(lambda: demo.log("worker-1").count("fold_done") >= 5, patience=600)
    demo.kill("worker", "worker-1")
    wait_for(lambda: demo.log("worker-2").count("fold_done") >= 10, patience=600)
    demo.kill("coordinator")
    result = demo.result()
    assert "worker-1 ended (killed by SIGKILL); restarting it" in demo.messages
    assert "the coordinator ended (killed by SIGKILL); restarting it" in demo.messages
    return result


def processor() -> tuple[str, str]:
    """Family and model of this machine's processor, as Linux numbers them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if platform.system() == "Linux" else ""
    found = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", text, re.MULTILINE))
    return found.get("cpu family", ""), found.get("model", "")
