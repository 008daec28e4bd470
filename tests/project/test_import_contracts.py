"""Every import contract notices an import that it forbids, planted into a copy of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness.source_copy import PACKAGES, PROJECT, copy_package

SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = [contract["name"] for contract in SETTINGS["contracts"]]

PLANTED: Mapping[str, tuple[str, str]] = {
    "Arrows between packages point one way": ("services/seeds.py", "import client.connection"),
    "The public face passes on, and reaches no process": ("foldwise/readers.py", "import coordinator.settings"),
    "services stays light": ("services/grid.py", "import torch"),
    "The client only speaks HTTP": ("client/study_client.py", "import rich"),
    "A report is made from stored data": ("report/literature.py", "import httpx"),
    "Worker and preprocessing never see the database, Optuna or Kubernetes": (
        "preprocessing/frames.py",
        "import sqlalchemy",
    ),
    "Training knows nothing of HTTP": ("worker/training/optim.py", "import client.connection"),
    "Of the worker, only inference uses preprocessing": (
        "worker/training/clips.py",
        "import preprocessing.clips",
    ),
    "Arrows inside the worker point one way": (
        "worker/training/evaluate.py",
        "import worker.inference.predict",
    ),
    "Only coordinator.optimizer imports Optuna": ("coordinator/studies/life.py", "import optuna"),
    "The worker makes no reports and calls no Kubernetes": ("worker/settings.py", "import report.table"),
    "The coordinator has no torch, no OpenCV, no client and no preprocessing": (
        "coordinator/pages/clips.py",
        "import cv2",
    ),
    "Arrows inside the coordinator point one way": (
        "coordinator/store/studies.py",
        "import coordinator.scheduling.claims",
    ),
    "Arrows inside the command line point one way": ("cli/terminal/watch.py", "import cli.commands.plan"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """KEPT or BROKEN by contract, in a copy with all the planted imports."""
    copy = tmp_path_factory.mktemp("copy")
    for package in SETTINGS["root_packages"]:
        copy_package(package, copy)
    shutil.copy(PROJECT / "pyproject.toml", copy)
    for file, line in PLANTED.values():
        with (copy / file).open("a", encoding="utf-8") as code:
            code.write(f"\n{line}\n")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))


def test_every_contract_has_a_planted_import() -> None:
    assert sorted(PLANTED) == sorted(CONTRACTS)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_contract_breaks(contract: str, verdicts: dict[str, str]) -> None:
    assert verdicts[contract] == "BROKEN"


def test_the_contracts_hold_for_every_package_of_the_project() -> None:
    assert set(PACKAGES) == set(SETTINGS["root_packages"])
