"""The tutorial for a cluster, every command as it stands there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cluster.release import run
from tests.harness.documented_commands import shell_blocks, type_blocks
from tests.harness.programs import program

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_every_command_of_the_tutorial_for_a_cluster(cluster: None) -> None:
    images, *blocks = shell_blocks("docs/tutorials/cluster.md")
    # They are in the cluster already: whoever started it has built them with that command, and loaded them.
    assert images == "make images\n"
    programs = (str(Path(sys.executable).parent), str(Path(program("helm")).parent))
    environment = {**os.environ, "PATH": ":".join((*programs, os.environ["PATH"]))}
    try:
        said = type_blocks(blocks, environment)
    finally:
        run("kubectl", "delete", "namespace", "search", "--ignore-not-found", "--wait=false")
    assert "4 of 4 trials" in said
    assert "is in the catalogue" in said
