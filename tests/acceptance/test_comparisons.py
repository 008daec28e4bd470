"""Section 4.3 of the paper in small: two synthetic datasets, pretraining, a table of paired tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.job import preprocess
from tests.acceptance.up import Up, foldwise

SMALL = (
    "training.frame_size=32",
    "training.width=4",
    "training.batch_size=7",
    "training.epochs=20",
    "training.learning_rate=0.001",
    "training.augmentation={}",
    "protocol={kind: kfold, k: 4}",
)


@pytest.mark.long
def test_configurations_are_compared_with_and_without_pretraining_then_confirmed(tmp_path: Path) -> None:
    for layout in ("ckplus", "oulu-casia"):
        write_synthetic_tree(tmp_path / layout, layout=layout, subjects=8, seed=2, colour=False)
        settings = ClipSettings(frame_size=32)
        preprocess(layout, tmp_path / layout, tmp_path / "state" / "caches", settings=settings, processes=1)
    here = ("--state", str(tmp_path / "state"))
    small = [f"--set={word}" for word in SMALL]
    (tmp_path / "elu.yaml").write_text("activation: ELU\ndropout: 0.1\n")

    made = foldwise("pretrain", "--name", "oulu", "--preset", "oulu-10fold", *small, *here, "--json")
    assert made.returncode == 0, made.stderr
    model = json.loads(made.stdout)["id"]

    with Up(tmp_path / "state", workers=1) as up:
        search = ["cache=ckplus", "space={dropout: [0.2, 0.4]}", *SMALL]
        up.create("search", *search)
        up.wait_until_over("search")
        configurations = ("c1=search", f"c2={tmp_path / 'elu.yaml'}", f"c3=search@{model}")
        asked = ("compare", *configurations, "--preset", "ckplus-10fold", "--name", "table", *small, *here)
        shown = foldwise(*asked, "-o", str(tmp_path / "out"))
        assert shown.returncode == 0, shown.stderr
        assert "Quote the corrected t" in shown.stdout
        assert "c1, c3: selected by a search on ckplus itself" in shown.stdout
        result: dict[str, Any] = json.loads(foldwise(*asked, "--json").stdout)
        assert [side["pretrained"] for side in result["sides"]] == [None, None, model]
        assert up.show(f"table-{model[-12:]}")["spec"]["training"]["pretrained"] == model
        # What is compared has learnt something: chance is one in seven.
        assert all(side["correct"] / side["clips"] > 2 / 7 for side in result["sides"])
        with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0][1:5] == ["1", "2", "3", "4"]
        for row, side in zip(rows[1:], result["sides"], strict=True):
            assert [float(cell) for cell in row[1:5]] == side["folds"]
            folds = up.query(
                f"""SELECT r.correct::float / r.clips FROM foldwise.results r
                JOIN foldwise.trials t ON t.id = r.trial_id JOIN foldwise.studies s ON s.id = t.study_id
                WHERE s.name = '{side["study"]}' AND t.number = {side["trial"]} ORDER BY r.fold"""  # noqa: S608
            )
            assert [share for (share,) in folds] == side["folds"]

        confirmed = foldwise("confirm", "search", "--top", "1", "--seeds", "2", *here)
        assert confirmed.returncode == 0, confirmed.stderr
        assert "of 2 complete ones" in " ".join(confirmed.stdout.split())
        reported = foldwise("report", "search", "-o", str(tmp_path / "report"), *here)
        assert f"report of search: {tmp_path / 'report' / 'report.html'}" in reported.stdout
