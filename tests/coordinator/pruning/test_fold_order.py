"""Folds in the order that a study has learnt, through claims and reports on a real PostgreSQL."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import text

from coordinator.pruning.fold_order import LEARNT_FROM, hardest_first, order_of
from coordinator.pruning.replay import replay
from coordinator.scheduling import leases, reports
from coordinator.scheduling.trials import add_trial
from coordinator.store import views
from coordinator.store.studies import get_study
from coordinator.studies import life
from services.contracts import FoldAssignment, StudySpec, StudyState, TrialState
from tests.harness.coordinator_harness import Harness, key_of, wait_until
from tests.harness.optuna_projection import load_projected

FOLDS, CLIPS = 5, 2
WRONG = {3: 2, 1: 1}
"""Wrong clips of every trial, by fold, so that the order that is learnt is this:"""

HARDEST = [3, 1, 0, 2, 4]

Wrong = Callable[[FoldAssignment], int]


def create(harness: Harness, trials: int, **spec: Any) -> None:
    """A study whose trials are all ready, each with parameters of its own."""
    wanted = StudySpec.model_validate(
        {
            "name": "s",
            "cache": "tiny",
            "training": {"frames": 2, "frame_size": 16},
            "space": {"dropout": {"low": 0.0, "high": 0.5}},
            "pruning": [],
            "fold_order": "hardest_first",
            # Whatever has ended is known, in the order in which it ended.
            "feedback_delay": None,
            "trials": trials,
            **spec,
        }
    )
    with harness.sessions.begin() as session:
        study = life.create(session, wanted, harness.settings.cache_root)
        for number in range(trials):
            add_trial(session, study, {"dropout": number / 100}, number)


def by_fold(assignment: FoldAssignment) -> int:
    return WRONG.get(assignment.fold, 0)


def run(harness: Harness, assignment: FoldAssignment | None, wrong: Wrong = by_fold) -> list[tuple[int, int]]:
    """Run folds until no other follows; (trial, fold) of each."""
    ran = []
    while assignment is not None:
        ran.append((assignment.trial, assignment.fold))
        assignment = harness.report(assignment, wrong(assignment)).next
    return ran


def run_to_the_last(harness: Harness, worker: str, wrong: Wrong = by_fold) -> FoldAssignment:
    """Run the next trial but for its last fold."""
    assignment = harness.must_claim(worker)
    for _ in range(FOLDS - 1):
        following = harness.report(assignment, wrong(assignment)).next
        assert following is not None
        assignment = following
    return assignment


def run_one(harness: Harness, worker: str, wrong: Wrong = by_fold) -> None:
    """Run the next trial and no other."""
    last = run_to_the_last(harness, worker, wrong)
    assert harness.report(last, wrong(last), more=False).decision == "complete"


@pytest.mark.usefixtures("projection")
def test_once_enough_trials_are_complete_the_others_run_the_hardest_folds_first(harness: Harness) -> None:
    create(harness, trials=7)
    assert harness.study().fold_order is None
    by_index = [(trial, fold) for trial in range(LEARNT_FROM) for fold in range(FOLDS)]
    learnt = [(trial, fold) for trial in (5, 6) for fold in HARDEST]
    assert run(harness, harness.must_claim()) == by_index + learnt
    study = harness.study()
    assert study.state == StudyState.COMPLETE
    assert study.fold_order == tuple(HARDEST)
    assert [harness.trial(number).learnt_order for number in range(7)] == [False] * 5 + [True] * 2

    harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    assert projected.trials[4].intermediate_values == {1: 2 / 2, 2: 3 / 4, 3: 5 / 6, 4: 5 / 8, 5: 7 / 10}
    assert projected.trials[5].intermediate_values == {1: 0 / 2, 2: 1 / 4, 3: 3 / 6, 4: 5 / 8, 5: 7 / 10}


def test_a_trial_under_way_keeps_its_order_and_one_that_waits_takes_the_learnt_one(harness: Harness) -> None:
    create(harness, trials=8)
    under_way = harness.report(harness.must_claim("w1"), 0).next
    assert under_way is not None
    for _ in range(LEARNT_FROM):
        run_one(harness, "w2")
    assert harness.study().fold_order == tuple(HARDEST)
    first = harness.must_claim("w2")
    with harness.sessions.begin() as session:
        leases.release(session, key_of(first.lease))
    assert (first.fold, harness.must_claim("w3").fold) == (HARDEST[0], HARDEST[0])
    assert run(harness, under_way)[: FOLDS - 1] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert not harness.trial(0).learnt_order


def test_no_trial_is_pruned_before_the_order_is_learnt(harness: Harness) -> None:
    create(harness, trials=7, pruning=[{"rule": "bound", "threshold": 1.0}])
    ran = run(harness, harness.must_claim())
    assert ran[LEARNT_FROM * FOLDS :] == [(5, 3), (6, 3)]
    states = [harness.trial(number).state for number in range(7)]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED] * 2
    decision = harness.trial(6).pruned
    assert decision is not None
    assert decision.fold == 3


WITH_MEDIAN = [
    {"rule": "paired", "startup_trials": 2, "warmup_folds": 2, "standard_errors": 1.0},
    {"rule": "bound", "threshold": 0.4},
    {"rule": "median", "startup_trials": 3, "warmup_folds": 2},
]
WITH_BEST = [{"rule": "forgiving", "startup_trials": 2}, {"rule": "wilcoxon", "p_threshold": 0.3}]


@pytest.mark.parametrize("rules", [WITH_MEDIAN, WITH_BEST], ids=["median", "best"])
@pytest.mark.parametrize(("order", "delay"), [("fixed", None), ("hardest_first", None), ("fixed", 2)])
def test_trials_end_as_in_a_replay_of_their_fold_table(
    harness: Harness, order: str, delay: int | None, rules: list[dict[str, Any]]
) -> None:
    rng = random.Random(11)
    trials = 16
    table = []
    for _ in range(trials):
        skill = rng.random()
        table.append([sum(rng.random() > skill for _ in range(CLIPS)) for _ in range(FOLDS)])
    create(harness, trials, fold_order=order, pruning=rules, feedback_delay=delay)
    run(harness, harness.must_claim(), lambda assignment: table[assignment.trial][assignment.fold])
    study = harness.study()
    expected = replay(study.spec, [[(CLIPS - wrong, CLIPS) for wrong in folds] for folds in table])
    there = [harness.trial(number) for number in range(trials)]
    assert [trial.folds_done for trial in there] == expected.folds
    assert {trial.number: trial.pruned for trial in there if trial.pruned} == expected.pruned
    assert {decision.rule for decision in expected.pruned.values()} == {rule["rule"] for rule in rules}
    assert study.best is not None
    assert study.best.number == expected.named


def test_trials_that_end_together_learn_one_order(harness: Harness) -> None:
    workers = LEARNT_FROM + 1
    create(harness, trials=workers + 1)

    def wrong(assignment: FoldAssignment) -> int:
        return (assignment.trial + assignment.fold) % 3

    last = [run_to_the_last(harness, f"w{i}", wrong) for i in range(workers)]
    together = threading.Barrier(workers)

    def end(assignment: FoldAssignment) -> str:
        together.wait(30)
        return harness.report(assignment, wrong(assignment), more=False).decision

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(end, last)) == ["complete"] * workers
    folds = [[(CLIPS - (trial + fold) % 3, CLIPS) for fold in range(FOLDS)] for trial in range(workers)]
    learnt = harness.study().fold_order
    assert learnt in [tuple(hardest_first(five)) for five in combinations(folds, LEARNT_FROM)]
    assert [fold for _, fold in run(harness, harness.must_claim(), wrong)] == list(learnt)
    assert harness.study().fold_order == learnt


def test_an_order_learnt_in_an_unfinished_transaction_is_not_learnt_again(harness: Harness) -> None:
    create(harness, trials=6)

    def wrong(assignment: FoldAssignment) -> int:
        # Learnt from trial 0 in place of trial 5, fold 4 would follow fold 1.
        return 2 if assignment.fold == (4 if assignment.trial == 0 else 1) else 0

    late = run_to_the_last(harness, "w0", wrong)
    for _ in range(LEARNT_FROM - 1):
        run_one(harness, "w1", wrong)
    fifth = run_to_the_last(harness, "w1", wrong)
    with ThreadPoolExecutor(1) as pool:
        with harness.sessions.begin() as session:
            result = harness.result(session, fifth, wrong(fifth))
            reports.report(session, key_of(fifth.lease), result, harness.settings, more=False)
            reporting = pool.submit(harness.report, late, wrong(late), more=False)
            wait_until(lambda: _waits_for_a_lock(harness))
        assert reporting.result(30).decision == "complete"
    assert harness.study().fold_order == (1, 0, 2, 3, 4)


def test_a_study_that_was_read_before_it_had_learnt_is_read_again(harness: Harness) -> None:
    create(harness, trials=6)
    with harness.sessions() as session:
        study = get_study(session, "s")
        assert study.fold_order is None
        for _ in range(LEARNT_FROM):
            run_one(harness, "w1")
        harness.must_claim("w1")
        trial = views.get_trial(session, study, 5)
        assert list(order_of(session, study, trial)) == HARDEST


def _waits_for_a_lock(harness: Harness) -> bool:
    with harness.engine.connect() as connection:
        waiting = connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    return bool(waiting)
