"""Simulated workers do what can be worked out by hand; searches know what their delay lets them know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.delay.search_cost import SEQUENTIAL, VARIANTS, Found, Variant, found_after, run_search
from benchmarks.delay.spaces import SimulatedSpace
from benchmarks.delay.summary import loss_rows, loss_tables
from benchmarks.delay.waiting import Setting, measure
from benchmarks.delay.workers import HEARTBEAT_SECONDS, SECONDS_RATIO, Course, TrialToRun, run_study
from coordinator.optimizer import TrialRecord, suggest
from coordinator.pruning.replay import replay
from services.contracts import StudySpec, TrialState

RIGHT, WRONG = (2, 2), (0, 2)


def study(trials: int, delay: int | None, **given: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "cache": "c",
            "trials": trials,
            "pruning": [],
            "feedback_delay": delay,
            **given,
        }
    )


def run(
    spec: StudySpec, trials: Sequence[TrialToRun], workers: int, *, help_at_end: bool = True
) -> tuple[Course, list[Sequence[int]]]:
    """The course of a study, and the numbers of the trials that each trial knew."""
    knew: list[Sequence[int]] = []

    def suggest_given(number: int, known: Sequence[int]) -> TrialToRun:
        assert number == len(knew)
        knew.append(list(known))
        return trials[number]

    return run_study(spec, suggest_given, workers=workers, help_at_end=help_at_end), knew


def complete(*seconds: float) -> TrialToRun:
    return TrialToRun(folds=[RIGHT] * len(seconds), seconds=seconds)


@pytest.mark.parametrize("delay", [0, 1, 2, 5, None])
def test_one_worker_never_waits(delay: int | None) -> None:
    trials = [complete(5, 1), complete(1, 1), complete(20, 3), complete(2, 2)]
    course, _ = run(study(4, delay), trials, workers=1)
    assert (course.seconds, course.working) == (35, 35)
    assert (course.waiting, course.waiting_at_end, course.thrown_away) == (0, 0, 0)


def test_without_delay_and_help_one_trial_runs_at_a_time() -> None:
    trials = [complete(5, 1), complete(1, 1), complete(20, 3), complete(2, 2)]
    course, knew = run(study(4, 0, idle_workers_help=False), trials, workers=3)
    assert (course.most_open, course.seconds, course.suggested_at) == (1, 35, 31)
    assert (course.waiting, course.waiting_at_end) == (2 * 31, 2 * 4)
    assert knew == [[], [0], [0, 1], [0, 1, 2]]


def test_without_delay_idle_workers_share_the_folds_of_the_only_trial() -> None:
    trials = [complete(1, 1, 1, 1), complete(10, 10, 10), complete(4, 4)]
    course, _ = run(study(3, 0), trials, workers=2)
    # Two seconds; then twenty, of which one worker waits for the last ten; then four.
    assert (course.suggested_at, course.seconds) == (22, 26)
    assert (course.waiting, course.waiting_at_end) == (10, 0)
    course, _ = run(study(3, 0), trials, workers=2, help_at_end=False)
    assert (course.suggested_at, course.seconds, course.waiting_at_end) == (22, 30, 8)


def test_idle_workers_help_the_open_trial_of_lowest_number() -> None:
    # Trials 0 and 1 run; trial 1 ends after 2 s, and trial 2 must know trial 0.
    trials = [complete(4, 4, 4, 4), complete(1, 1), complete(2, 2)]
    course, knew = run(study(3, 1), trials, workers=2)
    # Folds 0, 1 of trial 0 end after 4 and 6 s, 2 and 3 after 8 and 10 s; one worker waits from 8 to 10 s.
    assert (course.suggested_at, course.waiting, course.seconds) == (10, 2, 12)
    assert knew == [[], [], [0]]


def test_a_worker_that_helps_stays_with_the_trial() -> None:
    trials = [complete(10), complete(1), complete(4, 4, 4, 4, 4, 4), complete(1), complete(20), complete(20)]
    course, _ = run(study(6, 3), trials, workers=3)
    # Trials 4 and 5 must know trial 0. At 2 s a worker starts to help trial 2. At 10 s it does not start trial
    # 5, but the last fold of trial 2; the trial's first worker starts trial 5 at 12 s.
    assert (course.suggested_at, course.waiting, course.seconds) == (10, 0, 32)


def test_without_a_delay_a_trial_knows_what_has_ended_when_it_is_suggested() -> None:
    trials = [complete(50), complete(3), complete(4), complete(5), complete(6), complete(7)]
    course, knew = run(study(6, None), trials, workers=2)
    # Two are kept ready: trial 4 is suggested when trial 2 is granted.
    assert knew == [[], [], [], [], [1], [1, 2]]
    assert (course.most_open, course.suggested_at, course.waiting, course.seconds) == (4, 7, 0, 50)
    assert course.waiting_at_end == 50 - 25


def test_folds_beyond_a_verdict_are_thrown_away_and_abandoned_with_the_next_heartbeat() -> None:
    bound = {"rule": "bound", "threshold": 1.0}
    pruned = TrialToRun(folds=[WRONG, RIGHT, RIGHT], seconds=[10, 4, 100])
    course, _ = run(study(2, 0, pruning=[bound]), [pruned, complete(60, 1, 1)], workers=2, help_at_end=False)
    assert list(course.pruned) == [0]
    assert course.pruned[0].fold == 0
    # One worker ran fold 1, and then fold 2 until a heartbeat. Trial 1 starts at 10 s on the other.
    assert course.thrown_away == 4 + HEARTBEAT_SECONDS
    assert (course.suggested_at, course.waiting) == (10, 0)
    assert course.working == 10 + 4 + HEARTBEAT_SECONDS + 62
    assert course.waiting_at_end == 72 - 34


def test_a_late_result_of_a_pruned_trial_ends_its_fold_before_the_heartbeat() -> None:
    bound = {"rule": "bound", "threshold": 1.0}
    pruned = TrialToRun(folds=[WRONG, RIGHT], seconds=[10, 15])
    course, _ = run(study(2, 0, pruning=[bound]), [pruned, complete(60, 60)], workers=2)
    assert (course.thrown_away, course.working) == (15, 10 + 15 + 120)


fold = st.sampled_from([RIGHT, RIGHT, RIGHT, (1, 2), WRONG])
seconds = st.sampled_from([1.0, 1.5, 2.0, 7.0, 40.0])
folds_of_trial = st.lists(st.tuples(fold, seconds), min_size=5, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    trials=st.lists(folds_of_trial, min_size=1, max_size=14),
    delay=st.integers(0, 6),
    workers=st.integers(1, 9),
    per_trial=st.integers(1, 3),
    helping=st.booleans(),
    at_end=st.booleans(),
    rules=st.sampled_from(
        [
            [{"rule": "median", "startup_trials": 1, "warmup_folds": 1}],
            [{"rule": "bound", "threshold": 0.8}, {"rule": "median", "startup_trials": 2, "warmup_folds": 0}],
            [{"rule": "paired", "startup_trials": 1, "warmup_folds": 2, "standard_errors": 0.5}],
        ]
    ),
)
def test_verdicts_follow_from_numbers_whatever_the_workers(
    trials: list[list[tuple[tuple[int, int], float]]],
    delay: int,
    workers: int,
    per_trial: int,
    helping: bool,
    at_end: bool,
    rules: list[dict[str, Any]],
) -> None:
    spec = study(
        len(trials),
        delay,
        protocol={"kind": "kfold", "k": 5},
        pruning=rules,
        workers_per_trial=per_trial,
        idle_workers_help=helping,
    )
    to_run = [TrialToRun(folds=[f for f, _ in trial], seconds=[s for _, s in trial]) for trial in trials]
    course, knew = run(spec, to_run, workers, help_at_end=at_end)
    replayed = replay(spec, [trial.folds for trial in to_run])
    assert course.pruned == replayed.pruned
    assert knew == [list(range(max(0, number - delay))) for number in range(len(trials))]
    assert course.most_open <= delay + 1
    counted = sum(sum(trial.seconds[:ran]) for trial, ran in zip(to_run, replayed.folds, strict=True))
    # Folds that a worker has not abandoned yet when the study ends are in neither.
    assert course.working - course.thrown_away == pytest.approx(counted)
    assert course.working + course.waiting + course.waiting_at_end <= workers * course.seconds + 1e-9


def test_shares_and_times_are_compared_with_a_study_without_delay() -> None:
    setting = Setting(protocol="10-fold", rule="bound", workers=4, trials=40, seed=0)
    usages = {(usage.delay, usage.helping): usage for usage in measure(setting)}
    assert usages[None, "on"].waiting == 0
    assert usages[8, "off"].waiting > usages[8, "on"].waiting
    assert usages[8, "off"].thrown_away == 0
    assert usages[0, "on"].thrown_away > usages[8, "on"].thrown_away
    assert usages[8, "on"].seconds < usages[8, "not at the end"].seconds


def test_a_search_with_a_delay_is_the_suggestions_of_what_each_trial_knows() -> None:
    trials, delay, seed = 18, 3, 4
    found = run_search(Variant(delay=delay), trials=trials, seed=seed)
    space = SimulatedSpace(seed)
    spec = study(trials, delay, seed=seed)
    for number in range(trials):
        history = [
            TrialRecord(
                number=other,
                state=TrialState.COMPLETE if other < number - delay else TrialState.RUNNING,
                parameters=found[other],
                value=space.accuracy(found[other], noise=True) if other < number - delay else None,
            )
            for other in range(number)
        ]
        assert found[number] == suggest(spec, history, number)


def test_one_worker_without_delay_searches_as_with_the_two_trials_that_are_kept_ready() -> None:
    alone = run_search(Variant(delay=None, workers=1), trials=20, seed=1)
    assert alone == run_search(Variant(delay=2), trials=20, seed=1)
    assert alone != run_search(Variant(delay=0), trials=20, seed=1)


def test_what_is_found_is_the_trial_of_highest_value_so_far() -> None:
    space = SimulatedSpace(3)
    drawn = run_search(Variant(delay=0, sampler="random"), trials=100, seed=3)
    found = found_after(drawn, seed=3)
    values = [space.accuracy(parameters, noise=True) for parameters in drawn]
    best = max(range(100), key=values.__getitem__)
    assert found[-1].best == values[best]
    assert found[-1].noiseless == space.accuracy(drawn[best], noise=False)
    assert found[9].best == max(values[:10])
    seconds = [space.seconds(parameters) for parameters in drawn]
    assert SECONDS_RATIO / 2 < max(seconds) / min(seconds) < SECONDS_RATIO


def test_losses_are_differences_to_the_search_in_the_same_space() -> None:
    def steps(best: float, length: int = 200) -> list[Found]:
        return [Found(best=best, noiseless=best - 0.01)] * length

    found = {variant: {0: steps(0.9), 7: steps(0.8)} for variant in VARIANTS}
    found[SEQUENTIAL] = {0: steps(0.95), 7: steps(0.83), 8: steps(1.0, 90)}
    rows = {(row["variant"], row["against"], row["trials"]): row for row in loss_rows(found)}
    lost = rows["d = 8", SEQUENTIAL.name, 200]
    assert (lost["points"], lost["noiseless_points"], lost["spaces"]) == (4.0, 4.0, 2)
    # Of 5 and 3 points the deviation is the square root of 2.
    assert lost["error"] == pytest.approx(1.0)
    assert rows["d = 0", "null, 4 workers", 100]["points"] == -4.0
    assert {trials for _, _, trials in rows} == {100, 200}


def test_a_single_space_has_a_loss_without_an_error() -> None:
    found = {variant: {0: [Found(best=0.9, noiseless=0.9)] * 100} for variant in VARIANTS}
    rows = loss_rows(found)
    assert {row["error"] for row in rows} == {None}
    table = next(iter(loss_tables(rows)))
    assert "+0.00" in list(table.columns[1].cells)
