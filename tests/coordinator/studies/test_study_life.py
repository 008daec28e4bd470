"""Studies extended, cloned, started warm, limited in time, put before others, and deleted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from sqlalchemy import inspect, text

from coordinator.optimizer import Search, TrialRecord, inherited_trials, suggest
from coordinator.store.studies import get_study
from coordinator.store.tables import SCHEMA
from coordinator.studies import deletion, life
from services.contracts import Clone, FoldAssignment, StudySpec, StudyState, TrialState
from services.errors import Conflict, InvalidInput, NotFound, StudyOver
from tests.harness.coordinator_harness import Harness
from tests.harness.optuna_projection import load_projected, optuna_storage

SPACE: dict[str, Any] = {"temporal_size": [1, 3, 5], "clahe": [True, False]}
A = {"temporal_size": 1, "clahe": True}
B = {"temporal_size": 5, "clahe": False}


def create(harness: Harness, **spec: Any) -> None:
    """A study of two folds a trial."""
    harness.create(protocol={"kind": "kfold", "k": 2}, **spec)


def run(harness: Harness, assignment: FoldAssignment | None, wrong: int = 0) -> None:
    while assignment is not None:
        verdict = harness.report(assignment, wrong)
        if verdict.decision != "continue":
            harness.leader.round()
        assignment = verdict.next


def run_all(harness: Harness, name: str = "s", wrong: int = 0) -> None:
    while (assignment := harness.claim() if not harness.study(name).state.over else None) is not None:
        run(harness, assignment, wrong)


def enqueue(harness: Harness, *configurations: dict[str, Any], name: str = "s") -> tuple[int, ...]:
    with harness.sessions.begin() as session:
        return life.enqueue(session, name, configurations)


def set_budget(harness: Harness, trials: int, name: str = "s") -> None:
    with harness.sessions.begin() as session:
        life.set_budget(session, name, trials)
    harness.leader.round()


def move(harness: Harness, verb: str, name: str = "s") -> None:
    with harness.sessions.begin() as session:
        if verb == "stop":
            life.stop(session, name, "enough")
        else:
            getattr(life, verb)(session, name)
    harness.leader.round()


def delete(harness: Harness, name: str = "s", confirm: str | None = "s") -> None:
    with harness.sessions.begin() as session:
        deletion.delete_study(session, name, confirm)


def count_rows(harness: Harness) -> dict[str, int]:
    """Rows of every table but those of workers, events and the schema's version."""
    names = set(inspect(harness.engine).get_table_names(schema=SCHEMA)) - {
        "workers",
        "events",
        "schema_version",
    }
    with harness.engine.connect() as connection:
        return {
            name: connection.scalar(text(f"SELECT count(*) FROM foldwise.{name}")) or 0  # noqa: S608
            for name in names
        }


def age(harness: Harness, statement: str) -> None:
    with harness.engine.begin() as connection:
        connection.execute(text(statement))


# --- Enqueue ----------------------------------------------------------------------------------------------


def test_enqueued_configurations_follow_the_trials_that_are_there(harness: Harness) -> None:
    create(harness, space=SPACE, trials=5, enqueue=[A])
    assert enqueue(harness, A, B) == (2, 3)
    assert enqueue(harness, B) == (4,)
    run_all(harness)
    assert harness.trial(0).parameters == A
    assert [harness.trial(number).parameters for number in (2, 3, 4)] == [A, B, B]
    assert harness.study().state == StudyState.COMPLETE


def test_what_is_enqueued_while_the_sampler_thinks_goes_first(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    think = Search.suggest
    numbers: list[tuple[int, ...]] = []

    def slowly(search: Search, number: int, enqueued: Any = None) -> Any:
        suggested = think(search, number, enqueued)
        if not numbers:
            numbers.append(enqueue(harness, {**A, "clahe": not suggested["clahe"]}))
        return suggested

    monkeypatch.setattr(Search, "suggest", slowly)
    create(harness, space={"clahe": [True, False]} | {"temporal_size": [1]}, trials=3)
    assert numbers == [(0,)]
    assert harness.trial(0).parameters["clahe"] != suggest(harness.study().spec, [], 0)["clahe"]


def test_enqueued_configurations_fit_the_space_and_the_budget(harness: Harness) -> None:
    create(harness, space=SPACE, trials=3)
    with pytest.raises(InvalidInput, match="the 1 remaining trials of study s") as refused:
        enqueue(harness, A, B)
    assert refused.value.field == "configurations"
    with pytest.raises(InvalidInput, match=r"configurations\.0: temporal_size = 9 is outside") as refused:
        enqueue(harness, {**A, "temporal_size": 9})
    assert refused.value.field == "configurations.0"
    assert enqueue(harness, A) == (2,)
    with pytest.raises(InvalidInput, match="the 0 remaining trials"):
        enqueue(harness, A)
    run_all(harness)
    with pytest.raises(Conflict, match="complete"):
        enqueue(harness, A)


def test_a_parameter_that_an_enqueued_configuration_does_not_name_has_its_default(harness: Harness) -> None:
    create(harness, space={**SPACE, "dropout": {"low": 0.0, "high": 0.2}}, trials=3)
    with pytest.raises(InvalidInput, match=r"configurations\.0: dropout is not named, and its default 0\.2511"):
        enqueue(harness, {"clahe": False})
    enqueue(harness, {"clahe": False, "dropout": 0.1})
    run_all(harness)
    assert harness.trial(2).parameters == {"temporal_size": 3, "clahe": False, "dropout": 0.1}


# --- Budget -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("projection")
def test_a_complete_study_goes_on_with_a_larger_budget_and_its_trials_stay(harness: Harness) -> None:
    create(harness, trials=2)
    run_all(harness)
    first = [harness.trial(0), harness.trial(1)]
    with pytest.raises(StudyOver):
        harness.claim(study="s")
    set_budget(harness, 3)
    assert harness.study().state == StudyState.RUNNING
    run_all(harness)
    study = harness.study()
    assert (study.state, study.spec.trials, sum(study.trials.values())) == (StudyState.COMPLETE, 3, 3)
    assert [harness.trial(0), harness.trial(1)] == first
    projected = load_projected(harness.settings.database_url, "s")
    assert [trial.state.name for trial in projected.trials] == ["COMPLETE"] * 3


def test_a_budget_is_never_below_what_there_is(harness: Harness) -> None:
    create(harness, trials=5, space=SPACE)
    enqueue(harness, A)
    with pytest.raises(InvalidInput, match="has 3 trials made or enqueued") as refused:
        set_budget(harness, 2)
    assert refused.value.field == "trials"
    set_budget(harness, 3)
    run_all(harness)
    assert (harness.study().state, sum(harness.study().trials.values())) == (StudyState.COMPLETE, 3)
    set_budget(harness, 3)
    assert harness.study().state == StudyState.COMPLETE
    create(harness, name="t", trials=2, sampler={"kind": "grid"}, space=SPACE)
    with pytest.raises(InvalidInput, match="the grid has 6 configurations"):
        set_budget(harness, 7, "t")
    move(harness, "stop", "t")
    with pytest.raises(Conflict, match="clone it"):
        set_budget(harness, 3, "t")


def test_a_paused_study_stays_paused_with_a_larger_budget(harness: Harness) -> None:
    create(harness, trials=2)
    move(harness, "pause")
    set_budget(harness, 4)
    assert (harness.study().state, harness.study().spec.trials) == (StudyState.PAUSED, 4)


def test_a_grid_study_runs_every_configuration(harness: Harness) -> None:
    space = {"temporal_size": [1, 3], "clahe": [True, False]}
    create(harness, trials=4, sampler={"kind": "grid"}, space=space, seed=3)
    run_all(harness)
    ran = {tuple(harness.trial(number).parameters.values()) for number in range(4)}
    assert ran == {(size, clahe) for size in (1, 3) for clahe in (True, False)}


# --- Clone ------------------------------------------------------------------------------------------------


def clone(harness: Harness, changes: dict[str, Any], name: str = "t") -> StudySpec:
    with harness.sessions.begin() as session:
        return life.cloned_spec(session, "s", Clone(name=name, changes=changes))


def test_a_clone_has_the_same_spec_and_cache_but_for_what_is_changed(harness: Harness) -> None:
    create(harness, trials=3, space={**SPACE, "dropout": {"low": 0.0, "high": 0.5}}, seed=4)
    spec = harness.study().spec
    plain = clone(harness, {})
    assert plain == spec.model_copy(update={"name": "t", "cache": f"tiny/{'f' * 64}"})
    changed = clone(
        harness,
        {
            "seed": None,
            "training": {"epochs": 3},
            "space": {"clahe": None, "dropout": {"high": 0.25}},
            "sampler": {"kind": "random"},
        },
    )
    assert (changed.seed, changed.trials, changed.sampler.kind) == (0, 3, "random")
    assert changed.training == spec.training.model_copy(update={"epochs": 3})
    assert changed.space.model_dump() == {
        "temporal_size": (1, 3, 5),
        "dropout": {"low": 0.0, "high": 0.25, "log": False},
    }
    with pytest.raises(InvalidInput, match=r"training\.epochs"):
        clone(harness, {"training": {"epochs": 0}})
    with pytest.raises(InvalidInput, match="colour"):
        clone(harness, {"colour": 1})


# --- Warm start -------------------------------------------------------------------------------------------


def test_a_warm_start_copies_the_trials_that_fit_and_suggests_from_them(harness: Harness) -> None:
    tried = [
        {"temporal_size": 5, "clahe": True},
        {"temporal_size": 1, "clahe": True},
        {"temporal_size": 3, "clahe": False},
    ]
    rules = [{"rule": "bound", "threshold": 0.9}]
    harness.create(name="first", space=SPACE, enqueue=tried, trials=3, pruning=rules)
    assignment: FoldAssignment | None = harness.must_claim()
    while assignment is not None:
        assignment = harness.report(assignment, wrong=int(assignment.trial == 1)).next
        harness.leader.round()
    assert [harness.trial(n, "first").state.value for n in range(3)] == ["complete", "pruned", "complete"]

    narrow = {"temporal_size": [1, 5], "clahe": [True, False]}
    for name, trials, parameters in (
        ("all", "all", [tried[0], tried[1]]),
        ("whole", "complete", [tried[0]]),
        ("best", "best 1", [tried[0]]),
    ):
        warm = {"study": "first", "trials": trials}
        harness.create(name=name, space=narrow, trials=4, sampler={"startup_trials": 1}, warm_start=warm)
        inherited = inherited_of(harness, name)
        assert [dict(record.parameters) for record in inherited] == parameters
        assert sum(harness.study(name).trials.values()) == harness.settings.ask_ahead
        assert harness.trial(0, name).parameters == suggest(
            harness.study(name).spec, [], 0, inherited=inherited
        )
    pruned = inherited_of(harness, "all")[1]
    assert (pruned.state, pruned.value, len(pruned.curve)) == (TrialState.PRUNED, None, 2)
    delete(harness, "first", "first")
    harness.leader.round()
    assert len(inherited_of(harness, "all")) == 2, "they were copied"


def inherited_of(harness: Harness, name: str) -> list[TrialRecord]:
    with harness.sessions() as session:
        return inherited_trials(session, get_study(session, name).id)


def test_a_warm_start_from_nothing_is_refused(harness: Harness) -> None:
    with pytest.raises(NotFound, match="no study 'first'") as refused:
        create(harness, warm_start={"study": "first"})
    assert refused.value.field == "warm_start.study"
    create(harness, name="first")
    with pytest.raises(InvalidInput, match="no ended trial that fits"):
        create(harness, warm_start={"study": "first"})
    with pytest.raises(InvalidInput, match=r"first maximises accuracy .*, this study uar ") as refused_score:
        create(harness, warm_start={"study": "first"}, objective="uar")
    assert refused_score.value.field == "warm_start.study"
    with pytest.raises(InvalidInput, match="this study accuracy with epoch_choice last"):
        create(harness, warm_start={"study": "first"}, epoch_choice="last")


# --- Time limits ------------------------------------------------------------------------------------------


def test_a_trial_past_its_time_is_cancelled_and_the_others_go_on(harness: Harness) -> None:
    create(harness, trials=3, trial_seconds=60)
    late, other = harness.must_claim("w1"), harness.must_claim("w2")
    late_next = harness.report(late).next
    assert late_next is not None
    age(
        harness,
        "UPDATE foldwise.leases SET granted_at = granted_at - interval '61 s' "
        "WHERE trial_id = (SELECT id FROM foldwise.trials WHERE number = 0) AND fold = 0",
    )
    harness.leader.round()
    trial = harness.trial(0)
    assert (trial.state, trial.folds_done) == (TrialState.CANCELLED, 1)
    assert trial.end_reason == "trial_seconds: 60 s since its first lease"
    assert harness.beat(late_next, 1) == "abandon"
    assert harness.beat(other, 1) == "continue"
    assert harness.trial(1).state == TrialState.RUNNING


def test_a_study_past_its_time_is_stopped_and_keeps_its_results(harness: Harness) -> None:
    create(harness, trials=3, study_seconds=60)
    create(harness, name="draft", study_seconds=60, start=False)
    assignment = harness.must_claim()
    assert harness.report(assignment).next is not None
    age(
        harness,
        "UPDATE foldwise.studies SET started_at = started_at - interval '61 s', "
        "created_at = created_at - interval '61 s'",
    )
    harness.leader.round()
    study = harness.study()
    assert (study.state, study.reason) == (StudyState.STOPPED, "study_seconds: 60 s since its start")
    assert study.folds_done == 1
    assert study.trials[TrialState.CANCELLED] == harness.settings.ask_ahead
    move(harness, "start", "draft")
    assert harness.study("draft").state == StudyState.RUNNING, "its time begins with its start"


def test_the_time_of_a_study_begins_anew_with_a_larger_budget(harness: Harness) -> None:
    create(harness, trials=1, study_seconds=60)
    run_all(harness)
    age(harness, "UPDATE foldwise.studies SET started_at = started_at - interval '61 s'")
    set_budget(harness, 2)
    assert harness.study().state == StudyState.RUNNING


# --- Priority ---------------------------------------------------------------------------------------------


def test_folds_of_the_highest_priority_are_leased_first_then_of_the_oldest_study(harness: Harness) -> None:
    for name, priority in (("low", -1), ("old", 0), ("new", 0), ("high", 7)):
        create(harness, name=name, priority=priority, trials=1)
    # Only then does a worker help with a trial that has one.
    claimed = [harness.must_claim(f"w{n}").study for n in range(5)]
    assert claimed == ["high", "old", "new", "low", "high"]


def test_a_named_study_is_served_whatever_its_priority(harness: Harness) -> None:
    create(harness, name="low", priority=-100)
    create(harness, name="high", priority=100)
    assert harness.must_claim(study="low").study == "low"


# --- Delete -----------------------------------------------------------------------------------------------


def optuna_names(harness: Harness) -> list[str]:
    with optuna_storage(harness.settings.database_url) as storage:
        return optuna.get_all_study_names(storage)


@pytest.mark.usefixtures("projection")
def test_a_deleted_study_leaves_no_row_here_and_none_in_optuna(harness: Harness) -> None:
    create(harness, name="kept", space=SPACE, trials=1, enqueue=[A])
    run(harness, harness.must_claim())
    before = count_rows(harness)
    create(
        harness,
        space=SPACE,
        trials=3,
        enqueue=[A, A],
        sampler={"startup_trials": 1},
        warm_start={"study": "kept"},
    )
    enqueue(harness, B)
    run_all(harness)
    assert any(fold.reused_from is not None for fold in harness.folds(1))
    delete(harness)
    harness.leader.round()
    assert count_rows(harness) == before
    assert optuna_names(harness) == ["kept"]
    with pytest.raises(NotFound, match="there are: kept"):
        delete(harness)


def test_a_study_is_deleted_only_by_its_name_and_while_it_does_not_run(harness: Harness) -> None:
    create(harness)
    for confirm in (None, "", "t"):
        with pytest.raises(InvalidInput, match="confirm it with its name"):
            delete(harness, confirm=confirm)
    with pytest.raises(Conflict, match="is running"):
        delete(harness)
    held = harness.must_claim()
    move(harness, "pause")
    with pytest.raises(Conflict, match="workers still hold folds"):
        delete(harness)
    assert harness.report(held).decision == "continue"
    delete(harness)
    with pytest.raises(NotFound):
        harness.beat(held, 1)


@pytest.mark.usefixtures("projection")
def test_a_crash_between_our_rows_and_optunas_leaves_work_and_nothing_half(harness: Harness) -> None:
    create(harness, trials=1)
    run_all(harness)
    delete(harness)
    assert optuna_names(harness) == ["s"]
    create(harness, trials=2)
    projected = load_projected(harness.settings.database_url, "s")
    assert [trial.state.name for trial in projected.trials] == ["RUNNING"] * 2, "another study by the same name"
    assert [trial.params for trial in projected.trials] == [harness.trial(n).parameters for n in range(2)]


def test_results_and_a_deletion_at_the_same_moment_do_not_deadlock(harness: Harness) -> None:
    create(harness, trials=2)
    held = [harness.must_claim(f"w{n}") for n in range(2)]
    move(harness, "pause")

    def try_to_delete() -> str:
        try:
            delete(harness)
        except Conflict:
            return "refused"
        return "deleted"

    with ThreadPoolExecutor(3) as pool:
        reports = [pool.submit(harness.report, assignment) for assignment in held]
        outcome = pool.submit(try_to_delete).result(30)
        assert [report.result(30).decision for report in reports] == ["continue"] * 2
    if outcome == "refused":
        delete(harness)
    assert count_rows(harness)["studies"] == 0
