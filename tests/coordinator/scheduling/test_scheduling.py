"""The rules about folds, leases and trials, on a real PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import optuna
import pytest
from sqlalchemy import create_engine, select, text

from coordinator import optimizer
from coordinator.leader import projecting
from coordinator.optimizer import create_tables
from coordinator.scheduling import claims, failures, leases, reports, trials, workers
from coordinator.scheduling.leases import LeaseKey
from coordinator.store.tables import ClaimRow
from coordinator.studies import life
from services.contracts import (
    Failure,
    FoldAssignment,
    Heartbeat,
    StudySpec,
    StudyState,
    TrialState,
)
from services.errors import (
    CacheMismatch,
    Conflict,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    ResultConflict,
    StudyOver,
    TokenRefused,
    WorkerDrained,
)
from tests.harness.coordinator_harness import Harness, SteppedLeader, key_of, wait_until
from tests.harness.optuna_projection import load_projected, optuna_storage
from tests.harness.simulated_results import make_result


def test_idle_workers_help_with_a_trial_when_there_is_no_other(harness: Harness) -> None:
    harness.create(trials=2, workers_per_trial=2, idle_workers_help=False)
    held = {worker: harness.must_claim(worker) for worker in ("w1", "w2", "w3", "w4")}
    assert [(a.trial, a.fold) for a in held.values()] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert harness.claim("w5") is None
    for worker in ("w1", "w3"):
        following = harness.report(held[worker]).next
        assert following is not None
        held[worker] = following
    assert [(a.trial, a.fold) for a in held.values()] == [(0, 2), (1, 0), (0, 3), (1, 1)]
    last = harness.report(held["w1"]).next
    assert last is not None
    assert (last.trial, last.fold) == (0, 4)
    # The other four folds are done or held, and the other trial has its two workers.
    assert harness.report(held["w3"]).next is None
    assert harness.report(last).decision == "complete"


def test_one_worker_runs_all_folds_of_a_trial_in_order_and_the_study_completes(harness: Harness) -> None:
    harness.create(trials=2)
    assignment: FoldAssignment | None = harness.must_claim()
    seen = []
    while assignment is not None:
        seen.append((assignment.trial, assignment.fold))
        verdict = harness.report(assignment, wrong=assignment.trial)
        assignment = verdict.next
    assert seen == [(trial, fold) for trial in range(2) for fold in range(5)]
    study = harness.study()
    assert study.state == StudyState.COMPLETE
    assert study.best is not None
    assert (study.best.number, study.best.value) == (0, 1.0)
    assert harness.trial(1).value == 0.5
    with pytest.raises(StudyOver):
        harness.claim(study="s")


def test_the_budget_is_exact_and_trials_are_asked_ahead(harness: Harness) -> None:
    harness.create(trials=3, idle_workers_help=False)
    assert harness.study().trials[TrialState.READY] == harness.settings.ask_ahead
    for _ in range(3):
        harness.must_claim(worker=uuid.uuid4().hex)
        harness.leader.round()
    assert sum(harness.study().trials.values()) == 3
    assert harness.claim("late") is None


def test_the_same_key_gets_the_same_lease_and_a_new_key_gives_the_old_one_back(harness: Harness) -> None:
    harness.create()
    first = harness.must_claim(key="k" * 20)
    assert harness.claim(key="k" * 20) == first
    second = harness.must_claim()
    assert (second.trial, second.fold, second.lease.term) == (first.trial, first.fold, 2)
    with pytest.raises(LeaseSuperseded):
        harness.claim(key="k" * 20)
    with pytest.raises(LeaseSuperseded):
        harness.report(first)
    assert harness.beat(first, 1) == "abandon"


def drain(harness: Harness, worker: str, *, now: bool = False) -> None:
    with harness.sessions.begin() as session:
        workers.drain(session, worker, now=now)


def test_a_drained_worker_ends_its_fold_and_gets_no_other(harness: Harness) -> None:
    harness.create()
    held = harness.must_claim("w1", key="k" * 20)
    drain(harness, "w1")
    assert harness.beat(held, 1) == "continue"
    assert harness.claim("w1", key="k" * 20) == held, "the answer to a claim that was lost stays the same"
    assert harness.report(held).next is None
    with pytest.raises(WorkerDrained, match="w1 was drained"):
        harness.claim("w1")
    assert harness.must_claim("w2").fold == 1, "another goes on with its trial"


def test_a_worker_drained_at_once_is_told_with_its_heartbeat(harness: Harness) -> None:
    harness.create()
    held = harness.must_claim("w1")
    drain(harness, "worker-w1", now=True)
    assert harness.beat(held, 1) == "drain"
    with harness.sessions.begin() as session:
        leases.release(session, key_of(held.lease))
    assert harness.must_claim("w2").fold == 0


def test_a_worker_is_drained_by_a_name_that_only_it_has(harness: Harness) -> None:
    harness.create()
    harness.claim("w1")
    with pytest.raises(NotFound, match="no worker 'w2'"):
        drain(harness, "w2")
    with harness.engine.begin() as connection:
        connection.execute(text("INSERT INTO foldwise.workers (id, name, device) VALUES ('x', 'w1', 'cpu')"))
    with pytest.raises(Conflict, match="there are 2 workers 'w1'"):
        drain(harness, "w1")
    with harness.engine.begin() as connection:
        connection.execute(
            text("UPDATE foldwise.workers SET last_seen = now() - interval '1 h' WHERE id = 'x'")
        )
    drain(harness, "w1")


def test_two_workers_never_hold_folds_of_one_trial(harness: Harness) -> None:
    harness.create()
    assert harness.must_claim("w1").trial != harness.must_claim("w2").trial


def test_a_lapsed_fold_goes_to_another_worker_and_the_late_result_is_fenced(harness: Harness) -> None:
    harness.create()
    dead = harness.must_claim("w1")
    harness.expire(dead)
    taken = harness.must_claim("w2")
    assert (taken.trial, taken.fold, taken.lease.term) == (dead.trial, dead.fold, dead.lease.term + 1)
    with pytest.raises(LeaseSuperseded, match="granted again"):
        harness.report(dead)
    assert harness.report(taken).decision == "continue"
    with pytest.raises(LeaseSuperseded):
        harness.report(dead)
    assert harness.study().folds_done == 1


def test_a_late_result_counts_while_nobody_else_was_granted_the_fold(harness: Harness) -> None:
    harness.create()
    slow = harness.must_claim()
    harness.expire(slow)
    verdict = harness.report(slow)
    assert verdict.decision == "continue"
    assert harness.study().folds_done == 1
    # Of the trial's folds that were pending before, the one that was handed in is none any more.
    assert verdict.next is not None
    assert (slow.fold, verdict.next.fold) == (0, 1)
    assert [fold.state for fold in harness.folds(0)[:2]] == ["done", "leased"]


def test_a_heartbeat_takes_up_a_lapsed_lease_again(harness: Harness) -> None:
    harness.create()
    slow = harness.must_claim("w1")
    harness.expire(slow)
    assert harness.beat(slow, 1) == "continue"
    assert harness.must_claim("w2").trial != slow.trial


def test_a_late_heartbeat_does_not_take_a_released_fold_back(harness: Harness) -> None:
    harness.create()
    given_back = harness.must_claim("w1")
    with harness.sessions.begin() as session:
        leases.release(session, key_of(given_back.lease))
    assert harness.beat(given_back, 9) == "abandon"
    assert harness.must_claim("w2").trial == given_back.trial


def test_a_claim_that_got_nothing_takes_nothing_away_when_it_comes_again(harness: Harness) -> None:
    harness.create(start=False)
    assert harness.claim("w1", key="first") is None
    with harness.sessions.begin() as session:
        claims.answer_without_fold(session, "first")
        life.start(session, "s")
    harness.leader.round()
    held = harness.must_claim("w1")
    with pytest.raises(LeaseSuperseded, match="answered without a fold"):
        harness.claim("w1", key="first")
    assert harness.report(held).decision == "continue"

    with harness.sessions.begin() as session:
        claims.forget_claims_without_fold(session)
        assert session.get(ClaimRow, "first") is not None
        session.execute(text("UPDATE foldwise.claims SET answered_at = now() - interval '2 h'"))
    with harness.sessions.begin() as session:
        claims.forget_claims_without_fold(session)
        assert session.get(ClaimRow, "first") is None
        assert len(session.scalars(select(ClaimRow)).all()) == 1, "a claim that got a fold is kept"


def test_a_step_counter_that_stands_still_is_not_renewed(harness: Harness) -> None:
    harness.create()
    harness.settings = replace(harness.settings, stall_seconds=0.0)
    hung = harness.must_claim("w1")
    harness.beat(hung, 7)
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leases SET expires_at = clock_timestamp()"))
    harness.beat(hung, 7)
    harness.leader.round()
    assert harness.must_claim("w2").lease.term == 2


def test_a_lease_that_is_renewed_before_it_is_ended_goes_on(harness: Harness) -> None:
    """The leader finds lapsed leases first, and ends them one by one: a heartbeat may come between."""
    harness.create()
    held = harness.must_claim()
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leases SET expires_at = clock_timestamp()"))
    with harness.sessions() as session:
        ((found, _),) = failures.expired_leases(session)
    assert harness.beat(held, 1) == "continue"
    with harness.sessions.begin() as session:
        failures.expire(session, found)
    other = harness.must_claim("w2")
    assert (other.trial, other.fold) != (held.trial, held.fold), "nobody else is given its fold"
    assert harness.report(held).next is not None


def test_the_same_result_again_gets_the_same_verdict_and_counts_once(harness: Harness) -> None:
    harness.create()
    assignment = harness.must_claim()
    verdict = harness.report(assignment)
    again = harness.report(assignment)
    assert again == verdict.model_copy(update={"next": None})
    assert harness.study().folds_done == 1
    with pytest.raises(ResultConflict):
        harness.report(assignment, wrong=1)


def test_a_worker_whose_reply_was_lost_gets_its_next_fold_by_claiming(harness: Harness) -> None:
    harness.create()
    assignment = harness.must_claim()
    lost = harness.report(assignment).next
    assert lost is not None
    assert harness.report(assignment).next is None
    regained = harness.must_claim()
    assert (regained.trial, regained.fold, regained.lease.term) == (lost.trial, lost.fold, 2)


def test_a_released_fold_is_free_at_once(harness: Harness) -> None:
    harness.create()
    assignment = harness.must_claim("w1")
    for _ in range(2):
        with harness.sessions.begin() as session:
            leases.release(session, key_of(assignment.lease))
    assert harness.must_claim("w2").trial == assignment.trial


def test_the_second_trial_failure_fails_the_trial_but_environment_failures_do_not(harness: Harness) -> None:
    harness.create()
    for kind, worker in (("environment", "w1"), ("environment", "w2"), ("trial", "w3"), ("trial", "w3")):
        assignment = harness.must_claim(worker)
        assert assignment.trial == 0
        with harness.sessions.begin() as session:
            failure = Failure.model_validate({"kind": kind, "message": "out of memory"})
            failures.fail(session, key_of(assignment.lease), failure)
    trial = harness.trial(0)
    assert (trial.state, trial.end_reason) == (TrialState.FAILED, "out of memory")
    assert harness.must_claim().trial == 1


def test_three_lapses_of_one_fold_fail_the_trial(harness: Harness) -> None:
    harness.create()
    for worker in ("w1", "w2", "w3"):
        harness.expire(harness.must_claim(worker))
    assert harness.trial(0).state == TrialState.FAILED


def test_a_lease_answers_only_to_its_term_and_secret(harness: Harness) -> None:
    harness.create()
    lease = harness.must_claim().lease
    for wrong in (
        LeaseKey(id=lease.id, term=lease.term, secret="guess"),
        LeaseKey(id=lease.id, term=9, secret=lease.secret),
    ):
        with pytest.raises(TokenRefused), harness.sessions.begin() as session:
            leases.release(session, wrong)
    with pytest.raises(NotFound), harness.sessions.begin() as session:
        leases.release(session, LeaseKey(id="nope", term=1, secret="x"))


@pytest.mark.parametrize("predicted", [(0,), (0, 1, 0), (0, 2)], ids=["few", "many", "no class"])
def test_a_result_that_does_not_fit_the_fold_is_refused_and_nothing_is_stored(
    harness: Harness, predicted: tuple[int, ...]
) -> None:
    harness.create()
    assignment = harness.must_claim()
    with pytest.raises(InvalidInput, match=r"epochs\.0"), harness.sessions.begin() as session:
        reports.report(session, key_of(assignment.lease), make_result(assignment, predicted), harness.settings)
    assert harness.study().folds_done == 0
    assert harness.report(assignment).decision == "continue"


@pytest.mark.parametrize("predicted", [(0,), (0, 1, 0), (0, 2), ()], ids=["few", "many", "no class", "none"])
def test_validation_predictions_that_do_not_fit_the_fold_are_refused(
    harness: Harness, predicted: tuple[int, ...]
) -> None:
    harness.create(epoch_choice="validation", protocol={"kind": "kfold", "k": 2})
    assignment = harness.must_claim()
    assert len(assignment.validation_clips) == 2
    result = make_result(assignment, (0,) * len(assignment.test_clips))
    epoch = result.epochs[0].model_copy(update={"validation_predicted": predicted})
    other = result.model_copy(update={"epochs": (epoch,)})
    with pytest.raises(InvalidInput, match=r"epochs\.0"), harness.sessions.begin() as session:
        reports.report(session, key_of(assignment.lease), other, harness.settings)
    assert harness.study().folds_done == 0
    assert harness.report(assignment).decision == "continue"


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("seed", 1),
        ("fingerprint", "0" * 64),
        ("split_hash", "0" * 64),
        ("compute", {"precision": "bf16", "compiled": False}),
    ],
)
def test_a_result_of_another_task_is_refused_and_nothing_is_stored(
    harness: Harness, field: str, other: object
) -> None:
    harness.create()
    assignment = harness.must_claim()
    result = make_result(assignment, (0, 1), **{field: other})
    with pytest.raises(InvalidInput) as refused, harness.sessions.begin() as session:
        reports.report(session, key_of(assignment.lease), result, harness.settings)
    assert refused.value.field == f"provenance.{field}"
    assert harness.study().folds_done == 0
    assert harness.report(assignment).decision == "continue"


def test_bound_prunes_at_the_first_error_too_many(harness: Harness) -> None:
    harness.create(pruning=[{"rule": "bound", "threshold": 0.8}])
    verdict = harness.report(harness.must_claim(), wrong=2)
    assert verdict.decision == "continue"
    assert verdict.next is not None
    verdict = harness.report(verdict.next, wrong=1)
    assert verdict.decision == "pruned"
    assert verdict.pruned is not None
    assert verdict.pruned.model_dump() == {
        "rule": "bound",
        "fold": 1,
        "numbers": {"threshold": 0.8, "errors": 3, "errors_allowed": 2, "best_reachable": 0.7},
    }
    assert verdict.next is not None
    assert verdict.next.trial == 1
    assert harness.trial(0).state == TrialState.PRUNED
    assert harness.study().best is not None, "with none complete, the pruned trial of the highest bound"


@pytest.mark.parametrize(
    ("metric", "decision"), [("accuracy", "continue"), ("uar", "continue"), ("uf1", "pruned")]
)
def test_bound_takes_the_metric_it_is_told(harness: Harness, metric: str, decision: str) -> None:
    harness.create(pruning=[{"rule": "bound", "threshold": 0.9, "metric": metric}])
    # One of five clips of anger is taken for happy: recalls reach 0.8 and 1, F1 0.889 and 0.909.
    verdict = harness.report(harness.must_claim(), wrong=1)
    assert verdict.decision == decision
    if metric == "uf1":
        assert verdict.pruned is not None
        assert verdict.pruned.fold == 0
        assert verdict.pruned.numbers == {
            "threshold": 0.9,
            "errors": 1,
            "best_reachable_uf1": pytest.approx((8 / 9 + 10 / 11) / 2),
        }


@pytest.mark.usefixtures("projection")
def test_optuna_holds_the_same_trials(harness: Harness) -> None:
    harness.create(trials=3, pruning=[{"rule": "bound", "threshold": 0.6}])
    assignment: FoldAssignment | None = harness.must_claim()
    while assignment is not None:
        wrong = 2 if assignment.trial == 1 else int(assignment.fold == 2)
        assignment = harness.report(assignment, wrong=wrong).next
        harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    assert [t.state.name for t in projected.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    for trial in projected.trials:
        ours = harness.trial(trial.number)
        assert trial.params == ours.parameters
        if trial.state.name == "COMPLETE":
            assert trial.value == ours.value
            assert list(trial.intermediate_values) == [1, 2, 3, 4, 5]
    best = harness.study().best
    assert best is not None
    assert (projected.best_trial.number, projected.best_value) == (best.number, best.value)
    assert projected.trials[1].intermediate_values == {1: 0.0, 2: 0.0, 3: 0.0}


@pytest.mark.usefixtures("projection")
def test_enqueued_configurations_run_first_and_in_order(harness: Harness) -> None:
    wanted: list[dict[str, Any]] = [{"dropout": 0.7, "clahe": False}, {"clahe": True, "dropout": 0.123456}]
    space = {"clahe": [True, False], "dropout": {"low": 0.1, "high": 0.9}}
    harness.create(trials=3, space=space, enqueue=wanted)
    harness.must_claim()
    harness.leader.round()
    assert [harness.trial(n).parameters for n in range(2)] == [
        {"clahe": False, "dropout": 0.7},
        {"clahe": True, "dropout": 0.1235},
    ]
    projected = load_projected(harness.settings.database_url, "s")
    assert [trial.params for trial in projected.trials] == [harness.trial(n).parameters for n in range(3)]


@pytest.mark.usefixtures("projection")
def test_projecting_again_after_a_crash_changes_nothing(harness: Harness) -> None:
    harness.create(trials=1)
    harness.report(harness.must_claim())
    harness.leader.round()
    with harness.engine.begin() as connection:
        connection.execute(text("INSERT INTO foldwise.outbox (trial_id) SELECT id FROM foldwise.trials"))
    harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    assert len(projected.trials) == 1
    assert projected.trials[0].intermediate_values == {1: 1.0}


@pytest.mark.usefixtures("projection")
def test_one_broken_study_does_not_stop_the_others(harness: Harness) -> None:
    harness.create(start=False)
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.studies SET spec = '{}', state = 'running'"))
    harness.create(name="other")
    assert harness.study("other").trials[TrialState.READY] == harness.settings.ask_ahead
    projected = load_projected(harness.settings.database_url, "other")
    assert len(projected.trials) == harness.settings.ask_ahead


@pytest.mark.usefixtures("projection")
def test_a_trial_that_could_not_be_projected_keeps_its_number(harness: Harness) -> None:
    create_tables(harness.engine)
    with harness.engine.begin() as connection:
        connection.execute(text("ALTER TABLE trial_params ADD CONSTRAINT closed CHECK (false) NOT VALID"))
    harness.create(trials=3)
    with harness.engine.begin() as connection:
        connection.execute(text("ALTER TABLE trial_params DROP CONSTRAINT closed"))
    harness.report(harness.must_claim())
    harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    assert [trial.params for trial in projected.trials] == [harness.trial(n).parameters for n in range(3)]
    assert projected.trials[0].intermediate_values == {1: 1.0}


@pytest.mark.usefixtures("projection")
def test_a_change_that_becomes_visible_late_is_not_taken_for_projected(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.create(trials=2)
    harness.report(harness.must_claim("w1"))
    other = harness.must_claim("w2")
    assert other.trial == 1
    with harness.engine.connect() as late:
        late.execute(
            text("INSERT INTO foldwise.outbox (trial_id) SELECT id FROM foldwise.trials WHERE number = 0")
        )
        # Its number is higher, and it is visible first.
        harness.report(other)

        def then_the_late_one(*given: Any) -> None:
            optimizer.project(*given)
            late.commit()

        monkeypatch.setattr(projecting, "project", then_the_late_one)
        harness.leader.round()
    with harness.engine.connect() as connection:
        left = connection.execute(
            text("SELECT number FROM foldwise.outbox JOIN foldwise.trials ON trials.id = trial_id")
        ).scalars()
        assert list(left) == [0]


@pytest.mark.usefixtures("projection")
def test_a_study_deleted_in_optuna_is_projected_anew(harness: Harness) -> None:
    harness.create(trials=2)
    assignment: FoldAssignment | None = harness.must_claim()
    while assignment is not None and assignment.trial == 0:
        assignment = harness.report(assignment).next
    harness.leader.round()
    with optuna_storage(harness.settings.database_url) as storage:
        optuna.delete_study(study_name="s", storage=storage)
    assert assignment is not None
    harness.report(assignment)
    harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    assert [trial.state.name for trial in projected.trials] == ["COMPLETE", "RUNNING"]
    assert projected.best_value == harness.trial(0).value


@pytest.mark.usefixtures("projection")
@pytest.mark.parametrize("wrong", ["a trial of somebody else", "an end that we do not know of"])
def test_a_study_that_somebody_else_wrote_to_in_optuna_is_made_anew(harness: Harness, wrong: str) -> None:
    harness.create(trials=harness.settings.ask_ahead + 1)
    assignment: FoldAssignment | None = harness.must_claim()
    projected = load_projected(harness.settings.database_url, "s")
    if wrong == "a trial of somebody else":
        projected.add_trial(optuna.create_trial(value=1.0))
    else:
        projected.tell(0, 1.0)
    while assignment is not None:
        assignment = harness.report(assignment).next
        harness.leader.round()
    harness.leader.round()
    projected = load_projected(harness.settings.database_url, "s")
    ours = [harness.trial(number) for number in range(len(projected.trials))]
    assert [trial.params for trial in projected.trials] == [trial.parameters for trial in ours]
    assert [trial.value for trial in projected.trials] == [trial.value for trial in ours]
    assert harness.study().state == StudyState.COMPLETE


@pytest.mark.usefixtures("projection")
def test_trials_under_way_reach_optuna_at_a_bounded_rate_and_ended_ones_at_once(harness: Harness) -> None:
    harness.leader = SteppedLeader(harness.engine, replace(harness.settings, projection_seconds=3600))
    harness.create(trials=2)
    assignment: FoldAssignment | None = harness.must_claim()
    for _ in range(3):
        assert assignment is not None
        assignment = harness.report(assignment).next
        harness.leader.round()
    running = load_projected(harness.settings.database_url, "s").trials[0]
    assert running.intermediate_values == {}
    while assignment is not None and assignment.trial == 0:
        assignment = harness.report(assignment).next
    harness.leader.round()
    ended, _ = load_projected(harness.settings.database_url, "s").trials
    assert ended.value == harness.trial(0).value
    assert len(ended.intermediate_values) == 5


def test_a_leader_that_lost_its_database_leads_again(
    harness: Harness, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.leader.election.LEADER_SECONDS", 1.0)
    monkeypatch.setattr("coordinator.leader.election.RENEWAL_SECONDS", 0.1)
    database = harness.engine.url.database
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    harness.settings = replace(harness.settings, leader_interval=0.02)
    leader = SteppedLeader(harness.engine, harness.settings)
    leader.start()
    try:
        wait_until(lambda: leader.is_leader)
        with server.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": database},
            )
            wait_until(lambda: not leader.is_leader)
            connection.execute(text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true"))
        server.dispose()
        wait_until(lambda: leader.is_leader)
        harness.leader = leader
        with harness.sessions.begin() as session:
            spec = StudySpec.model_validate(
                {"name": "s", "cache": "tiny", "training": {"frames": 2, "frame_size": 16}}
            )
            life.create(session, spec, harness.settings.cache_root)
        wait_until(lambda: harness.study().trials[TrialState.READY] == harness.settings.ask_ahead)
    finally:
        leader.stop()


def test_stopping_a_study_does_not_deadlock_with_a_result_that_ends_a_trial(harness: Harness) -> None:
    harness.create(trials=4, pruning=[{"rule": "bound", "threshold": 1.0}])
    held = [harness.must_claim(f"w{i}") for i in range(2)]
    ready = threading.Event()

    def end_the_second() -> None:
        key = key_of(held[1].lease)
        with harness.sessions.begin() as session:
            result = harness.result(session, held[1], 1)
            # Takes the trial's lock; the study's is wanted when the result ends the trial.
            leases.heartbeat(session, key, Heartbeat(epoch=1, step=1), harness.settings)
            ready.set()
            wait_until(lambda: harness.trial(0).state == TrialState.CANCELLED)
            reports.report(session, key, result, harness.settings, more=False)

    with harness.sessions.begin() as session:
        life.stop(session, "s", "enough")
    with ThreadPoolExecutor(1) as pool:
        reporting = pool.submit(end_the_second)
        assert ready.wait(30)
        harness.leader.round()
        reporting.result(30)
    harness.leader.round()
    assert harness.study().trials[TrialState.RUNNING] == 0


def test_trials_of_a_study_that_end_at_the_same_moment_do_not_deadlock(harness: Harness) -> None:
    workers = 6
    harness.leader = SteppedLeader(harness.engine, replace(harness.settings, ask_ahead=workers))
    harness.create(trials=workers, pruning=[{"rule": "bound", "threshold": 1.0}])
    held = [harness.must_claim(f"w{i}") for i in range(workers)]
    together = threading.Barrier(workers)

    def end(assignment: FoldAssignment) -> str:
        together.wait(30)
        return harness.report(assignment, wrong=1).decision

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(end, held)) == ["pruned"] * workers
    harness.leader.round()
    assert harness.study().state == StudyState.COMPLETE


def test_the_last_two_folds_of_a_trial_reported_at_the_same_moment_complete_it(harness: Harness) -> None:
    harness.create(protocol={"kind": "kfold", "k": 2}, trials=1, workers_per_trial=2)
    first, second = harness.must_claim("w1"), harness.must_claim("w2")
    assert first.trial == second.trial

    def waits_for_a_lock() -> bool:
        with harness.engine.connect() as connection:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name"
            return bool(connection.scalar(text(waiting), {"name": harness.engine.url.database}))

    with ThreadPoolExecutor(1) as pool:
        with harness.sessions.begin() as session:
            result = harness.result(session, first, 0)
            reports.report(session, key_of(first.lease), result, harness.settings)
            reporting = pool.submit(harness.report, second)
            # The second report sees the first one's fold only if it waits for this transaction.
            wait_until(lambda: waits_for_a_lock() or reporting.done())
        assert reporting.result(30).decision == "complete"
    assert harness.trial(0).state == TrialState.COMPLETE


def test_pause_lets_the_fold_finish_and_gives_no_other(harness: Harness) -> None:
    harness.create()
    assignment = harness.must_claim()
    with harness.sessions.begin() as session:
        life.pause(session, "s")
    assert harness.report(assignment).next is None
    assert harness.claim() is None
    with harness.sessions.begin() as session:
        life.resume(session, "s")
    assert harness.must_claim().fold == 1


@pytest.mark.usefixtures("projection")
def test_stop_cancels_what_is_under_way_and_absorbs(harness: Harness) -> None:
    harness.create()
    assignment = harness.must_claim()
    with harness.sessions.begin() as session:
        life.stop(session, "s", "enough")
    harness.leader.round()
    assert harness.beat(assignment, 1) == "abandon"
    study = harness.study()
    assert (study.state, study.reason) == (StudyState.STOPPED, "enough")
    assert study.trials[TrialState.CANCELLED] == 2
    with pytest.raises(Conflict, match="stopped"), harness.sessions.begin() as session:
        life.resume(session, "s")
    projected = load_projected(harness.settings.database_url, "s")
    assert {t.state.name for t in projected.trials} == {"FAIL"}


def test_what_does_not_fit_the_cache_is_refused(harness: Harness) -> None:
    with pytest.raises(CacheMismatch, match=r"frame_size is 112, the cache tiny/f+ has 16"):
        harness.create(training={"frames": 2})
    with pytest.raises(InvalidInput, match="joy"):
        harness.create(
            training={"frames": 2, "frame_size": 16, "augmentation": {"counts": {"joy": {"flip": 1}}}}
        )
    with pytest.raises(InvalidInput, match="10 folds need"):
        harness.create(protocol={"kind": "kfold", "k": 10})
    harness.create()
    with pytest.raises(Conflict, match="exists already"):
        harness.create()
    with pytest.raises(CacheMismatch, match="cannot read"):
        harness.claim(caches=(), study="s")
    with pytest.raises(NotFound, match="no study"):
        harness.claim(study="other")
    assert harness.claim(caches=()) is None


def test_a_trial_is_added_under_the_next_number_and_never_above_the_budget(harness: Harness) -> None:
    """Two leaders may ask for the same number, and a budget may be lowered between question and answer."""
    harness.create(trials=2, start=False)
    with harness.sessions.begin() as session:
        study = life.start(session, "s")
        wanted = {"dropout": 0.1}
        assert trials.add_trial(session, study, wanted, 1) is None, "a number was left out"
        assert trials.add_trial(session, study, wanted, 0) is not None
        assert trials.add_trial(session, study, wanted, 0) is None, "the number is taken"
        assert trials.add_trial(session, study, wanted, 1) is not None
        assert trials.add_trial(session, study, wanted, 2) is None, "the budget is spent"


def test_workers_that_claim_at_the_same_moment_do_not_share_a_trial(harness: Harness) -> None:
    workers, rounds = 8, 40
    harness.leader = SteppedLeader(harness.engine, replace(harness.settings, ask_ahead=3))
    harness.create(trials=3, idle_workers_help=False)
    together = threading.Barrier(workers)

    def claim(worker: int) -> FoldAssignment | None:
        together.wait(30)
        return harness.claim(f"w{worker}")

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(rounds):
            held = [assignment for assignment in pool.map(claim, range(workers)) if assignment is not None]
            assert sorted({assignment.trial for assignment in held}) == sorted(a.trial for a in held)
            for assignment in held:
                with harness.sessions.begin() as session:
                    leases.release(session, key_of(assignment.lease))
