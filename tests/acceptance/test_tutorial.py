"""The tutorial for one machine, every command as it stands there, by somebody with an empty home."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.up import wait_for
from tests.harness.documented_commands import shell_blocks, type_blocks

SERVICE = "foldwise up"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_command_of_the_tutorial_for_one_machine(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "PATH": path}
    blocks = shell_blocks("docs/tutorials/one-machine.md")
    (place,) = [place for place, block in enumerate(blocks) if block.startswith(SERVICE)]

    type_blocks(blocks[:place], environment)
    up = subprocess.Popen(blocks[place].split(), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (home / "data" / "foldwise" / "service.json").exists() or up.poll() is not None)
        said = type_blocks(blocks[place + 1 :], environment)
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)

    made = home / "faces-tutorial"
    for picture in ("clips.png", "confusion.png", "labelled.mp4", "first.onnx", "report/report.html"):
        assert (made / picture).stat().st_size > 1000, picture
    study = json.loads((made / "first.json").read_text())
    assert study["trials"]["complete"] + study["trials"]["pruned"] == 6
    assert "the replay is bit-identical" in said
    with (made / "labels.csv").open() as file:
        labels = list(csv.DictReader(file))
    assert labels
    assert all(row["label"] in study["classes"] for row in labels)
    # Its person is none of those that the model was trained on.
    assert all(row["video"].startswith("newcomer/") for row in labels)
    assert (made / "newcomer" / "Emotion" / "S001" / "001").is_dir()
