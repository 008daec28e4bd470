"""A fold learns, repeats to the bit, ends when it should, and never trains on what it tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from services.clip_cache import ClipCache
from services.contracts import (
    Augmentation,
    AugmentationCounts,
    FoldResult,
    FoldTask,
    TrainingSettings,
)
from services.errors import CacheMismatch, InvalidInput
from services.folds import LeaveOneSubjectOut, OuterFold, make_folds
from services.search_space import Hyperparameters
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from worker.training.clips import Batches, ClipStore
from worker.training.evaluate import evaluate
from worker.training.fit import OutOfMemory, Progress, shuffled_batches
from worker.training.network import NetworkSettings
from worker.training.optim import build_optimizer, class_weights
from worker.training.training_device import TrainingDevice


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    """Four subjects with four clips of each class: a bar moving right or down, a patch that lights up."""
    return write_cache(tmp_path_factory.mktemp("caches"), subjects=4, clips_of_class=4, size=16)


def accuracies(result: FoldResult, assignment: FoldTask, cache: ClipCache) -> list[float]:
    label = {clip.clip_id: clip.label for clip in cache.clips()}
    truth = [label[clip_id] for clip_id in assignment.test_clips]
    return [float(np.mean(np.array(epoch.predicted) == truth)) for epoch in result.epochs]


def without_times(result: FoldResult) -> dict[str, Any]:
    return result.model_dump(exclude={"provenance": {"seconds", "host_memory"}})


# --- A fold -----------------------------------------------------------------------------------------------


def test_a_fold_learns_and_its_result_is_whole(cache: ClipCache) -> None:
    assignment = assign(cache)
    result = run(assignment, cache)
    assert max(accuracies(result, assignment, cache)) >= 0.9
    losses = [epoch.loss for epoch in result.epochs]
    assert len(losses) == 8
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0]
    for epoch in result.epochs:
        assert np.shape(epoch.probabilities) == (12, 3)
        assert np.sum(epoch.probabilities, axis=1) == pytest.approx(1, abs=1e-5)
        assert all(p == round(p, 6) for clip in epoch.probabilities for p in clip)
        assert tuple(np.argmax(epoch.probabilities, axis=1)) == epoch.predicted
    provenance = result.provenance
    assert (provenance.device, provenance.torch) == ("cpu", torch.__version__)
    assert (provenance.cuda, provenance.cudnn, provenance.revision) == (None, None, "abc")
    assert provenance.threads == torch.get_num_threads()
    assert provenance.clip_passes == 8 * 36 * 2  # 36 clips of three subjects, each with a copy
    assert provenance.seconds > 0


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"pooling_layer": "MaxPooling", "optimization": "Lookahead+Adam", "activation": "Mish"},
        {"normalization": True, "loss_weights": True, "clahe": True, "second_conv_layer": True},
    ],
)
def test_the_same_assignment_gives_the_same_bits(cache: ClipCache, hyperparameters: dict[str, Any]) -> None:
    short = TINY.model_copy(update={"epochs": 2})
    assignment = assign(cache, short, **hyperparameters)
    first = run(assignment, cache)
    torch.rand(7)  # what ran before must not matter
    again = run(assignment, cache)
    other_seed = run(assign(cache, short, seed=2, **hyperparameters), cache)
    assert without_times(first) == without_times(again)
    assert without_times(first) != without_times(other_seed)


def test_a_fold_is_the_same_after_another_one(cache: ClipCache) -> None:
    device, short = TrainingDevice(CPU), TINY.model_copy(update={"epochs": 1})
    alone = run(assign(cache, short, fold=1), cache)
    run(assign(cache, short, fold=0), cache, device=device)
    after = run(assign(cache, short, fold=1), cache, device=device)
    assert without_times(alone) == without_times(after)


def test_stop_when_perfect_cuts_the_same_run_short(cache: ClipCache) -> None:
    assignment = assign(cache)
    all_epochs = run(assignment, cache)
    stopped = run(assign(cache, stop_when_perfect=True), cache)
    perfect = accuracies(all_epochs, assignment, cache).index(1.0)
    assert perfect < 7
    assert stopped.epochs == all_epochs.epochs[: perfect + 1]
    assert not stopped.diverged


def test_a_loss_that_is_not_finite_in_the_first_epoch(cache: ClipCache) -> None:
    huge = TINY.model_copy(update={"learning_rate": 1e30, "epochs": 5})
    seen: list[Progress] = []
    result = run(assign(cache, huge), cache, on_step=seen.append)
    assert result.diverged
    assert [epoch.loss for epoch in result.epochs] == [None]
    assert set(result.epochs[0].probabilities) == {(0.333333, 0.333333, 0.333333)}
    assert result.provenance.clip_passes < 5 * 72
    assert all(progress.loss is None for progress in seen)


def test_epochs_before_a_loss_that_is_not_finite_count(cache: ClipCache) -> None:
    # One batch an epoch: the first loss is of the initial weights, the second of ruined ones.
    huge = TINY.model_copy(update={"learning_rate": 1e30, "epochs": 5, "batch_size": 1000})
    result = run(assign(cache, huge), cache)
    assert result.diverged
    assert len(result.epochs) == 1
    assert result.epochs[0].loss is not None


def test_on_step_hears_every_step_and_may_end_the_fold(cache: ClipCache) -> None:
    seen: list[Progress] = []

    class Abandoned(Exception):
        pass

    def on_step(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 12:
            raise Abandoned

    with pytest.raises(Abandoned):
        run(assign(cache), cache, on_step=on_step)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert [progress.epoch for progress in seen] == [1] * 9 + [2] * 3  # 72 clips in batches of 8
    assert [progress.step for progress in seen if progress.loss is not None] == [10]


def test_a_result_travels_as_json(cache: ClipCache) -> None:
    result = run(assign(cache, TINY.model_copy(update={"epochs": 1})), cache)
    assert FoldResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("update", "field"),
    [
        ({"frames": 9}, "training.frames"),
        ({"frame_size": 20}, "training.frame_size"),
        ({"batch_size": 1}, "training.batch_size"),
    ],
)
def test_settings_that_do_not_fit_are_named(cache: ClipCache, update: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(assign(cache, TINY.model_copy(update=update)), cache)
    assert caught.value.field == field


def test_another_cache_is_refused(cache: ClipCache) -> None:
    with pytest.raises(CacheMismatch):
        run(assign(cache).model_copy(update={"fingerprint": "0" * 64}), cache)


def test_out_of_memory_says_what_to_lower(cache: ClipCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ClipStore, "get", full)
    with pytest.raises(OutOfMemory, match=r"batches of 8 clips of 10 x 16 x 16 at width 4 .* cpu; lower"):
        run(assign(cache), cache)


@pytest.mark.long
def test_a_fold_of_the_papers_size(tmp_path: Path) -> None:
    large = write_cache(tmp_path, subjects=2, clips_of_class=1, size=112)
    one_test_clip = assign(large, TrainingSettings(batch_size=2, epochs=1), clahe=True)
    result = run(one_test_clip, large)
    assert result.provenance.clip_passes == 3
    assert len(result.epochs[0].predicted) == 3
    assert not result.diverged


# --- Clips ------------------------------------------------------------------------------------------------


def test_no_tested_subject_is_trained_on(cache: ClipCache) -> None:
    clip_set = _clip_set(cache, ClipStore())
    for fold in make_folds(cache.clips(), LeaveOneSubjectOut()):
        train, test, validation = clip_set.split(fold.test_clips)
        assert len(validation) == 0
        trained = [clip_set.clips[i] for i in clip_set.clip_of_row[train].tolist()]
        assert {clip.subject for clip in trained}.isdisjoint(fold.subjects)
        assert len(trained) == 72
        assert tuple(clip_set.clips[i].clip_id for i in test.tolist()) == fold.test_clips


def test_subjects_of_the_outer_fold_take_no_part(cache: ClipCache) -> None:
    clip_set = _clip_set(cache, ClipStore())
    outer = OuterFold(k=2, fold=1)
    fold = make_folds(cache.clips(), LeaveOneSubjectOut(outer=outer))[0]
    train, _, _ = clip_set.split(fold.test_clips, outer)
    assert {clip_set.clips[i].subject for i in clip_set.clip_of_row[train].tolist()} == {"s2"}


def test_a_fold_that_splits_a_subject_is_refused(cache: ClipCache) -> None:
    clip_set = _clip_set(cache, ClipStore())
    with pytest.raises(InvalidInput, match="subject s0 is tested and trained on"):
        clip_set.split(("s0/right/0",))
    with pytest.raises(InvalidInput, match="clip 'nobody' is not in the clip cache"):
        clip_set.split(("nobody",))
    with pytest.raises(InvalidInput, match="clips to train on"):
        clip_set.split([clip.clip_id for clip in cache.clips()])
    with pytest.raises(InvalidInput, match="clips to test"):
        clip_set.split(())


def test_rows_are_the_originals_then_their_copies(cache: ClipCache) -> None:
    clip_set = _clip_set(cache, ClipStore())
    assert (clip_set.frames[:48].numpy() == cache.frames(clahe=False)).all()
    assert clip_set.clip_of_row.tolist() == [*range(48), *range(48)]
    assert clip_set.labels.tolist() == [clip.label for clip in cache.clips()] * 2


def test_a_batch_is_scaled(cache: ClipCache, tmp_path: Path) -> None:
    rows = torch.tensor([5, 0])
    gray = _clip_set(cache, ClipStore())
    values = torch.from_numpy(cache.frames(clahe=False)[[5, 0]]).float()
    unit = gray.batch(rows, normalization=False)
    assert unit.shape == (2, 1, 10, 16, 16)
    assert (unit.min() >= 0, unit.max() <= 1) == (True, True)
    torch.testing.assert_close(unit[:, 0], values / 255)
    as_colour = gray.batch(rows, normalization=False, gray_as_one_channel=False)
    torch.testing.assert_close(as_colour, unit.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(gray.batch(rows, normalization=True)[:, 0], values / 127.5 - 1)

    coloured = write_cache(tmp_path, subjects=2, clips_of_class=1, size=16, colour=True)
    batch = _clip_set(coloured, ClipStore()).batch(rows, normalization=False)
    expected = np.moveaxis(coloured.frames(clahe=False)[[5, 0]], -1, 1) / np.float32(255)
    torch.testing.assert_close(batch, torch.from_numpy(expected.astype(np.float32)))


def test_the_store_keeps_the_two_sets_last_used(cache: ClipCache) -> None:
    store = ClipStore()
    plain, clahe = _clip_set(cache, store), _clip_set(cache, store, clahe=True)
    assert not torch.equal(plain.frames, clahe.frames)
    assert _clip_set(cache, store) is plain
    assert _clip_set(cache, store, clahe=True) is clahe
    other = _clip_set(cache, store, study_seed=1)
    assert not torch.equal(plain.frames, other.frames)
    assert _clip_set(cache, store, clahe=True) is clahe
    assert _clip_set(cache, store) is not plain


@pytest.mark.parametrize(
    ("rows", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 30, [3]), (5, 2, [2, 3])],
)
def test_no_batch_has_a_single_clip(rows: int, batch_size: int, sizes: list[int]) -> None:
    batches = shuffled_batches(torch.arange(rows), batch_size, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(rows))


def test_test_clips_are_predicted_one_by_one(cache: ClipCache) -> None:
    device, task = TrainingDevice(CPU), assign(cache)
    batches = Batches.of(task, _clip_set(cache, device.clips))
    settings = NetworkSettings.of(task, channels=batches.channels, device=CPU)
    network = device.network(settings, batches, seed=task.seed)

    together, alone = (evaluate(network, batches.clips, torch.arange(6), size) for size in (6, 1))
    np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=3e-6)


# --- Optimiser and loss -----------------------------------------------------------------------------------


def test_class_weights_are_inverse_counts_with_mean_one() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 0, 1, 3, 3]), classes=4)
    assert weights.tolist() == pytest.approx([3 / 7, 12 / 7, 0, 6 / 7])
    assert weights.dtype == torch.float32


def test_loss_weights_count_recorded_clips_only(cache: ClipCache, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[list[int]] = []

    def spy(labels: torch.Tensor, *, classes: int) -> torch.Tensor:
        counted.append(labels.bincount(minlength=classes).tolist())
        return class_weights(labels, classes=classes)

    monkeypatch.setattr("worker.training.fit.class_weights", spy)
    uneven = Augmentation(counts={"down": AugmentationCounts(flip=1, contrast=3)})
    short = TINY.model_copy(update={"epochs": 1, "augmentation": uneven})
    run(assign(cache, short, loss_weights=True), cache)
    run(assign(cache, short, loss_weights=False), cache)
    assert counted == [[12, 12, 12]]


def test_lookahead_is_its_authors_formula() -> None:
    def gradient(weights: torch.Tensor, step: int) -> torch.Tensor:
        return weights * 3 + torch.tensor([1.0, -2.0, 0.5]) * (step % 3)

    ours = nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
    optimizer = build_optimizer(Hyperparameters(optimization="Lookahead+Adam"), [ours], learning_rate=0.1)
    fast = ours.detach().clone()
    slow, first, second = fast.clone(), torch.zeros(3), torch.zeros(3)
    for step in range(1, 18):
        ours.grad = gradient(ours.detach(), step)
        optimizer.step()

        grad = gradient(fast, step)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        fast = fast - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if step % 5 == 0:
            slow = slow + 0.5 * (fast - slow)
            fast = slow.clone()
        torch.testing.assert_close(ours.detach(), fast, atol=1e-5, rtol=1e-5)


def test_adam_alone_is_torchs() -> None:
    optimizer = build_optimizer(
        Hyperparameters(optimization="Adam"), [nn.Parameter(torch.zeros(1))], learning_rate=0.1
    )
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.1


def _clip_set(cache: ClipCache, store: ClipStore, *, clahe: bool = False, study_seed: int = 0) -> Any:
    return store.get(cache, clahe=clahe, study_seed=study_seed, augmentation=TINY.augmentation, device=CPU)


# --- Validation clips -------------------------------------------------------------------------------------


def test_validation_clips_are_tested_and_change_nothing_else(tmp_path: Path) -> None:
    # The same first three subjects; the fourth is all that the validation clips are.
    four, three = (
        write_cache(tmp_path / str(subjects), subjects=subjects, clips_of_class=2, size=16)
        for subjects in (4, 3)
    )
    given: dict[str, Any] = {"loss_weights": True, "dropout": 0.1}
    with_validation = assign(four, **given).model_copy(
        update={"validation_clips": tuple(c.clip_id for c in four.clips() if c.subject == "s3")}
    )
    found, expected = run(with_validation, four), run(assign(three, **given), three)
    assert found.provenance.clip_passes == expected.provenance.clip_passes == 8 * 2 * 12
    assert [epoch.loss for epoch in found.epochs] == [epoch.loss for epoch in expected.epochs]
    for epoch, other in zip(found.epochs, expected.epochs, strict=True):
        assert epoch.predicted == other.predicted
        np.testing.assert_allclose(epoch.probabilities, other.probabilities, atol=2e-6)
        assert (len(epoch.validation_predicted), other.validation_predicted) == (6, ())
    # They are predicted in their order, by the same network as the test clips.
    backwards = with_validation.model_copy(update={"validation_clips": with_validation.validation_clips[::-1]})
    for epoch, other in zip(found.epochs, run(backwards, four).epochs, strict=True):
        assert epoch.validation_predicted == other.validation_predicted[::-1]
    assert len(set(found.epochs[-1].validation_predicted)) > 1


def test_a_fold_that_chooses_the_epoch_on_a_subject_it_trains_on_or_tests_is_refused(cache: ClipCache) -> None:
    clip_set = _clip_set(cache, ClipStore())
    tested = [clip.clip_id for clip in cache.clips() if clip.subject == "s0"]
    for validated in (["s1/right/0"], tested[:1]):
        with pytest.raises(
            InvalidInput, match=f"subject {validated[0][:2]} chooses the epoch and is tested, tr"
        ):
            clip_set.split(tested, None, validated)
    with pytest.raises(InvalidInput, match="validation_clips: clip 'nobody' is not in the clip cache"):
        clip_set.split(tested, None, ["nobody"])
