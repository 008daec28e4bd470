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
from tests.harness.coordinator_harness import Desk
from tests.harness.optuna_projection import load_twin, optuna_storage

SPACE: dict[str, Any] = {"temporal_size": [1, 3, 5], "clahe": [True, False]}
A = {"temporal_size": 1, "clahe": True}
B = {"temporal_size": 5, "clahe": False}


def create(desk: Desk, **spec: Any) -> None:
    """A study of two folds a trial."""
    desk.create(protocol={"kind": "kfold", "k": 2}, **spec)


def run(desk: Desk, assignment: FoldAssignment | None, wrong: int = 0) -> None:
    while assignment is not None:
        verdict = desk.report(assignment, wrong)
        if verdict.decision != "continue":
            desk.leader.round()
        assignment = verdict.next


def run_all(desk: Desk, name: str = "s", wrong: int = 0) -> None:
    while (assignment := desk.claim() if not desk.study(name).state.over else None) is not None:
        run(desk, assignment, wrong)


def enqueue(desk: Desk, *configurations: dict[str, Any], name: str = "s") -> tuple[int, ...]:
    with desk.sessions.begin() as session:
        return life.enqueue(session, name, configurations)


def set_budget(desk: Desk, trials: int, name: str = "s") -> None:
    with desk.sessions.begin() as session:
        life.set_budget(session, name, trials)
    desk.leader.round()


def move(desk: Desk, verb: str, name: str = "s") -> None:
    with desk.sessions.begin() as session:
        if verb == "stop":
            life.stop(session, name, "enough")
        else:
            getattr(life, verb)(session, name)
    desk.leader.round()


def delete(desk: Desk, name: str = "s", confirm: str | None = "s") -> None:
    with desk.sessions.begin() as session:
        deletion.delete_study(session, name, confirm)


def count_rows(desk: Desk) -> dict[str, int]:
    """Rows of every table but those of workers, events and the schema's version."""
    names = set(inspect(desk.engine).get_table_names(schema=SCHEMA)) - {"workers", "events", "schema_version"}
    with desk.engine.connect() as connection:
        return {
            name: connection.scalar(text(f"SELECT count(*) FROM foldwise.{name}")) or 0  # noqa: S608
            for name in names
        }


def age(desk: Desk, statement: str) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text(statement))


# --- Enqueue ----------------------------------------------------------------------------------------------


def test_enqueued_configurations_follow_the_trials_that_are_there(desk: Desk) -> None:
    create(desk, space=SPACE, trials=5, enqueue=[A])
    assert enqueue(desk, A, B) == (2, 3)
    assert enqueue(desk, B) == (4,)
    run_all(desk)
    assert desk.trial(0).parameters == A
    assert [desk.trial(number).parameters for number in (2, 3, 4)] == [A, B, B]
    assert desk.study().state == StudyState.COMPLETE


def test_what_is_enqueued_while_the_sampler_thinks_goes_first(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    think = Search.suggest
    numbers: list[tuple[int, ...]] = []

    def slowly(search: Search, number: int, enqueued: Any = None) -> Any:
        suggested = think(search, number, enqueued)
        if not numbers:
            numbers.append(enqueue(desk, {**A, "clahe": not suggested["clahe"]}))
        return suggested

    monkeypatch.setattr(Search, "suggest", slowly)
    create(desk, space={"clahe": [True, False]} | {"temporal_size": [1]}, trials=3)
    assert numbers == [(0,)]
    assert desk.trial(0).parameters["clahe"] != suggest(desk.study().spec, [], 0)["clahe"]


def test_enqueued_configurations_fit_the_space_and_the_budget(desk: Desk) -> None:
    create(desk, space=SPACE, trials=3)
    with pytest.raises(InvalidInput, match="the 1 remaining trials of study s") as refused:
        enqueue(desk, A, B)
    assert refused.value.field == "configurations"
    with pytest.raises(InvalidInput, match=r"configurations\.0: temporal_size = 9 is outside") as refused:
        enqueue(desk, {**A, "temporal_size": 9})
    assert refused.value.field == "configurations.0"
    assert enqueue(desk, A) == (2,)
    with pytest.raises(InvalidInput, match="the 0 remaining trials"):
        enqueue(desk, A)
    run_all(desk)
    with pytest.raises(Conflict, match="complete"):
        enqueue(desk, A)


# --- Budget -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("projection")
def test_a_complete_study_goes_on_with_a_larger_budget_and_its_trials_stay(desk: Desk) -> None:
    create(desk, trials=2)
    run_all(desk)
    first = [desk.trial(0), desk.trial(1)]
    with pytest.raises(StudyOver):
        desk.claim(study="s")
    set_budget(desk, 3)
    assert desk.study().state == StudyState.RUNNING
    run_all(desk)
    study = desk.study()
    assert (study.state, study.spec.trials, sum(study.trials.values())) == (StudyState.COMPLETE, 3, 3)
    assert [desk.trial(0), desk.trial(1)] == first
    twin = load_twin(desk.settings.database_url, "s")
    assert [trial.state.name for trial in twin.trials] == ["COMPLETE"] * 3


def test_a_budget_is_never_below_what_there_is(desk: Desk) -> None:
    create(desk, trials=5, space=SPACE)
    enqueue(desk, A)
    with pytest.raises(InvalidInput, match="has 3 trials made or enqueued") as refused:
        set_budget(desk, 2)
    assert refused.value.field == "trials"
    set_budget(desk, 3)
    run_all(desk)
    assert (desk.study().state, sum(desk.study().trials.values())) == (StudyState.COMPLETE, 3)
    set_budget(desk, 3)
    assert desk.study().state == StudyState.COMPLETE
    create(desk, name="t", trials=2, sampler={"kind": "grid"}, space=SPACE)
    with pytest.raises(InvalidInput, match="the grid has 6 configurations"):
        set_budget(desk, 7, "t")
    move(desk, "stop", "t")
    with pytest.raises(Conflict, match="clone it"):
        set_budget(desk, 3, "t")


def test_a_paused_study_stays_paused_with_a_larger_budget(desk: Desk) -> None:
    create(desk, trials=2)
    move(desk, "pause")
    set_budget(desk, 4)
    assert (desk.study().state, desk.study().spec.trials) == (StudyState.PAUSED, 4)


def test_a_grid_study_runs_every_configuration(desk: Desk) -> None:
    space = {"temporal_size": [1, 3], "clahe": [True, False]}
    create(desk, trials=4, sampler={"kind": "grid"}, space=space, seed=3)
    run_all(desk)
    ran = {tuple(desk.trial(number).parameters.values()) for number in range(4)}
    assert ran == {(size, clahe) for size in (1, 3) for clahe in (True, False)}


# --- Clone ------------------------------------------------------------------------------------------------


def clone(desk: Desk, changes: dict[str, Any], name: str = "t") -> StudySpec:
    with desk.sessions.begin() as session:
        return life.cloned_spec(session, "s", Clone(name=name, changes=changes))


def test_a_clone_has_the_same_spec_and_cache_but_for_what_is_changed(desk: Desk) -> None:
    create(desk, trials=3, space={**SPACE, "dropout": {"low": 0.0, "high": 0.5}}, seed=4)
    spec = desk.study().spec
    plain = clone(desk, {})
    assert plain == spec.model_copy(update={"name": "t", "cache": f"tiny/{'f' * 64}"})
    changed = clone(
        desk,
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
        clone(desk, {"training": {"epochs": 0}})
    with pytest.raises(InvalidInput, match="colour"):
        clone(desk, {"colour": 1})


# --- Warm start -------------------------------------------------------------------------------------------


def test_a_warm_start_copies_the_trials_that_fit_and_suggests_from_them(desk: Desk) -> None:
    tried = [
        {"temporal_size": 5, "clahe": True},
        {"temporal_size": 1, "clahe": True},
        {"temporal_size": 3, "clahe": False},
    ]
    rules = [{"rule": "bound", "threshold": 0.9}]
    desk.create(name="first", space=SPACE, enqueue=tried, trials=3, pruning=rules)
    assignment: FoldAssignment | None = desk.must_claim()
    while assignment is not None:
        assignment = desk.report(assignment, wrong=int(assignment.trial == 1)).next
        desk.leader.round()
    assert [desk.trial(n, "first").state.value for n in range(3)] == ["complete", "pruned", "complete"]

    narrow = {"temporal_size": [1, 5], "clahe": [True, False]}
    for name, trials, parameters in (
        ("all", "all", [tried[0], tried[1]]),
        ("whole", "complete", [tried[0]]),
        ("best", "best 1", [tried[0]]),
    ):
        warm = {"study": "first", "trials": trials}
        desk.create(name=name, space=narrow, trials=4, sampler={"startup_trials": 1}, warm_start=warm)
        inherited = inherited_of(desk, name)
        assert [dict(record.parameters) for record in inherited] == parameters
        assert sum(desk.study(name).trials.values()) == desk.settings.ask_ahead
        assert desk.trial(0, name).parameters == suggest(desk.study(name).spec, [], 0, inherited=inherited)
    pruned = inherited_of(desk, "all")[1]
    assert (pruned.state, pruned.value, len(pruned.curve)) == (TrialState.PRUNED, None, 2)
    delete(desk, "first", "first")
    desk.leader.round()
    assert len(inherited_of(desk, "all")) == 2, "they were copied"


def inherited_of(desk: Desk, name: str) -> list[TrialRecord]:
    with desk.sessions() as session:
        return inherited_trials(session, get_study(session, name).id)


def test_a_warm_start_from_nothing_is_refused(desk: Desk) -> None:
    with pytest.raises(NotFound, match="no study 'first'") as refused:
        create(desk, warm_start={"study": "first"})
    assert refused.value.field == "warm_start.study"
    create(desk, name="first")
    with pytest.raises(InvalidInput, match="no ended trial that fits"):
        create(desk, warm_start={"study": "first"})


# --- Time limits ------------------------------------------------------------------------------------------


def test_a_trial_past_its_time_is_cancelled_and_the_others_go_on(desk: Desk) -> None:
    create(desk, trials=3, trial_seconds=60)
    late, other = desk.must_claim("w1"), desk.must_claim("w2")
    late_next = desk.report(late).next
    assert late_next is not None
    age(
        desk,
        "UPDATE foldwise.leases SET granted_at = granted_at - interval '61 s' "
        "WHERE trial_id = (SELECT id FROM foldwise.trials WHERE number = 0) AND fold = 0",
    )
    desk.leader.round()
    trial = desk.trial(0)
    assert (trial.state, trial.folds_done) == (TrialState.CANCELLED, 1)
    assert trial.end_reason == "trial_seconds: 60 s since its first lease"
    assert desk.beat(late_next, 1) == "abandon"
    assert desk.beat(other, 1) == "continue"
    assert desk.trial(1).state == TrialState.RUNNING


def test_a_study_past_its_time_is_stopped_and_keeps_its_results(desk: Desk) -> None:
    create(desk, trials=3, study_seconds=60)
    create(desk, name="draft", study_seconds=60, start=False)
    assignment = desk.must_claim()
    assert desk.report(assignment).next is not None
    age(
        desk,
        "UPDATE foldwise.studies SET started_at = started_at - interval '61 s', "
        "created_at = created_at - interval '61 s'",
    )
    desk.leader.round()
    study = desk.study()
    assert (study.state, study.reason) == (StudyState.STOPPED, "study_seconds: 60 s since its start")
    assert study.folds_done == 1
    assert study.trials[TrialState.CANCELLED] == desk.settings.ask_ahead
    move(desk, "start", "draft")
    assert desk.study("draft").state == StudyState.RUNNING, "its time begins with its start"


def test_the_time_of_a_study_begins_anew_with_a_larger_budget(desk: Desk) -> None:
    create(desk, trials=1, study_seconds=60)
    run_all(desk)
    age(desk, "UPDATE foldwise.studies SET started_at = started_at - interval '61 s'")
    set_budget(desk, 2)
    assert desk.study().state == StudyState.RUNNING


# --- Priority ---------------------------------------------------------------------------------------------


def test_folds_of_the_highest_priority_are_leased_first_then_of_the_oldest_study(desk: Desk) -> None:
    for name, priority in (("low", -1), ("old", 0), ("new", 0), ("high", 7)):
        create(desk, name=name, priority=priority, trials=1)
    claimed = [desk.must_claim(f"w{n}").study for n in range(4)]
    assert claimed == ["high", "old", "new", "low"]
    assert desk.claim("w5", study="low") is None


def test_a_named_study_is_served_whatever_its_priority(desk: Desk) -> None:
    create(desk, name="low", priority=-100)
    create(desk, name="high", priority=100)
    assert desk.must_claim(study="low").study == "low"


# --- Delete -----------------------------------------------------------------------------------------------


def optuna_names(desk: Desk) -> list[str]:
    with optuna_storage(desk.settings.database_url) as storage:
        return optuna.get_all_study_names(storage)


@pytest.mark.usefixtures("projection")
def test_a_deleted_study_leaves_no_row_here_and_none_in_optuna(desk: Desk) -> None:
    create(desk, name="kept", space=SPACE, trials=1, enqueue=[A])
    run(desk, desk.must_claim())
    before = count_rows(desk)
    create(
        desk, space=SPACE, trials=3, enqueue=[A, A], sampler={"startup_trials": 1}, warm_start={"study": "kept"}
    )
    enqueue(desk, B)
    run_all(desk)
    assert any(fold.reused_from is not None for fold in desk.folds(1))
    delete(desk)
    desk.leader.round()
    assert count_rows(desk) == before
    assert optuna_names(desk) == ["kept"]
    with pytest.raises(NotFound, match="there are: kept"):
        delete(desk)


def test_a_study_is_deleted_only_by_its_name_and_while_it_does_not_run(desk: Desk) -> None:
    create(desk)
    for confirm in (None, "", "t"):
        with pytest.raises(InvalidInput, match="confirm it with its name"):
            delete(desk, confirm=confirm)
    with pytest.raises(Conflict, match="is running"):
        delete(desk)
    held = desk.must_claim()
    move(desk, "pause")
    with pytest.raises(Conflict, match="workers still hold folds"):
        delete(desk)
    assert desk.report(held).decision == "continue"
    delete(desk)
    with pytest.raises(NotFound):
        desk.beat(held, 1)


@pytest.mark.usefixtures("projection")
def test_a_crash_between_our_rows_and_optunas_leaves_work_and_nothing_half(desk: Desk) -> None:
    create(desk, trials=1)
    run_all(desk)
    delete(desk)
    assert optuna_names(desk) == ["s"]
    create(desk, trials=2)
    twin = load_twin(desk.settings.database_url, "s")
    assert [trial.state.name for trial in twin.trials] == ["RUNNING"] * 2, "another study by the same name"
    assert [trial.params for trial in twin.trials] == [desk.trial(n).parameters for n in range(2)]


def test_results_and_a_deletion_at_the_same_moment_do_not_deadlock(desk: Desk) -> None:
    create(desk, trials=2)
    held = [desk.must_claim(f"w{n}") for n in range(2)]
    move(desk, "pause")

    def try_to_delete() -> str:
        try:
            delete(desk)
        except Conflict:
            return "refused"
        return "deleted"

    with ThreadPoolExecutor(3) as pool:
        reports = [pool.submit(desk.report, assignment) for assignment in held]
        outcome = pool.submit(try_to_delete).result(30)
        assert [report.result(30).decision for report in reports] == ["continue"] * 2
    if outcome == "refused":
        delete(desk)
    assert count_rows(desk)["studies"] == 0
