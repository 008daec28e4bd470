"""Clips of several windows: each window is trained on, and a clip is tested by the mean of its windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.clip_cache import ClipCache
from services.contracts import ANY_CLASS, Augmentation, AugmentationCounts
from services.seeds import augmentation_seed
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from worker.training.augmentation import augment
from worker.training.clips import ClipSet, ClipStore
from worker.training.evaluate import evaluate
from worker.training.fit import train_model
from worker.training.optim import class_weights
from worker.training.training_device import TrainingDevice

WINDOWS = 3
AUGMENTATION = Augmentation(
    counts={ANY_CLASS: AugmentationCounts(contrast=1), "down": AugmentationCounts(flip=1, rotation=2)}
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return write_cache(
        tmp_path_factory.mktemp("caches"), subjects=3, clips_of_class=2, size=16, windows=WINDOWS
    )


@pytest.fixture(scope="module")
def clip_set(cache: ClipCache) -> ClipSet:
    return ClipStore().get(cache, clahe=False, study_seed=3, augmentation=AUGMENTATION, device=CPU)


def test_rows_are_the_windows_then_the_copies_of_each(cache: ClipCache, clip_set: ClipSet) -> None:
    windows = cache.frames(clahe=False).reshape(18, WINDOWS, 10, 16, 16)
    copies, clip_of_copy = [], []
    for clip, (record, frames) in enumerate(zip(cache.records, windows, strict=True)):
        counts = AUGMENTATION.counts_for(record.label)
        for window in range(WINDOWS):
            seed = augmentation_seed(study_seed=3, clip_id=record.clip_id, window=window)
            copies.append(augment(frames[window], counts, AUGMENTATION, seed))
            clip_of_copy += [clip] * len(copies[-1])
    rows = clip_set.take(torch.arange(len(clip_set.labels))).numpy()
    assert (rows == np.concatenate([*windows, *copies])).all()
    assert clip_set.clip_of_row.tolist() == [clip for clip in range(18) for _ in range(WINDOWS)] + clip_of_copy
    assert clip_set.labels.tolist() == [clip_set.clips[clip].label for clip in clip_set.clip_of_row.tolist()]


def test_the_windows_of_a_clip_are_augmented_each_by_its_own(cache: ClipCache) -> None:
    seeds = {augmentation_seed(study_seed=3, clip_id="a", window=window) for window in range(WINDOWS)}
    assert len(seeds) == WINDOWS
    assert augmentation_seed(study_seed=3, clip_id="a") == augmentation_seed(
        study_seed=3, clip_id="a", window=0
    )


def test_a_fold_trains_on_all_windows_of_the_others_and_tests_those_of_its_clips(
    cache: ClipCache, clip_set: ClipSet
) -> None:
    test_clips = assign(cache).test_clips[::-1]
    train, test, _ = clip_set.split(test_clips)
    index_of = {clip.clip_id: index for index, clip in enumerate(clip_set.clips)}
    assert test.tolist() == [
        index_of[name] * WINDOWS + window for name in test_clips for window in range(WINDOWS)
    ]
    tested = {clip_set.clips[clip].subject for clip in clip_set.clip_of_row[test].tolist()}
    trained = {clip_set.clips[clip].subject for clip in clip_set.clip_of_row[train].tolist()}
    assert (tested, trained) == ({"s0"}, {"s1", "s2"})
    assert len(train) == 2 * WINDOWS * 2 * (2 + 4 + 2)
    everything, originals = clip_set.everything()
    assert len(everything) == len(clip_set.labels)
    order = sorted(index_of)
    assert originals.tolist() == [
        index_of[name] * WINDOWS + window for name in order for window in range(WINDOWS)
    ]


class Fixed:
    """Gives the logits that it was made of."""

    def __init__(self, logits: Any) -> None:
        self.model = torch.nn.Identity()
        self._logits = torch.as_tensor(logits)

    def __call__(self, rows: torch.Tensor, *, exactly: bool) -> torch.Tensor:
        return self._logits[rows]


def test_a_clip_has_the_mean_of_the_probabilities_of_its_windows(clip_set: ClipSet) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (len(clip_set.labels), 4))
    rows = clip_set.originals(torch.tensor([4, 0]))
    tested = evaluate(Fixed(logits), lambda rows: rows, rows, 4, windows=WINDOWS)  # type: ignore[arg-type]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    by_hand = np.stack([shares[12:15].mean(axis=0), shares[0:3].mean(axis=0)])
    np.testing.assert_allclose(tested.probabilities, by_hand, atol=1e-6)
    assert tested.predicted == tuple(by_hand.argmax(axis=1).tolist())


def test_the_mean_decides_the_label_and_a_window_that_is_not_finite_its_clip() -> None:
    logits = [
        [0.0, 1.0, -9.0],
        [0.0, 1.0, -9.0],
        [9.0, 0.0, -9.0],
        [0.0, 9.0, 0.0],
        [0.0, 9.0, float("nan")],
        [0, 9, 0],
    ]
    tested = evaluate(Fixed(logits), lambda rows: rows, torch.arange(6), 4, windows=3)  # type: ignore[arg-type]
    # Two of three windows prefer the second class, but the third is surer of the first.
    assert tested.predicted == (0, 0)
    assert tested.probabilities[1] == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_a_result_has_one_prediction_for_each_clip_and_weights_count_clips(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[list[int]] = []

    def spy(labels: torch.Tensor, *, classes: int) -> torch.Tensor:
        counted.append(labels.bincount(minlength=classes).tolist())
        return class_weights(labels, classes=classes)

    monkeypatch.setattr("worker.training.fit.class_weights", spy)
    training = TINY.model_copy(update={"epochs": 1, "augmentation": AUGMENTATION})
    task = assign(cache, training, loss_weights=True)
    result = run(task, cache)
    assert counted == [[4, 4, 4]]
    assert len(result.epochs[0].predicted) == len(task.test_clips) == 6
    assert result.provenance.clip_passes == 2 * WINDOWS * 2 * (2 + 4 + 2)


def test_a_perfect_fold_is_known_by_the_labels_of_its_clips(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, subjects=3, clips_of_class=1, size=16, windows=2)
    task = assign(cache, TINY.model_copy(update={"epochs": 16}), stop_when_perfect=True)
    result = run(task, cache)
    truth = {clip.clip_id: clip.label for clip in cache.clips()}
    assert result.epochs[-1].predicted == tuple(truth[clip_id] for clip_id in task.test_clips)
    assert len(result.epochs) < 16


def test_a_final_model_is_tested_on_each_clip_once(cache: ClipCache) -> None:
    task = assign(cache, TINY.model_copy(update={"epochs": 1})).model_copy(
        update={"test_clips": tuple(sorted(clip.clip_id for clip in cache.clips())), "trains_on_all": True}
    )
    result, _ = train_model(task, cache, TrainingDevice(CPU), revision=None, on_step=lambda _: None)
    assert len(result.epochs[0].predicted) == 18


def test_validation_clips_are_predicted_by_the_mean_of_their_windows_too(
    cache: ClipCache, clip_set: ClipSet
) -> None:
    validated = tuple(clip.clip_id for clip in cache.clips() if clip.subject == "s1")
    task = assign(cache, TINY.model_copy(update={"epochs": 1}))
    task = task.model_copy(update={"validation_clips": validated})
    train, test, validation = clip_set.split(task.test_clips, None, validated)
    assert (len(test), len(validation)) == (6 * WINDOWS, 6 * WINDOWS)
    assert {clip_set.clips[clip].subject for clip in clip_set.clips_of(train).tolist()} == {"s2"}
    (epoch,) = run(task, cache).epochs
    assert (len(epoch.predicted), len(epoch.validation_predicted)) == (6, 6)
