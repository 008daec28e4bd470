"""The forecast of the demo against what an unpruned run of it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.local.demo import DIFFICULTY, SEED
from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from services.presets import DEMO_SUBJECTS, get_preset
from tests.acceptance.up import Up, foldwise


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_an_unpruned_demo_takes_the_clip_passes_that_were_forecast(tmp_path: Path) -> None:
    state = tmp_path / "state"
    write_ckplus_tree(tmp_path / "faces", subjects=DEMO_SUBJECTS, seed=SEED, difficulty=DIFFICULTY)
    training = get_preset("demo").training
    settings = ClipSettings(frames=training.frames, frame_size=training.frame_size)
    preprocess("ckplus", tmp_path / "faces", state / "caches", settings=settings, processes=1)
    forecast = json.loads(foldwise("plan", "--preset", "demo", "--json").stdout)
    with Up(state, workers=2) as up:
        up.study("create", "--preset", "demo", "--name", "whole", "--set", "pruning=[]")
        watch = ["study", "watch", "whole", "--state", str(state)]
        subprocess.run([sys.executable, "-m", "cli.main", *watch], check=True, timeout=3000)
        [(folds, passes)] = up.query(
            "SELECT count(*), sum((payload->'provenance'->>'clip_passes')::int) FROM foldwise.results"
        )
        measured = json.loads(
            foldwise(
                *("plan", "--preset", "demo", "--calibrate-from", "whole", "--state", str(state), "--json")
            ).stdout
        )
    assert folds == 60
    assert passes == pytest.approx(forecast["clip_passes"], rel=0.1)
    here = measured["devices"][0]
    assert (here["device"], here["measured"]) == ("cpu", True)
