"""The page about the paper: its commands run on drawn faces, and its table names what they make."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from tests.harness.documented_commands import shell_blocks
from tests.reproduction.run import (
    PAGE,
    RESULTS,
    SIZES,
    documented_files,
    missing_files,
    reproduce,
    sized,
)


def test_every_size_is_added_to_a_command_of_the_page() -> None:
    typed = "".join(shell_blocks(PAGE)).replace("\\\n", " ").splitlines()
    assert all(any(line.startswith(f"foldwise {start}") for line in typed) for start in SIZES)
    search = sized(shlex.split("study create --preset ckplus-loso"))
    assert {"--set=trials=8", "--set=training.width=4"} <= set(search)
    assert sized(["study", "create", "--preset", "ckplus-loso-x"])[-1] != "--set=trials=8"
    assert sized(["plan", "--preset", "ckplus-loso"]) == ["plan", "--preset", "ckplus-loso"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_command_of_the_page_runs_on_drawn_faces(tmp_path: Path) -> None:
    reproduce(tmp_path, ckplus_subjects=10, oulu_subjects=10)
    # Ten people are too few for the tables that stand beside the paper's numbers.
    missing = missing_files(tmp_path, documented_files())
    assert missing == [path for path in documented_files() if path.endswith("literature")]
    for table, names in (("table-4", ["c1", "c2", "c3"]), ("table-5", ["c2", "c1", "c4"])):
        with (tmp_path / RESULTS / table / "comparison.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert [row[0] for row in rows[1:]] == names
        assert rows[0][1:11] == [str(fold) for fold in range(1, 11)]
        assert rows[1][1:11] != rows[2][1:11], "the two searches found the same configuration"
