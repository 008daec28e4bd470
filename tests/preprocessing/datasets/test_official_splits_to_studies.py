"""A dataset's own split, from a list beside drawn faces through the preprocessing job to a study's folds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.forecast.dataset_shape import shape_of_cache
from cli.forecast.forecast import make_forecast
from coordinator.store.studies import study_split
from coordinator.store.tables import StudyFoldRow
from coordinator.studies import life
from coordinator.studies.data_warnings import data_warnings
from preprocessing.clips import ClipSettings
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.inspection import inspect_cache
from preprocessing.job import Outcome, preprocess
from services.clip_cache import INDEX, open_cache
from services.contracts import Augmentation, StudySpec
from services.errors import InvalidInput
from tests.harness.coordinator_harness import Harness
from worker.training.clips import ClipStore

FOLDS = ("5", "10", "3", "10", "1", "2", "3")
"""Given fold of each subject, in the order of the dataset."""

PARTS = ("train", "Test", "TRAINING", "dev", "train", "test", "val")
"""Part of the split of each subject, as the list spells it."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven drawn people with two emotions each, as folders of images."""
    root = tmp_path_factory.mktemp("faces") / "set"
    write_synthetic_tree(root, layout="oulu-casia", subjects=7, classes=["happy", "anger"])
    return root


def clips_of(faces: Path) -> list[tuple[str, int, str]]:
    """Folder, number of the subject and label of each clip."""
    found = read_dataset("oulu-casia", faces).sequences
    subjects = sorted({sequence.subject for sequence in found})
    return [
        (one.frames[0].parent.relative_to(faces).as_posix(), subjects.index(one.subject), one.label)
        for one in found
    ]


def made(faces: Path, caches: Path, *columns: str, moved: str = "") -> Outcome:
    """The cache `tiny` of a list with these columns; the clip `moved` is in the part test."""
    lines = [",".join(("path", "label", *columns))]
    for path, subject, label in clips_of(faces):
        part = "test" if path == moved else PARTS[subject]
        values = {"subject": f"s{subject}", "fold": FOLDS[subject], "split": part}
        lines.append(",".join((path, label, *(values[column] for column in columns))))
    (faces / "clips.csv").write_text("\n".join(lines))
    return preprocess(
        "video-folder",
        faces,
        caches,
        settings=ClipSettings(frames=2, frame_size=16),
        processes=1,
        reader_settings={"manifest": "clips.csv", "name": "tiny"},
    )


@pytest.fixture(scope="module")
def official(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The cache of a list with people, five folds, and a split into train, validation and test."""
    return made(faces, tmp_path_factory.mktemp("caches"), "subject", "fold", "split")


def spec(**given: Any) -> StudySpec:
    training = {"frames": 2, "frame_size": 16}
    return StudySpec.model_validate({"name": "s", "cache": "tiny", "training": training, "trials": 2, **given})


def create(harness: Harness, outcome: Outcome, **given: Any) -> tuple[list[StudyFoldRow], tuple[str, ...]]:
    """The split of a new study on this cache, and the warnings about it."""
    root = outcome.folder.parents[1]
    with harness.sessions.begin() as session:
        study = life.create(session, spec(**given), root)
        return list(study_split(session, study)), data_warnings(session, study, root)


def where(faces: Path, subjects: set[int]) -> list[str]:
    return sorted(path for path, subject, _ in clips_of(faces) if subject in subjects)


def test_five_given_folds_are_the_folds_of_a_study(harness: Harness, faces: Path, official: Outcome) -> None:
    split, warnings = create(harness, official, protocol={"kind": "given_folds"})
    assert warnings == ()
    assert [(fold.name, fold.clip_ids) for fold in split] == [
        ("fold 1", where(faces, {4})),
        ("fold 2", where(faces, {5})),
        ("fold 3", where(faces, {2, 6})),
        ("fold 5", where(faces, {0})),
        ("fold 10", where(faces, {1, 3})),
    ]
    study = spec(protocol={"kind": "given_folds"})
    assert make_forecast(study, shape_of_cache(study, official.folder.parents[1])).folds == 5


@pytest.mark.parametrize("epoch_choice", ["validation", "best_per_fold"])
def test_a_given_split_is_the_one_fold_of_a_study(
    harness: Harness, faces: Path, official: Outcome, epoch_choice: str
) -> None:
    (fold,), warnings = create(harness, official, protocol={"kind": "holdout"}, epoch_choice=epoch_choice)
    assert (fold.name, fold.clip_ids) == ("test", where(faces, {1, 5}))
    assert fold.validation_clip_ids == where(faces, {3, 6})
    unused = "the 4 clips in the part validation are neither trained on nor tested; set epoch_choice to"
    assert [warning[: len(unused)] for warning in warnings] == [unused] * (epoch_choice != "validation")
    harness.leader.round()
    task = harness.must_claim(caches=(official.manifest.fingerprint,))
    cache = open_cache(official.folder)
    clips = ClipStore().get(
        cache, clahe=False, study_seed=0, augmentation=Augmentation(), device=torch.device("cpu")
    )
    trained, _, _ = clips.split(task.test_clips, task.outer, task.validation_clips)
    assert sorted(cache.clips()[row].clip_id for row in trained.tolist()) == where(faces, {0, 2, 4})


def test_a_person_on_both_sides_is_refused_by_name(harness: Harness, faces: Path, tmp_path: Path) -> None:
    moved = where(faces, {4})[0]
    outcome = made(faces, tmp_path, "subject", "split", moved=moved)
    leak = rf"subject s4 is in test \(clip {moved}\) and in train"
    (warning,) = outcome.manifest.warnings
    assert re.search(leak, warning)
    with pytest.raises(InvalidInput, match=leak):
        create(harness, outcome, protocol={"kind": "holdout"})
    with pytest.raises(InvalidInput, match="has no given fold; give each clip one in the column `fold`"):
        create(harness, outcome, protocol={"kind": "given_folds"})
    assert len(create(harness, outcome)[0]) == 7


def test_without_people_the_split_is_used_and_nobody_can_check_it(
    harness: Harness, faces: Path, official: Outcome, tmp_path: Path
) -> None:
    outcome = made(faces, tmp_path, "fold")
    (warning,) = outcome.manifest.warnings
    assert "No subjects are given, so nobody can check" in warning
    assert outcome.manifest.subjects == 0
    assert inspect_cache(open_cache(outcome.folder)).subjects == 0
    with pytest.raises(InvalidInput, match="the clips have no subjects, which loso needs"):
        create(harness, outcome)
    split, (said,) = create(harness, outcome, protocol={"kind": "given_folds"})
    assert "gives no subjects, so nobody can check whether a fold trains and tests on the same" in said
    assert [fold.name for fold in split] == ["fold 1", "fold 2", "fold 3", "fold 5", "fold 10"]


def test_a_cache_without_a_split_has_its_usual_index_and_another_fingerprint(
    faces: Path, official: Outcome, tmp_path: Path
) -> None:
    plain = made(faces, tmp_path, "subject")
    assert plain.manifest.fingerprint != official.manifest.fingerprint
    usual = [
        "clip_id",
        "subject",
        "label",
        "source",
        "frames",
        "detector",
        "boxes",
        "confidences",
        "repeated",
        "flags",
    ]
    for outcome, columns in ((plain, usual), (official, [*usual, "fold", "split"])):
        header = (outcome.folder / INDEX).read_text().splitlines()[0]
        assert header.replace('"', "").split(",") == columns
    assert inspect_cache(open_cache(plain.folder)).folds == inspect_cache(open_cache(official.folder)).folds[:1]
