"""A service that is restored from a backup, made while it ran, finishes its study as the first one does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from tests.acceptance.up import Up, foldwise, wait_for

TRIALS = """
    SELECT t.number, t.parameters::text, t.state, t.value, r.fold, (r.payload->'epochs')::text
    FROM foldwise.trials t JOIN foldwise.results r ON r.trial_id = t.id ORDER BY t.number, r.fold
"""

OPTUNA = """
    SELECT t.number, t.state, v.value, p.param_name, p.param_value FROM trials t
    JOIN trial_values v USING (trial_id) JOIN trial_params p USING (trial_id) ORDER BY 1, 4
"""


def finished(up: Up) -> tuple[list[Any], list[Any]]:
    up.wait_until_over("s")
    wait_for(lambda: not up.query("SELECT 1 FROM foldwise.outbox"))
    return up.query(TRIALS), up.query(OPTUNA)


@pytest.mark.long
def test_a_restored_service_goes_on_with_equal_trials(tmp_path: Path) -> None:
    write_ckplus_tree(tmp_path / "tree", subjects=4, seed=1)
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "backup.tar"
    preprocess("ckplus", tmp_path / "tree", first / "caches", settings=ClipSettings(frame_size=32), processes=1)
    with Up(first, workers=1) as up:
        up.create("s", "trials=5")
        wait_for(lambda: up.show("s")["folds_done"] >= 6)
        made = foldwise("backup", str(file), "--state", str(first))
        assert made.returncode == 0, made.stderr
        expected = finished(up)
    restored = foldwise("restore", str(file), "--state", str(second))
    assert restored.returncode == 0, restored.stderr
    assert "running studies need their clip caches" in restored.stdout
    shutil.copytree(first / "caches", second / "caches")
    with Up(second, workers=1) as up:
        assert len(up.query(TRIALS)) < len(expected[0]), "the backup is from the middle of the study"
        assert finished(up) == expected
    assert len(expected[0]) == 20
