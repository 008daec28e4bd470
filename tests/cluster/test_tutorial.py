"""The tutorial for a cluster, every command as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.release import run
from tests.documented import PROJECT, shell_blocks
from tests.unit.programs import program

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_every_command_of_the_tutorial_for_a_cluster(cluster: None) -> None:
    images, *blocks = shell_blocks("docs/tutorials/cluster.md")
    # They are in the cluster already: whoever started it has built them with that command, and loaded them.
    assert images == "make images\n"
    programs = (str(Path(sys.executable).parent), str(Path(program("helm")).parent))
    environment = {**os.environ, "PATH": ":".join((*programs, os.environ["PATH"]))}
    try:
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-x"],
            input="".join(blocks),
            env=environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    finally:
        run("kubectl", "delete", "namespace", "search", "--ignore-not-found", "--wait=false")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "first: 4 of 4 trials" in done.stdout or "4 of 4" in done.stdout
    assert "is in the catalogue" in done.stdout
