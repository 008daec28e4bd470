"""One spec on one machine gives the same folds to the bit, whatever the number of workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from client.connection import Connection
from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from tests.acceptance.up import Up

CONFIGURATIONS = "enqueue=[{temporal_size: 3, dropout: 0.4}, {temporal_size: 1, dropout: 0.2}]"


def test_one_and_three_workers_compute_the_same_bits(tmp_path: Path) -> None:
    write_ckplus_tree(tmp_path / "tree", subjects=4, clips_per_class=1, seed=0, progress=lambda *_: None)
    settings = ClipSettings(frame_size=32)
    preprocess("ckplus", tmp_path / "tree", tmp_path / "caches", settings=settings, processes=1)
    one, three = (_folds(tmp_path, workers) for workers in (1, 3))
    assert one == three


def _folds(folder: Path, workers: int) -> dict[tuple[int, int], Any]:
    """What the workers of a new `foldwise up` predict in every fold of every trial."""
    state = folder / f"{workers}-workers"
    shutil.copytree(folder / "caches", state / "caches")
    with Up(state, workers=workers, threads=None) as up:
        up.create("same", CONFIGURATIONS)
        assert up.wait_until_over("same")["state"] == "complete"
        plan, service = up.show("same")["plan"], up.service()
        with Connection(service["url"], service["admin_token"], give_up_after=10) as connection:
            results = {
                (trial, fold): connection.call("GET", f"/studies/same/trials/{trial}/folds/{fold}")["result"]
                for trial in range(2)
                for fold in range(4)
            }
    ran = {(each["provenance"]["threads"], each["provenance"]["memory_format"]) for each in results.values()}
    assert ran == {(plan["threads"], plan["memory_format"])}
    return {key: json.dumps(result["epochs"]) for key, result in results.items()}
