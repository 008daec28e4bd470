"""Keeps Optuna's tables equal to ours, for its dashboard and tools.

Optuna's own storage writes one parameter, value or step per statement. Here many trials are written with a few
statements, inside the caller's transaction, so that what a replaced leader writes is rolled back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from sqlalchemy import ARRAY, Engine, Float, Integer, cast, delete, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from coordinator.optimizer.records import TrialRecord
from coordinator.optimizer.translation import OPTUNA_STATES, distributions
from coordinator.store.conditions import among
from coordinator.store.deadlines import BoundedConnection
from coordinator.store.revisions import RETURN
from services.contracts import TrialState
from services.errors import Conflict
from services.search_space import ParameterValue, SearchSpace

TRIALS_DELETED_AT_ONCE = 500
"""Trials that one transaction deletes, with all their steps."""


class ProjectionConflict(Exception):
    """Another program wrote to Optuna's study, and adding to it cannot make it equal to ours."""


@dataclass(frozen=True)
class OptunaStudy:
    """Optuna's study of a name, as it is in the caller's transaction, which holds its row locked."""

    id: int
    trials: int
    """Number of its trials."""

    is_new: bool
    """Whether it was created in this transaction."""


def create_tables(engine: Engine) -> None:
    """Create Optuna's tables where they are missing, and upgrade those of an older Optuna.

    Several processes may call it at once; an upgrade can then fail in one of them, which repeats it.

    Raises:
        Conflict: the tables are those of a newer Optuna.
    """

    def connection() -> BoundedConnection:
        # Optuna takes a URL and makes its own engine; its connections get the limits of ours.
        taken = engine.raw_connection()
        driver = taken.driver_connection
        taken.detach()
        assert isinstance(driver, BoundedConnection)  # noqa: S101 - every engine is made by `connect`
        return driver

    url = engine.url.render_as_string(hide_password=False)
    storage = optuna.storages.RDBStorage(
        url,
        engine_kwargs={"poolclass": NullPool, "creator": connection},
        # Checked below, because Optuna's own check gives no class of error that means only this.
        skip_compatibility_check=True,
    )
    try:
        found, known = storage.get_current_version(), storage.get_head_version()
        if found not in storage.get_all_versions():
            raise Conflict(
                f"the database has version {found} of Optuna's tables, this program knows {known}: {RETURN}"
            )
        if found != known:
            storage.upgrade()
    finally:
        # Optuna has no call that closes a storage.
        storage.remove_session()
        storage.engine.dispose()


def open_study(session: Session, name: str) -> OptunaStudy:
    """Lock Optuna's study of this name; it is created if Optuna does not have it."""
    study, direction = models.StudyModel, models.StudyDirectionModel
    named = select(study.study_id).where(study.study_name == name).with_for_update()
    study_id = session.scalar(named)
    if study_id is not None:
        trials = select(func.count()).where(models.TrialModel.study_id == study_id)
        return OptunaStudy(study_id, session.scalar(trials) or 0, is_new=False)
    study_id = session.scalar(insert(study).values(study_name=name).returning(study.study_id))
    assert study_id is not None  # noqa: S101 - a row was inserted
    session.execute(insert(direction).values(study_id=study_id, objective=0, direction=StudyDirection.MAXIMIZE))
    return OptunaStudy(study_id, 0, is_new=True)


def project(session: Session, study: OptunaStudy, space: SearchSpace, records: Sequence[TrialRecord]) -> None:
    """Make Optuna's trials equal to these records. Repeating it changes nothing.

    Args:
        session: the caller's transaction.
        study: opened in it.
        space: of the study.
        records: trials in order of their numbers.

    Raises:
        ProjectionConflict: Optuna lacks an earlier number, or its trial of a number is another one.
    """
    new = [record for record in records if record.number >= study.trials]
    for expected, record in enumerate(new, start=study.trials):
        if record.number != expected:
            raise ProjectionConflict(f"trial {record.number} cannot follow {expected} trials in Optuna")
    if len(new) < len(records):
        _update(session, study, records[: len(records) - len(new)])
    if new:
        _add(session, study, space, new)


def delete_some(session: Session, name: str) -> bool:
    """Delete the last trials of Optuna's study of this name, and the study with its first ones.

    What is left is a study with fewer trials, numbered from 0. Repeating it after the end changes nothing.

    Returns:
        Whether something is left.
    """
    trial = models.TrialModel
    named = models.StudyModel.study_name == name
    study_id = session.scalar(select(models.StudyModel.study_id).where(named).with_for_update())
    if study_id is None:
        return False
    last = select(trial.trial_id).where(trial.study_id == study_id).order_by(trial.number.desc())
    ids = session.scalars(last.limit(TRIALS_DELETED_AT_ONCE)).all()
    for of_trial in (*_OF_TRIAL, trial):
        _delete(session, of_trial, among(of_trial.trial_id, ids))
    if len(ids) == TRIALS_DELETED_AT_ONCE:
        return True
    for table in (*_OF_STUDY, models.StudyModel):
        _delete(session, table, table.study_id == study_id)
    return False


_OF_TRIAL: tuple[Any, ...] = (
    models.TrialParamModel,
    models.TrialValueModel,
    models.TrialIntermediateValueModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
    models.TrialHeartbeatModel,
)

_OF_STUDY: tuple[Any, ...] = (
    models.StudyDirectionModel,
    models.StudyUserAttributeModel,
    models.StudySystemAttributeModel,
)


@dataclass
class _Theirs:
    """A trial as Optuna has it."""

    id: int
    over: bool
    state: optuna.trial.TrialState
    value: float | None = None
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
    first_missing: int = 1
    """The first step that it lacks; 1 where its steps have gaps."""


@dataclass(frozen=True)
class _Step:
    trial_id: int
    step: int
    value: float


def _add(session: Session, study: OptunaStudy, space: SearchSpace, records: Sequence[TrialRecord]) -> None:
    known = distributions(space)
    now = _now()
    trials = [
        {
            "number": record.number,
            "study_id": study.id,
            "state": OPTUNA_STATES[record.state],
            "_datetime_start_utc": now,
            "_datetime_complete_utc": now if record.state.over else None,
        }
        for record in records
    ]
    made = session.execute(
        insert(models.TrialModel).returning(models.TrialModel.number, models.TrialModel.trial_id), trials
    )
    id_of: dict[int, int] = {row.number: row.trial_id for row in made}
    as_json = {name: distribution_to_json(distribution) for name, distribution in known.items()}
    parameters = [
        {
            "trial_id": id_of[record.number],
            "param_name": name,
            "param_value": known[name].to_internal_repr(value),
            "distribution_json": as_json[name],
        }
        for record in records
        for name, value in record.parameters.items()
    ]
    if parameters:
        session.execute(insert(models.TrialParamModel), parameters)
    _add_steps(session, [step for record in records for step in _steps(id_of[record.number], record, 1)])
    _add_ends(session, [(id_of[record.number], record) for record in records])


def _update(session: Session, study: OptunaStudy, records: Sequence[TrialRecord]) -> None:
    theirs = _read(session, study, records)
    ended: list[tuple[int, TrialRecord]] = []
    steps: list[_Step] = []
    for record in records:
        trial = theirs.get(record.number)
        if trial is None:
            raise ProjectionConflict(f"Optuna has no trial {record.number}")
        # Parameters are compared when a trial ends.
        if record.state.over and trial.parameters != dict(record.parameters):
            raise ProjectionConflict(f"trial {record.number} has other parameters in Optuna")
        if trial.over:
            other_value = record.value is not None and trial.value != record.value
            if trial.state != OPTUNA_STATES[record.state] or other_value:
                raise ProjectionConflict(f"trial {record.number} ended otherwise in Optuna")
            continue
        steps += _steps(trial.id, record, trial.first_missing)
        if record.state.over:
            ended.append((trial.id, record))
    _add_steps(session, steps)
    for state in {record.state for _, record in ended}:
        ids = [trial_id for trial_id, record in ended if record.state == state]
        session.execute(
            update(models.TrialModel)
            .where(among(models.TrialModel.trial_id, ids))
            .values(state=OPTUNA_STATES[state], _datetime_complete_utc=_now()),
            execution_options={"synchronize_session": False},
        )
    _add_ends(session, ended)


def _read(session: Session, study: OptunaStudy, records: Sequence[TrialRecord]) -> Mapping[int, _Theirs]:
    trial, step = models.TrialModel, models.TrialIntermediateValueModel
    wanted = select(trial.number, trial.trial_id, trial.state).where(
        trial.study_id == study.id, among(trial.number, [record.number for record in records])
    )
    theirs = {
        number: _Theirs(trial_id, state.is_finished(), state)
        for number, trial_id, state in session.execute(wanted)
    }
    by_id = {found.id: found for found in theirs.values()}
    ended = [theirs[record.number].id for record in records if record.state.over and record.number in theirs]
    parameter, value = models.TrialParamModel, models.TrialValueModel
    of_ended = select(
        parameter.trial_id, parameter.param_name, parameter.param_value, parameter.distribution_json
    ).where(among(parameter.trial_id, ended))
    for trial_id, name, internal, distribution in session.execute(of_ended):
        by_id[trial_id].parameters[name] = json_to_distribution(distribution).to_external_repr(internal)
    for trial_id, found in session.execute(
        select(value.trial_id, value.value).where(among(value.trial_id, ended), value.objective == 0)
    ):
        by_id[trial_id].value = found
    running = [found.id for found in theirs.values() if not found.over]
    counted = (
        select(step.trial_id, func.count(), func.max(step.step))
        .where(among(step.trial_id, running))
        .group_by(step.trial_id)
    )
    for trial_id, count, last in session.execute(counted):
        by_id[trial_id].first_missing = count + 1 if count == last else 1
    return theirs


def _steps(trial_id: int, record: TrialRecord, first: int) -> Iterable[_Step]:
    for number, accuracy in enumerate(record.curve[first - 1 :], start=first):
        yield _Step(trial_id, number, accuracy)


def _add_steps(session: Session, steps: Sequence[_Step]) -> None:
    if not steps:
        return
    step = models.TrialIntermediateValueModel
    rows = func.unnest(
        literal([row.trial_id for row in steps], ARRAY(Integer)),
        literal([row.step for row in steps], ARRAY(Integer)),
        literal([row.value for row in steps], ARRAY(Float(53))),
    ).table_valued("trial_id", "step", "accuracy")
    rows = rows.render_derived()
    finite = cast(step.TrialIntermediateValueType.FINITE, step.__table__.c.intermediate_value_type.type)
    session.execute(
        upsert(step)
        .from_select(
            ["trial_id", "step", "intermediate_value", "intermediate_value_type"],
            select(rows.c.trial_id, rows.c.step, rows.c.accuracy, finite),
        )
        .on_conflict_do_nothing()
    )


def _add_ends(session: Session, ended: Sequence[tuple[int, TrialRecord]]) -> None:
    """Write the values and attributes of trials that have just ended."""
    values = [
        {
            "trial_id": trial_id,
            "objective": 0,
            "value": value,
            "value_type": models.TrialValueModel.TrialValueType.FINITE,
        }
        for trial_id, record in ended
        if (value := _value(record)) is not None
    ]
    if values:
        session.execute(upsert(models.TrialValueModel).on_conflict_do_nothing(), values)
    attributes = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, record in ended
        for key, value in record.attributes.items()
    ]
    if attributes:
        session.execute(upsert(models.TrialUserAttributeModel).on_conflict_do_nothing(), attributes)


def _value(record: TrialRecord) -> float | None:
    """The value that Optuna gives a trial; for a pruned one its last step, as `Study.tell` does."""
    if record.state == TrialState.COMPLETE:
        return record.value
    return record.curve[-1] if record.state == TrialState.PRUNED and record.curve else None


def _delete(session: Session, table: Any, which: Any) -> None:
    session.execute(delete(table).where(which), execution_options={"synchronize_session": False})


def _now() -> datetime:
    # Optuna stores UTC without a zone.
    return datetime.now(UTC).replace(tzinfo=None)
