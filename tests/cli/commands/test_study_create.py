"""`foldwise study create --cache`: a study that fits a cache of own videos, as a person types it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

from client.local_service import SERVICE_FILE, Service
from coordinator.settings import CoordinatorSettings
from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.job import preprocess
from services.presets import CKPLUS_AUGMENTATION, get_preset
from tests.acceptance.up import foldwise_here
from tests.harness.served_app import WORKER_TOKEN, live_coordinator
from tests.harness.tiny_cache import write_tiny_cache


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with `lab`: folders subject/emotion/images of five drawn people with three emotions."""
    root = tmp_path_factory.mktemp("lab")
    write_synthetic_tree(root / "t", layout="oulu-casia", subjects=5, classes=["anger", "happy", "surprise"])
    preprocess(
        "video-folder",
        root / "t" / "OriginalImg" / "VL" / "Strong",
        root / "caches",
        settings=ClipSettings(frames=6, frame_size=32),
        processes=1,
        reader_settings={"name": "lab"},
    )
    return root / "caches"


@pytest.fixture
def coordinator(settings: CoordinatorSettings, lab: Path) -> Iterator[httpx.Client]:
    with live_coordinator(replace(settings, cache_root=lab)) as client:
        yield client


@pytest.fixture
def state(coordinator: httpx.Client, settings: CoordinatorSettings, tmp_path: Path) -> Path:
    """A state folder in which this coordinator is announced as that of `foldwise up`."""
    service = Service(
        url=str(coordinator.base_url),
        admin_token=settings.admin_token,
        worker_token=WORKER_TOKEN,
        database_url=settings.database_url,
        pid=os.getpid(),
    )
    (tmp_path / SERVICE_FILE).write_text(json.dumps(asdict(service)))
    return tmp_path


def create(state: Path, *words: str) -> CompletedProcess[str]:
    return foldwise_here("study", "create", *words, "--state", str(state))


def shown(client: httpx.Client, name: str) -> Any:
    return client.get(f"/api/v1/studies/{name}").json()


def test_a_cache_of_own_videos_needs_no_more_than_its_name(state: Path, coordinator: httpx.Client) -> None:
    run = create(state, "--cache", "lab", "--yes")
    assert run.returncode == 0, run.stderr
    said = " ".join(run.stdout.split())
    assert "15 clips of 3 classes (anger 5, happiness 5, surprise 5) by 5 subjects; 45 with augmented" in said
    assert "study lab-loso: 20 trials; Leave-One-Subject-Out, 5 folds (because 5 subjects are not more" in said
    assert "forecast: about " in said
    assert "follow it with: foldwise study watch lab-loso" in said
    study = shown(coordinator, "lab-loso")
    assert (study["state"], study["clips"], study["folds"]) == ("running", 15, 5)
    spec = study["spec"]
    assert (spec["training"]["frames"], spec["training"]["frame_size"], spec["feedback_delay"]) == (6, 32, 2)
    assert set(spec["training"]["augmentation"]["counts"]) == {"anger", "happiness", "surprise"}


def test_nobody_starts_weeks_of_work_unasked(state: Path, coordinator: httpx.Client) -> None:
    # No machine runs this many trials in a day, whatever the network.
    much = ("much", "--cache", "lab", "--set", "trials=100000", "--set", "training.learning_rate=0.001")
    run = create(state, *much)
    assert run.returncode == 2
    assert "this is more than 24 hours; with smaller settings it takes about" in run.stdout
    assert "--set 'training.width=8'" in run.stdout
    assert "trials=100" not in run.stdout, "the user chose the number of trials"
    assert "no study was created, because nobody can be asked" in run.stderr
    assert "to create it as it is, add --preset loso" in run.stderr
    assert shown(coordinator, "much")["status"] == 404

    assert create(state, *much, "--yes").returncode == 0
    spec = shown(coordinator, "much")["spec"]
    assert (spec["trials"], spec["training"]["width"], spec["training"]["learning_rate"]) == (100000, 8, 0.001)


def test_presets_for_any_clips_and_what_is_said_without_one(state: Path, coordinator: httpx.Client) -> None:
    run = create(state, "--preset", "kfold", "--cache", "lab", "--name", "two")
    assert run.returncode == 0, run.stderr
    assert "forecast" not in run.stdout, "who names a preset knows what it takes"
    assert shown(coordinator, "two")["spec"]["protocol"] == {"kind": "kfold", "k": 5, "outer": None}
    for words, message in (
        ((), "use --cache NAME for a study that fits a clip cache, or --preset NAME"),
        (("--preset", "loso"), "cache is None; name the clip cache that the study is for with --cache NAME"),
        (("--cache", "bla"), "no clip cache 'bla' (there are: lab/"),
        (("a", "--name", "b", "--cache", "lab"), "the study has two names, a and b; give one"),
    ):
        assert message in create(state, *words).stderr


def test_a_file_without_a_protocol_fits_the_cache_too(state: Path, coordinator: httpx.Client) -> None:
    (state / "study.yaml").write_text("{name: own, cache: lab, trials: 6, training: {epochs: 3}}")
    assert create(state, "--spec", str(state / "study.yaml")).returncode == 0
    spec = shown(coordinator, "own")["spec"]
    assert (spec["protocol"]["kind"], spec["trials"], spec["training"]["epochs"]) == ("loso", 6, 3)
    assert spec["training"]["frame_size"] == 32


def test_a_spec_over_rest_fits_the_cache_unless_it_names_a_protocol(coordinator: httpx.Client) -> None:
    body = {"name": "fitted", "cache": "lab", "workers": 3}
    spec = coordinator.post("/api/v1/studies", json=body).json()["spec"]
    assert (spec["protocol"]["kind"], spec["trials"], spec["training"]["frame_size"]) == ("loso", 20, 32)
    assert spec["feedback_delay"] == 6
    named = coordinator.post("/api/v1/studies", json={**body, "name": "named", "protocol": {"kind": "loso"}})
    assert (named.status_code, named.json()["field"]) == (422, "training.frames")
    wrong = coordinator.post("/api/v1/studies", json={**body, "name": "wrong", "enqueue": [{"width": 8}]})
    assert (wrong.status_code, "enqueue.0: unknown parameter 'width'" in wrong.json()["detail"]) == (422, True)


def test_clips_of_another_detector_than_the_papers_are_told_at_creation(
    settings: CoordinatorSettings, tmp_path: Path
) -> None:
    yunet = {"detector": "yunet", "box": "frame"}
    write_tiny_cache(tmp_path, dataset="ckplus", classes=sorted(CKPLUS_AUGMENTATION.counts), settings=yunet)
    with live_coordinator(replace(settings, cache_root=tmp_path)) as client:
        body = get_preset("ckplus-best").model_dump(mode="json")
        body["training"] |= {"frames": 2, "frame_size": 16}
        (warning,) = client.post("/api/v1/studies", json=body).json()["warnings"]
        assert "the clips were made with detector yunet, the paper's with detector res10" in warning
        copied = client.post("/api/v1/studies/ckplus-best/clone", json={"name": "copy", "changes": {}})
        assert copied.json()["warnings"] == [warning]
