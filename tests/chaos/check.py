"""Compares the tables with what the workers sent and were told, with the rules, and with Optuna's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from sqlalchemy import Connection as DatabaseConnection
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from client.connection import Connection
from client.study_client import StudyClient
from coordinator.store import trial_results, views
from coordinator.store.digests import study_digest
from coordinator.store.studies import get_study
from coordinator.store.tables import StudyRow
from services.contracts import FoldRecord, StudyState, TrialState, TrialView
from tests.chaos.arena import ADMIN, BOUND, SUBJECTS, TRIALS, Arena
from tests.harness.optuna_projection import load_projected

CLIPS = 2 * SUBJECTS
OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


@dataclass
class Findings:
    """What became of a study."""

    folds: int = 0
    lost: int = 0
    doubled: int = 0
    altered: int = 0
    """Stored results that no worker sent under their lease."""

    wrong_answers: int = 0
    """Answers to workers that must not be given."""

    wrong_trials: int = 0
    optuna_mismatches: int = 0
    over_budget: int = 0
    wrong_imports: int = 0
    other_digests: int = 0
    """1 if the study's digest differs from that of the calm run."""

    overdue_p99_s: float = 0.0
    """Seconds that expired leases waited for their end."""

    overdue_max_s: float = 0.0


def check(arena: Arena, exported: bytes, calm: str | None) -> Findings:
    """Look at everything that is left; `calm` is the digest that the study must have, if one is known."""
    found = Findings()
    engine = create_engine(arena.database_url)
    for line in arena.recorded("wrong"):
        print(f"wrong answer: {line}")
        found.wrong_answers += 1
    with engine.connect() as connection:
        _check_results(arena, connection, found)
        _measure_leases(connection, found)
    _check_trials(arena, engine, found)
    _check_import(arena, engine, exported, found)
    if calm is not None:
        with Session(engine) as session:
            digest = study_digest(session, get_study(session, arena.study)).digest
            found.other_digests = int(digest != calm)
    engine.dispose()
    return found


def _check_results(arena: Arena, connection: DatabaseConnection, found: Findings) -> None:
    sent = {}
    for line in arena.recorded("sent"):
        lease, _, predicted = line.partition(" ")
        sent[lease] = json.loads(predicted)
    rows = connection.execute(
        text(
            "SELECT number, fold, lease_id, payload FROM foldwise.results"
            " JOIN foldwise.trials ON trials.id = trial_id"
            " JOIN foldwise.studies ON studies.id = study_id"
            " WHERE lease_id IS NOT NULL AND name = :name"
        ),
        {"name": arena.study},
    ).all()
    stored = {(number, fold): lease for number, fold, lease, _ in rows}
    found.folds = len(rows)
    found.doubled = len(rows) - len(stored)
    found.altered = sum(payload["epochs"][0]["predicted"] != sent.get(lease) for _, _, lease, payload in rows)
    for line in arena.recorded("acknowledged"):
        number, fold, lease = line.split()
        found.lost += stored.get((int(number), int(fold))) != lease


def _measure_leases(connection: DatabaseConnection, found: Findings) -> None:
    overdue = text(
        "SELECT extract(epoch FROM ended_at - expires_at) FROM foldwise.leases WHERE outcome = 'lapsed'"
    )
    seconds = sorted(float(value) for value in connection.scalars(overdue))
    if seconds:
        found.overdue_p99_s = seconds[int(0.99 * (len(seconds) - 1))]
        found.overdue_max_s = seconds[-1]


def _check_trials(arena: Arena, engine: Engine, found: Findings) -> None:
    with Session(engine) as session:
        study = get_study(session, arena.study)
        if study.state != StudyState.COMPLETE:
            raise SystemExit(f"{arena.study} is {study.state}: {study.reason}")
        trials = views.list_trials(session, study, state=None, after=-1, limit=1000)
        found.over_budget = max(0, len(trials) - TRIALS)
        projected_trials = load_projected(arena.database_url, arena.study).trials
        found.optuna_mismatches = abs(len(projected_trials) - len(trials))
        for trial, projected in zip(trials, projected_trials, strict=False):
            records = _records(session, study, trial)
            right = {record.task.fold: record.correct for record in records}
            counted = _counted(session, study, trial)
            if not _follows_the_rules(trial, right, counted):
                found.wrong_trials += 1
                print(f"wrong: {trial}, correct by fold: {right}")
            found.optuna_mismatches += not _equal_in_optuna(trial, right, counted, projected)


def _records(session: Session, study: StudyRow, trial: TrialView) -> list[FoldRecord]:
    row = views.get_trial(session, study, trial.number)
    done = [fold for fold in trial_results.fold_views(session, study, row) if fold.state == "done"]
    return [views.fold_record(session, study, row, fold.index) for fold in done]


def _counted(session: Session, study: StudyRow, trial: TrialView) -> int:
    """How many of a trial's folds enter its figures."""
    row = views.get_trial(session, study, trial.number)
    folds = trial_results.fold_views(session, study, row)
    return sum(fold.state == "done" and not fold.beyond_verdict for fold in folds)


def _follows_the_rules(trial: TrialView, right: Mapping[int, int], counted: int) -> bool:
    # The trials of this study run their folds by index, and `bound` counts the errors of the first ones.
    first_out_of_reach = next(
        (
            done
            for done in range(1, SUBJECTS)
            if all(fold in right for fold in range(done))
            and (CLIPS - sum(2 - right[fold] for fold in range(done))) / CLIPS < BOUND
        ),
        None,
    )
    if trial.state == TrialState.COMPLETE:
        value = sum(right.values()) / CLIPS
        return len(right) == SUBJECTS and trial.value == value and first_out_of_reach is None
    if trial.pruned is not None and trial.pruned.rule != "bound":
        return first_out_of_reach is None or first_out_of_reach >= counted
    if trial.state == TrialState.PRUNED:
        return first_out_of_reach == counted
    # Three workers killed at one fold fail it: that is the rule, and it must be what is said.
    return trial.state == TrialState.FAILED and "expired" in (trial.end_reason or "")


def _equal_in_optuna(trial: TrialView, right: Mapping[int, int], counted: int, projected: Any) -> bool:
    equal = (projected.number, projected.params, projected.state.name) == (
        trial.number,
        trial.parameters,
        OPTUNA_STATES[trial.state],
    )
    # Optuna gives a pruned trial its last intermediate value.
    equal &= projected.value == trial.value or trial.state != TrialState.COMPLETE
    prefix = [right[step] for step in range(len(right)) if all(i in right for i in range(step + 1))]
    if trial.state == TrialState.PRUNED:
        prefix = prefix[:counted]
    curve = {step: sum(prefix[:step]) / (2 * step) for step in range(1, len(prefix) + 1)}
    return bool(equal and projected.intermediate_values == curve)


def _check_import(arena: Arena, engine: Engine, exported: bytes, found: Findings) -> None:
    with engine.connect() as connection:
        names = text("SELECT count(*) FROM foldwise.studies WHERE name = 'imported'")
        if not connection.scalar(names):
            return
    again = BytesIO()
    with Connection(arena.url(0), ADMIN, give_up_after=60) as connected:
        StudyClient(connected).export("imported", again)
    # The first line has the study's name.
    found.wrong_imports += again.getvalue().splitlines()[1:] != exported.splitlines()[1:]
    projected = load_projected(arena.database_url, "imported").trials
    found.optuna_mismatches += len(projected) != len(exported.splitlines()) - 1
