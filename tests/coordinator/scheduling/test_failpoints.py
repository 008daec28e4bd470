"""A coordinator that dies at any statement or commit of anything it does, and is asked again.

Each case is run once undisturbed and then once for every point at which it can die. Afterwards the tables must
say the same, but for ids, secrets and times.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, text

from coordinator.scheduling import failures, leases
from coordinator.scheduling.trials import add_trial
from coordinator.studies import life
from services.contracts import BoundRule, Failure, FoldAssignment, StudySpec
from tests.harness.coordinator_harness import Harness, SteppedLeader, key_of
from tests.harness.failpoints import crash_at
from tests.harness.optuna_projection import load_projected

Case = Callable[[Harness, str], Callable[[], object]]
"""Prepares a study of this name, and gives the call that is to die."""

TABLES = {
    "studies": "SELECT state, reason FROM foldwise.studies WHERE name = :name",
    "trials": "SELECT number, trials.state, value, pruned::text, end_reason FROM foldwise.trials"
    " JOIN foldwise.studies ON studies.id = study_id WHERE name = :name ORDER BY number",
    "folds": "SELECT number, fold, folds.state, term FROM foldwise.folds"
    " JOIN foldwise.trials ON trials.id = trial_id"
    " JOIN foldwise.studies ON studies.id = study_id WHERE name = :name ORDER BY number, fold",
    "leases": "SELECT number, fold, term, worker_id, outcome, message FROM foldwise.leases"
    " JOIN foldwise.trials ON trials.id = trial_id"
    " JOIN foldwise.studies ON studies.id = study_id WHERE name = :name ORDER BY number, fold, term",
    "results": "SELECT number, fold, correct, results.clips, verdict::text FROM foldwise.results"
    " JOIN foldwise.trials ON trials.id = trial_id"
    " JOIN foldwise.studies ON studies.id = study_id WHERE name = :name ORDER BY number, fold",
    "outbox": "SELECT DISTINCT number FROM foldwise.outbox JOIN foldwise.trials ON trials.id = trial_id"
    " JOIN foldwise.studies ON studies.id = study_id WHERE name = :name ORDER BY number",
}


def _begin(harness: Harness, name: str, *, trials: int = 2, ready: int = 1, **spec: Any) -> None:
    """A study with trials that are ready; Optuna has none of them yet."""
    given = {
        "space": {"temporal_size": [3]},
        "training": {"frames": 2, "frame_size": 16},
        "pruning": [],
        **spec,
    }
    with harness.sessions.begin() as session:
        study = life.create(
            session, StudySpec(name=name, cache="tiny", trials=trials, **given), harness.settings.cache_root
        )
        for number in range(ready):
            add_trial(session, study, {"temporal_size": 3}, number)


def _run_folds(harness: Harness, name: str, folds: int, wrong: int = 0) -> FoldAssignment:
    """The lease that follows after so many folds."""
    assignment = harness.must_claim(study=name)
    for _ in range(folds):
        following = harness.report(assignment, wrong=wrong).next
        assert following is not None
        assignment = following
    return assignment


def claim(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name)
    key = str(uuid.uuid4())
    return lambda: harness.claim("w1", key, study=name)


def claim_while_holding_another_fold(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, ready=2)
    harness.must_claim("w1", study=name)
    key = str(uuid.uuid4())
    return lambda: harness.claim("w1", key, study=name)


def claim_of_a_trial_whose_folds_are_reused(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, ready=2)
    harness.report(_run_folds(harness, name, 4), more=False)
    key = str(uuid.uuid4())
    return lambda: harness.claim("w2", key, study=name)


def report_that_goes_on(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name)
    assignment = _run_folds(harness, name, 1)
    return lambda: harness.report(assignment)


def report_that_completes_a_trial(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, ready=2, economies={"reuse_folds": False})
    assignment = _run_folds(harness, name, 4)
    return lambda: harness.report(assignment)


def report_that_completes_the_study(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, trials=1)
    assignment = _run_folds(harness, name, 4)
    return lambda: harness.report(assignment)


def report_that_prunes(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, pruning=[BoundRule(threshold=0.9)])
    assignment = harness.must_claim(study=name)
    return lambda: harness.report(assignment, wrong=2)


def heartbeat(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name)
    assignment = harness.must_claim(study=name)
    return lambda: harness.beat(assignment, 7)


def release(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name)
    assignment = harness.must_claim(study=name)

    def act() -> None:
        with harness.sessions.begin() as session:
            leases.release(session, key_of(assignment.lease))

    return act


def second_failure_of_a_trial(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name)
    _fail(harness, harness.must_claim(study=name))
    assignment = harness.must_claim(study=name)
    return lambda: _fail(harness, assignment)


def creation(harness: Harness, name: str) -> Callable[[], object]:
    return lambda: _begin(harness, name)


def leader_that_ends_a_lease_asks_and_projects(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, trials=2)
    harness.report(_run_folds(harness, name, 1), more=False)
    harness.must_claim("w2", study=name)
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leases SET expires_at = now() WHERE outcome IS NULL"))
    return lambda: SteppedLeader(harness.engine, harness.settings).round()


def leader_that_cancels_a_stopped_study(harness: Harness, name: str) -> Callable[[], object]:
    _begin(harness, name, ready=2)
    harness.must_claim(study=name)
    with harness.sessions.begin() as session:
        life.stop(session, name, "enough")
    return lambda: SteppedLeader(harness.engine, harness.settings).round()


QUICK: list[Case] = [claim, report_that_goes_on, report_that_prunes, release]
OTHERS: list[Case] = [
    claim_while_holding_another_fold,
    claim_of_a_trial_whose_folds_are_reused,
    report_that_completes_a_trial,
    report_that_completes_the_study,
    heartbeat,
    second_failure_of_a_trial,
    creation,
    leader_that_ends_a_lease_asks_and_projects,
    leader_that_cancels_a_stopped_study,
]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.__name__)
def test_dying_anywhere_and_being_asked_again_changes_nothing(harness: Harness, case: Case) -> None:
    assert _sweep(harness, case) >= 5


@pytest.mark.long
@pytest.mark.timeout(1800)
# A process that dies closes nothing, and Optuna's connections are those of an object that was never finished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.__name__)
def test_dying_anywhere_else_changes_nothing_either(harness: Harness, case: Case) -> None:
    assert _sweep(harness, case) >= 5


def _sweep(harness: Harness, case: Case) -> int:
    """Let a case die at each of its points; how many there are."""
    case(harness, "undisturbed")()
    expected = _tables(harness, "undisturbed")
    _set_aside(harness)
    for point in count():
        name = f"dies-at-{point}"
        act = case(harness, name)
        with crash_at(point) as failpoint:
            act()
        if not failpoint.struck:
            return point
        act()
        assert _tables(harness, name) == expected, f"after a crash at point {point}"
        _set_aside(harness)
    raise AssertionError("unreachable")


def _set_aside(harness: Harness) -> None:
    """The leader is to meet the next study alone."""
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.studies SET state = 'complete'"))


def _tables(harness: Harness, name: str) -> dict[str, list[tuple[Any, ...]]]:
    with harness.engine.connect() as connection:
        ours = {
            table: [tuple(row) for row in connection.execute(text(query), {"name": name})]
            for table, query in TABLES.items()
        }
    return ours | {"optuna": _optuna(harness.engine, name)}


def _optuna(engine: Engine, name: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('public.studies')")) is None:
            return []
        known = connection.scalar(
            text("SELECT count(*) FROM public.studies WHERE study_name = :name"), {"name": name}
        )
    if not known:
        return []
    url = engine.url.render_as_string(hide_password=False)
    trials = load_projected(url, name).trials
    return [(trial.state, trial.params, trial.values, trial.intermediate_values) for trial in trials]


def _fail(harness: Harness, assignment: FoldAssignment) -> None:
    with harness.sessions.begin() as session:
        failures.fail(session, key_of(assignment.lease), Failure(kind="trial", message="out of memory"))
