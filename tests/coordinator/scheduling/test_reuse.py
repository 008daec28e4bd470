"""Folds that an equal trial has run are counted from there: the same trials with fewer leases."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from cli.terminal.tables import folds_table
from coordinator.scheduling import claims, failures
from services.contracts import ClaimRequest, Failure, FoldAssignment, StudyState, TrialState, WorkerInfo
from services.errors import LeaseSuperseded, StudyOver
from services.seeds import derive_seed
from tests.harness.coordinator_harness import Harness, SteppedLeader, key_of
from tests.harness.optuna_projection import load_projected
from tests.harness.tiny_cache import FINGERPRINT

SPACE = {"temporal_size": [1, 3, 5], "clahe": [True, False]}
A = {"temporal_size": 1, "clahe": True}
B = {"temporal_size": 3, "clahe": True}

SCANS_OF_RESULTS = text(
    "SELECT seq_scan, coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables"
    " WHERE schemaname = 'foldwise' AND relname = 'results'"
)
"""Of the connection; what is not yet in the server's statistics."""

Wrong = Callable[[FoldAssignment], int]


def create(harness: Harness, *enqueue: dict[str, Any], **spec: Any) -> None:
    """A study of exactly these trials, all of them ready at once."""
    harness.leader = SteppedLeader(harness.engine, replace(harness.settings, ask_ahead=len(enqueue)))
    harness.create(space=SPACE, enqueue=enqueue, trials=len(enqueue), feedback_delay=None, **spec)


def by_parameters(assignment: FoldAssignment) -> int:
    """Wrong clips as a deterministic training gives them: the same for equal parameters and folds."""
    parameters = assignment.hyperparameters
    return derive_seed(parameters.temporal_size, parameters.clahe, assignment.fold) % 3


def run(
    harness: Harness, assignment: FoldAssignment | None, wrong: Wrong = by_parameters
) -> list[tuple[int, int]]:
    """Run folds until no other follows; (trial, fold) of each."""
    ran = []
    while assignment is not None:
        ran.append((assignment.trial, assignment.fold))
        assignment = harness.report(assignment, wrong(assignment)).next
    return ran


def run_some(harness: Harness, assignment: FoldAssignment, folds: int) -> FoldAssignment:
    """Run so many folds without a mistake; the one that follows."""
    for _ in range(folds):
        following = harness.report(assignment).next
        assert following is not None
        assignment = following
    return assignment


def of_trial(number: int, folds: int = 5) -> list[tuple[int, int]]:
    return [(number, fold) for fold in range(folds)]


def test_the_folds_of_an_equal_trial_are_counted_without_a_lease(harness: Harness) -> None:
    create(harness, A, A, B, A)
    assert run(harness, harness.must_claim()) == of_trial(0) + of_trial(2)
    assert harness.leases() == 10
    first = harness.trial(0)
    for number in (1, 3):
        again = harness.trial(number)
        assert again.model_copy(update={"number": 0}) == first
        assert harness.confusion(number) == harness.confusion(0)
        folds = harness.folds(number)
        assert {(fold.reused_from, fold.worker, fold.term) for fold in folds} == {(0, None, 0)}
        assert [(f.correct, f.best_epoch) for f in folds] == [
            (f.correct, f.best_epoch) for f in harness.folds(0)
        ]
    assert {fold.reused_from for fold in harness.folds(0)} == {None}
    study = harness.study()
    assert (study.state, study.folds_done) == (StudyState.COMPLETE, 20), "its last trial had no worker"
    assert folds_table(harness.folds(1)).columns[-1].header == "reused from"
    assert folds_table(harness.folds(0)).columns[-1].header == "worker"


@pytest.mark.usefixtures("projection")
def test_optuna_hears_of_a_trial_that_nobody_ran(harness: Harness) -> None:
    create(harness, A, A)
    run(harness, harness.must_claim())
    harness.leader.round()
    ran, reused = load_projected(harness.settings.database_url, "s").trials
    assert reused.state.name == "COMPLETE"
    assert (reused.params, reused.value) == (ran.params, ran.value)
    assert reused.intermediate_values == ran.intermediate_values


def test_a_claim_counts_equal_folds_too_and_goes_on_with_the_next_trial(harness: Harness) -> None:
    create(harness, A, A, B)
    harness.report(run_some(harness, harness.must_claim(), 4), more=False)
    assert (harness.trial(0).state, harness.trial(1).state) == (TrialState.COMPLETE, TrialState.READY)
    claimed = harness.must_claim(key="k" * 20)
    assert (claimed.trial, claimed.fold) == (2, 0)
    assert harness.claim(key="k" * 20) == claimed
    assert harness.trial(1).state == TrialState.COMPLETE


def test_a_study_completes_when_what_is_left_of_it_is_all_reused(harness: Harness) -> None:
    create(harness, A, A, A)
    harness.report(run_some(harness, harness.must_claim(), 4), more=False)
    assert harness.study().state == StudyState.RUNNING
    assert harness.claim() is None
    assert harness.study().state == StudyState.COMPLETE
    with pytest.raises(StudyOver):
        harness.claim(study="s")


def test_an_equal_trial_is_pruned_at_the_same_fold_by_the_same_numbers(harness: Harness) -> None:
    create(harness, A, A, B, pruning=[{"rule": "bound", "threshold": 0.8}])
    assert run(harness, harness.must_claim(), lambda fold: 2 if fold.trial == 0 else 0) == [
        *of_trial(0, folds=2),
        *of_trial(2),
    ]
    first, again = harness.trial(0), harness.trial(1)
    assert (again.state, again.folds_done) == (TrialState.PRUNED, 2)
    assert (again.pruned, again.end_reason) == (first.pruned, first.end_reason)


def test_what_a_failed_trial_had_finished_is_reused_and_the_rest_is_run(harness: Harness) -> None:
    create(harness, A, A)
    third = run_some(harness, harness.must_claim(), 2)
    for _ in range(2):
        with harness.sessions.begin() as session:
            failure = Failure(kind="trial", message="out of memory")
            failures.fail(session, key_of(third.lease), failure)
        third = harness.must_claim()
    assert harness.trial(0).state == TrialState.FAILED
    assert (third.trial, third.fold) == (1, 2)
    run(harness, third)
    assert [fold.reused_from for fold in harness.folds(1)] == [0, 0, None, None, None]
    assert harness.trial(1).state == TrialState.COMPLETE


def test_two_equal_trials_at_once_take_from_each_other_what_is_there(harness: Harness) -> None:
    create(harness, A, A, B)
    ahead, behind = harness.must_claim("w1"), harness.must_claim("w2")
    ahead = run_some(harness, ahead, 3)
    verdict = harness.report(behind)
    assert verdict.next is not None
    assert (verdict.decision, verdict.next.trial, verdict.next.fold) == ("continue", 1, 3)
    assert [fold.reused_from for fold in harness.folds(1)] == [None, 0, 0, None, None]

    harness.report(run_some(harness, ahead, 1), more=False)
    verdict = harness.report(verdict.next)
    assert (verdict.decision, verdict.trial_accuracy) == ("complete", 1.0), "the last fold was reused"
    assert verdict.next is not None
    assert verdict.next.trial == 2
    assert harness.trial(1).value == 1.0


def test_the_verdict_that_reuse_led_to_is_the_stored_one(harness: Harness) -> None:
    create(harness, A, A)
    ahead, behind = harness.must_claim("w1"), harness.must_claim("w2")
    run(harness, ahead, lambda _: 0)
    verdict = harness.report(behind)
    assert (verdict.decision, verdict.next) == ("complete", None)
    assert harness.report(behind) == verdict


def test_a_late_result_of_a_fold_counted_by_reuse_is_fenced(harness: Harness) -> None:
    create(harness, A, A)
    first, slow = harness.must_claim("w1"), harness.must_claim("w2")
    harness.report(first)
    harness.expire(slow)
    taken = harness.must_claim("w3")
    assert (taken.trial, taken.fold) == (slow.trial, 1)
    with pytest.raises(LeaseSuperseded, match="already counted"):
        harness.report(slow, wrong=1)
    assert harness.beat(slow, 1) == "abandon"
    assert harness.folds(1)[0].worker is None, "w2 held it and did not run it"


def test_pausing_stops_reuse_too(harness: Harness) -> None:
    create(harness, A, A)
    ahead, behind = harness.must_claim("w1"), harness.must_claim("w2")
    run(harness, ahead, lambda _: 0)
    with harness.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE foldwise.studies SET state = 'paused'")
    assert harness.report(behind).next is None
    assert harness.trial(1).folds_done == 1


def test_a_trial_without_an_equal_looks_at_no_results(harness: Harness) -> None:
    # PostgreSQL may keep a plan from when a table was empty; what looked through all results became dearer
    # with each.
    create(harness, A, B)
    run_some(harness, harness.must_claim("w1"), 3)
    # The first claim after the first result finds out that the study's plan is settled.
    harness.must_claim("w2")
    info = WorkerInfo(id="worker-w2", name="w2", device="cpu")
    request = ClaimRequest(worker=info, caches=(FINGERPRINT,))
    with harness.sessions.begin() as session:
        before = session.execute(SCANS_OF_RESULTS).one()
        assignment = claims.claim(session, request, "key", harness.settings, threads=1)
        after = session.execute(SCANS_OF_RESULTS).one()
    assert assignment is not None
    assert assignment.trial == 1
    assert after == before


def test_another_study_or_the_switch_turned_off_runs_equal_folds_again(harness: Harness) -> None:
    create(harness, A)
    run(harness, harness.must_claim())
    create(harness, A, A, name="t", economies={"reuse_folds": False})
    assert run(harness, harness.must_claim(study="t")) == of_trial(0) + of_trial(1)
    assert {fold.reused_from for fold in harness.folds(1, "t")} == {None}


@pytest.mark.parametrize(
    ("seed", "fold_order"),
    [(0, "fixed"), pytest.param(1, "fixed", marks=pytest.mark.long), (2, "hardest_first")],
)
def test_reuse_changes_no_trial_and_runs_each_fold_once(harness: Harness, seed: int, fold_order: str) -> None:
    rng = random.Random(seed)
    wanted = [{"temporal_size": rng.choice([1, 3, 5]), "clahe": rng.random() < 0.5} for _ in range(12)]
    rules = [
        {"rule": "bound", "threshold": 0.3},
        {"rule": "median", "startup_trials": 2, "warmup_folds": 1},
    ]
    ran = {}
    for name, reuse in (("s", True), ("t", False)):
        create(
            harness, *wanted, name=name, pruning=rules, economies={"reuse_folds": reuse}, fold_order=fold_order
        )
        ran[name] = run(harness, harness.must_claim(study=name))
        assert harness.study(name).state == StudyState.COMPLETE
    for number in range(12):
        assert harness.trial(number, "s") == harness.trial(number, "t")
        assert harness.confusion(number, "s") == harness.confusion(number, "t")
    asked = {(tuple(wanted[trial].values()), fold) for trial, fold in ran["t"]}
    assert len(ran["s"]) == len(asked) < len(ran["t"])


def test_workers_that_claim_at_once_count_nothing_twice_and_do_not_block_each_other(harness: Harness) -> None:
    names = [f"s{i}" for i in range(3)]
    for name in names:
        create(harness, A, A, A, A, B, name=name)
        harness.report(run_some(harness, harness.must_claim(study=name), 4), more=False)
    together = threading.Barrier(6)

    def work(worker: str) -> list[tuple[str, int, int]]:
        together.wait(30)
        ran = []
        # A claim that only counted equal folds of one study gets nothing; the next one sees the others.
        for _ in range(len(names) + 1):
            assignment = harness.claim(worker)
            while assignment is not None:
                ran.append((assignment.study, assignment.trial, assignment.fold))
                assignment = harness.report(assignment).next
        return ran

    with ThreadPoolExecutor(6) as pool:
        ran = [fold for done in pool.map(work, [f"w{i}" for i in range(6)]) for fold in done]
    assert sorted(ran) == [(name, 4, fold) for name in names for fold in range(5)]
    for name in names:
        study = harness.study(name)
        assert (study.state, study.folds_done) == (StudyState.COMPLETE, 25)
