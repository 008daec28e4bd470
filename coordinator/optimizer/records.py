"""A study's trials as the sampler and the projection see them, read from our tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.pruning.curves import curves_of
from coordinator.store.fold_map import MappedTrial
from coordinator.store.tables import InheritedTrialRow, StudyRow, TrialRow
from services.contracts import TrialState
from services.search_space import ParameterValue


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as the sampler and the projection see it."""

    number: int
    state: TrialState
    parameters: Mapping[str, ParameterValue]
    value: float | None
    """What the study maximises (0 to 1), of a complete trial."""

    curve: Sequence[float] = ()
    """Running score of the finished prefix: of its first 1, 2, ... folds."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Shown with the trial in Optuna's dashboard."""


def trial_records(
    session: Session,
    study: StudyRow,
    trials: Sequence[TrialRow],
    *,
    over: Collection[int] | None = None,
) -> list[TrialRecord]:
    """Trials of a study with their curves and attributes.

    Args:
        session: only read from.
        study: of the trials.
        trials: in the order of the records.
        over: numbers of the trials whose outcome is shown; the others appear as running, with their parameters
            only. None shows all trials as they are.
    """
    shown = [trial for trial in trials if over is None or trial.number in over]
    curves = curves_of(session, study, shown)
    records = {
        trial.number: trial_record(
            trial,
            curve=curves[trial.id],
            attributes={"foldwise": trial.pruned or trial.end_reason} if trial.end_reason else {},
        )
        for trial in shown
    }
    return [
        records.get(trial.number)
        or TrialRecord(number=trial.number, state=TrialState.RUNNING, parameters=trial.parameters, value=None)
        for trial in trials
    ]


def trial_record(
    trial: TrialRow | MappedTrial, *, curve: Sequence[float] = (), attributes: Mapping[str, Any] | None = None
) -> TrialRecord:
    """One trial, with this curve and these attributes."""
    return TrialRecord(
        number=trial.number,
        state=TrialState(trial.state),
        parameters=trial.parameters,
        value=trial.value,
        curve=curve,
        attributes=attributes or {},
    )


def inherited_trials(session: Session, study_id: int) -> list[TrialRecord]:
    """The trials that a study's sampler inherited from another study, numbered by their index in that list."""
    rows = session.scalars(
        select(InheritedTrialRow)
        .where(InheritedTrialRow.study_id == study_id)
        .order_by(InheritedTrialRow.place)
    )
    return [
        TrialRecord(
            number=row.place,
            state=TrialState(row.state),
            parameters=row.parameters,
            value=row.value,
            curve=row.curve,
        )
        for row in rows
    ]
