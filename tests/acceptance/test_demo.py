"""`foldwise demo`: its search ends with the same trials for any number of workers, and finds a good one."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.presets import get_preset


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_one_two_and_three_workers_end_with_the_same_trials(tmp_path: Path) -> None:
    tables = [_trials_of_a_demo(tmp_path / f"{workers}-workers", workers) for workers in (1, 2, 3)]
    assert tables[0] == tables[1] == tables[2]
    trials = list(csv.DictReader(tables[0].splitlines()))
    assert len(trials) == get_preset("demo").trials
    assert {trial["State"] for trial in trials} == {"complete", "pruned"}


def _trials_of_a_demo(state: Path, workers: int) -> str:
    """The table of trials in the report of a demo on the CPU, as CSV."""
    command = [sys.executable, "-m", "cli.main", "demo", "--json", "--state", str(state)]
    done = subprocess.run(
        [*command, "--devices", "cpu", "--workers", str(workers)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["best_accuracy"] >= 0.75
    return (Path(result["report"]).parent / "tables" / "trials.csv").read_text()
