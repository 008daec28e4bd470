"""What the pages show, worked out from rows: forecasts, charts, matrices, pictures of clips."""

from __future__ import annotations

import io
import random
import statistics
from array import array
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coordinator.pages import charts, clips, trial_view
from coordinator.pages.forecast import time_left
from coordinator.pages.formats import duration, percent
from coordinator.pages.parameters import parameter_panels
from coordinator.pages.study_view import convergence, summarize
from coordinator.store.fold_map import DONE, MappedTrial
from coordinator.store.trial_results import FoldOutcome
from services import scores
from services.contracts import FoldState, PruneDecision, StudySpec, StudyState, TrialState
from tests.harness.tiny_cache import write_tiny_cache

START = datetime(2026, 1, 1, tzinfo=UTC)
FOLDS = 10
SPEC = StudySpec.model_validate(
    {
        "name": "s",
        "cache": "tiny",
        "trials": 100,
        "space": {"clahe": [True, False], "temporal_size": [1, 3], "dropout": {"low": 0.0, "high": 1.0}},
        "pruning": [{"rule": "bound", "threshold": 0.6}, {"rule": "median"}],
    }
)


def every(seconds: float, folds: int, noise: float = 0.0) -> list[datetime]:
    rng = random.Random(0)
    at, counted = START, [START]
    for _ in range(folds - 1):
        at += timedelta(seconds=seconds + rng.uniform(-noise, noise))
        counted.append(at)
    return counted


def trial(
    number: int, correct: int, state: TrialState = TrialState.COMPLETE, folds_done: int = FOLDS
) -> MappedTrial:
    """Of folds of ten clips."""
    complete = state == TrialState.COMPLETE
    pruned = None
    if state == TrialState.PRUNED:
        pruned = PruneDecision(rule="median", fold=folds_done - 1, numbers={})
    temporal_size = 3 if number % 3 == 0 else 1
    return MappedTrial(
        number=number,
        state=state,
        parameters={
            "clahe": number % 2 == 0,
            "temporal_size": temporal_size,
            "dropout": number / 100,
        },
        value=correct / (10 * folds_done) if complete else None,
        uar=None,
        uf1=None,
        pruned=pruned,
        end_reason=None,
        seconds=None,
        folds_done=folds_done,
        correct=correct,
        clips=10 * folds_done,
        folds_beyond_verdict=0,
        cells=array("H", [DONE + 1] * folds_done + [0] * (FOLDS - folds_done)),
    )


def test_equal_folds_and_trials_leave_no_doubt_about_the_time() -> None:
    left = time_left(every(2.0, 50), [10] * 20, remaining_trials=5, remaining_folds=4)
    assert left is not None
    assert left.middle == pytest.approx(54 * 2.0)
    assert left.low == pytest.approx(108)
    assert left.high == pytest.approx(108)


def test_the_range_holds_the_truth_eight_times_in_ten() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(400):
        # Half of the trials are pruned after three of ten folds; pauses are exponential.
        def folds() -> int:
            return 10 if rng.random() < 0.5 else 3

        at, counted = START, []
        for _ in range(120):
            at += timedelta(seconds=rng.expovariate(1 / 5.0))
            counted.append(at)
        left = time_left(counted, [folds() for _ in range(30)], remaining_trials=40, remaining_folds=0)
        assert left is not None
        truth = sum(rng.expovariate(1 / 5.0) for _ in range(sum(folds() for _ in range(40))))
        held += left.low <= truth <= left.high
    assert 0.74 <= held / 400 <= 0.88


def test_nothing_is_foretold_from_nothing() -> None:
    assert time_left([], [10], 5, 0) is None
    assert time_left(every(1.0, 2), [10], 5, 0) is None
    assert time_left(every(1.0, 50), [], 5, 3) is None
    # The last trials are under way: what is left of them is known.
    assert time_left(every(1.0, 50), [], 0, 3) is not None


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 8))
def test_an_axis_holds_its_values_between_few_round_ticks(low: float, span: float, steps: int) -> None:
    axis = charts.nice_axis(low, low + span, steps=steps)
    unseen = 1e-6 * (1 + axis.high - axis.low + abs(low))
    assert axis.low - unseen <= low <= low + span <= axis.high + unseen
    assert 2 <= len(axis.ticks) <= steps + 3


def test_the_standing_counts_what_pruning_spared() -> None:
    trials = [
        trial(0, 70),
        trial(1, 20, TrialState.PRUNED, folds_done=4),
        trial(2, 80),
        trial(3, 80),
        trial(4, 10, TrialState.RUNNING, folds_done=2),
    ]
    now = summarize(SPEC, StudyState.RUNNING, FOLDS, trials, every(1.0, 36))
    assert (now.ended, now.budget, now.folds_counted, now.folds_saved) == (4, 100, 36, 6)
    assert now.pruned_by == {"median": 1}
    assert now.saved_share == pytest.approx(6 / 42)
    assert now.best is not None
    assert now.best.number == 2, "the earliest of equal ones"
    assert now.left is not None
    # 95 trials of 8.5 folds, and 8 folds of the one under way.
    assert now.left.middle == pytest.approx(95 * 8.5 + 8)
    assert summarize(SPEC, StudyState.PAUSED, FOLDS, trials, every(1.0, 36)).left is None
    none_complete = [trial(0, 10, TrialState.PRUNED, 4), trial(1, 25, TrialState.PRUNED, 4)]
    furthest = summarize(SPEC, StudyState.STOPPED, FOLDS, none_complete, []).best
    assert furthest is not None
    assert furthest.number == 1


def test_each_trial_is_a_cross_and_the_best_a_line() -> None:
    trials = [trial(0, 70), trial(1, 20, TrialState.PRUNED, folds_done=4), trial(2, 80), trial(3, 75)]
    chart = convergence(SPEC, trials, chance=0.1)
    assert chart is not None
    assert chart.count("<use") == 4
    assert "pruning threshold 60.00 %" in chart
    assert 'aria-label="Accuracy of 4 trials by number; best complete trial so far: 80.00 %"' in chart
    assert convergence(SPEC, [], chance=0.1) is None


def test_parameters_are_told_with_the_means_of_their_options() -> None:
    few = parameter_panels(-1, SPEC, [trial(n, 50 + n % 7 + 10 * (n % 2 == 0)) for n in range(10)])
    assert (few["importance"], few["complete"], len(few["slices"])) == ([], 10, 3)
    trials = [trial(n, 50 + n % 7 + 20 * (n % 2 == 0)) for n in range(60)]
    many = parameter_panels(-2, SPEC, trials)
    assert many["importance"][0][0] == "clahe"
    assert sum(share for _, share in many["importance"]) == pytest.approx(1)
    by_clahe = many["slices"][0]
    assert by_clahe.title == "CLAHE"
    mean = statistics.fmean(t.value or 0 for t in trials if t.parameters["clahe"])
    assert f"true {percent(mean)} in 30 trials" in by_clahe.chart
    assert parameter_panels(-3, SPEC, [])["slices"] == []


def outcome(index: int, labels: tuple[int, ...], epochs: list[tuple[int, ...]]) -> FoldOutcome:
    best, correct = scores.best_epoch(labels, epochs)
    made = [
        {
            "loss": 1.0 / (number + 1),
            "predicted": list(predicted),
            "probabilities": [[0.7 if c == p else 0.15 for c in range(3)] for p in predicted],
        }
        for number, predicted in enumerate(epochs)
    ]
    return FoldOutcome(
        index=index,
        name=f"S{index}",
        term=1,
        state=FoldState.DONE,
        clip_ids=tuple(f"S{index}_{place}" for place in range(len(labels))),
        labels=labels,
        worker="w",
        reused_from=None,
        result={"epochs": made},
        best_epoch=best,
        correct=correct,
        beyond_verdict=False,
        validation_labels=(),
    )


def test_a_trial_s_matrix_folds_and_hardest_clips_come_from_its_best_epochs() -> None:
    outcomes = [outcome(0, (0, 1, 2), [(0, 0, 0), (0, 1, 1)]), outcome(1, (0, 0), [(0, 0), (1, 1)])]
    # A fold that a helper ran after the ones on which a rule ended the trial.
    outcomes.append(replace(outcome(2, (2,), [(0,)]), beyond_verdict=True))
    counts = np.array([[3, 0, 0], [0, 1, 0], [0, 1, 0]])
    by_count, by_true, by_predicted = trial_view.matrices(counts)
    assert [[cell.text for cell in row] for row in by_count.rows] == [
        ["3", "0", "0"],
        ["0", "1", "0"],
        ["0", "1", "0"],
    ]
    assert by_true.rows[2][1].text == "100"
    assert [cell.text for cell in by_predicted.rows[2]] == ["0", "50", "0"]
    assert (by_predicted.rows[2][1].shade, by_true.rows[0][0].shade) == (5, 10)
    lines = trial_view.fold_lines(outcomes, {"S0_0": "anna", "S0_2": "anna", "S0_1": "bert"})
    assert [(line.accuracy, line.subjects) for line in lines[:2]] == [(2 / 3, ("anna", "bert")), (1.0, ())]
    assert lines[0].curves is not None
    assert "2 of 2; loss 1 in the first epoch, 0.5 in the last" in lines[0].curves
    hardest = trial_view.hardest_clips(("a", "b", "c"), outcomes, 2)
    assert [(clip.clip_id, clip.true, clip.predicted, clip.correct) for clip in hardest] == [
        ("S0_2", "c", "b", False),
        ("S0_0", "a", "a", True),
    ]


def test_a_clip_moves_through_all_its_frames_or_stands_still(tmp_path: Path) -> None:
    manifest = write_tiny_cache(tmp_path)
    cache = clips.load_cache(tmp_path, manifest.dataset, manifest.fingerprint)
    assert clips.clip_indices(cache)["S000_happy"] == 1
    with Image.open(io.BytesIO(clips.clip_picture(cache, 1, still=False))) as moving:
        assert (moving.format, getattr(moving, "n_frames", 1), moving.size) == ("WEBP", 2, (112, 112))
    with Image.open(io.BytesIO(clips.clip_picture(cache, 1, still=True))) as still:
        assert getattr(still, "n_frames", 1) == 1
        shown = np.asarray(still.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=float)
    assert np.abs(shown - cache.frames(clahe=False)[1][1]).mean() < 25


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5960, "99 min"), (5999, "1 h 40 min"), (200_000, "2 d 7 h")],
)
def test_a_time_has_two_units_at_most(seconds: float, words: str) -> None:
    assert duration(seconds) == words
