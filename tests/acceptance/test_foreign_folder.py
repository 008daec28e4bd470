"""`foldwise up` in a folder whose files have the names of our packages and of standard modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.up import PATIENCE, wait_for

CONSOLE_SCRIPT = (str(Path(sys.executable).with_name("foldwise")),)
MODULE = (sys.executable, "-m", "foldwise")
TAKEN_NAMES = ("worker.py", "cli.py", "random.py", "services/__init__.py", "coordinator/__init__.py")


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A researcher's project: every file in it raises when it is imported."""
    folder = tmp_path / "project"
    for name in TAKEN_NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('the file {name} of the current folder was imported')\n")
    return folder


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(CONSOLE_SCRIPT, id="foldwise"),
        pytest.param(MODULE, id="python -m foldwise", marks=pytest.mark.long),
    ],
)
def test_up_starts_all_its_processes(program: tuple[str, ...], foreign_folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    up = subprocess.Popen(
        [*program, "up", "--state", str(state), "--workers", "1", "--port", "0"],
        cwd=foreign_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    worker_log = state / "logs" / "worker-1.log"
    try:
        wait_for(lambda: "worker_started" in _text(worker_log) or up.poll() is not None)
        assert up.poll() is None
        listed = subprocess.run(
            [*program, "workers", "list", "--state", str(state)],
            cwd=foreign_folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert listed.returncode == 0, listed.stderr
    finally:
        up.terminate()
        output = up.communicate(timeout=PATIENCE)[0]
    assert "of the current folder was imported" not in output + _text(worker_log)
    assert up.returncode == 75, output


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
