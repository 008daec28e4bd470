"""All trials of a study with all their folds, for the study page. Ended trials are read once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Function, FunctionFilter, Row, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from coordinator.store.conditions import among
from coordinator.store.memory import StudyMemory
from coordinator.store.tables import FoldRow, LeaseRow, ResultRow, StudyRow, TrialRow
from services.contracts import FoldState, PruneDecision, TrialState
from services.contracts.base import Objective
from services.search_space import ParameterValue

STUDIES_KEPT = 8
"""Studies per database kept in memory; a thousand ended trials of 118 folds take about 1 MB."""

PENDING, RUNNING, FAILED, DONE = 0, 1, 2, 3
"""Values of a cell; `DONE + n` is a fold with n correct clips."""

_Key = tuple[int, str, datetime | None]
_memory: StudyMemory[dict[_Key, MappedTrial]] = StudyMemory(studies=STUDIES_KEPT)


@dataclass(frozen=True, kw_only=True)
class MappedTrial:
    """A trial and its folds."""

    number: int
    state: TrialState
    parameters: dict[str, ParameterValue]
    value: float | None
    uar: float | None
    """Mean recall of the classes over these folds; None until the trial is complete or pruned."""

    uf1: float | None
    """Mean F1, as `uar`."""

    pruned: PruneDecision | None
    end_reason: str | None
    seconds: float | None
    """From its creation to its end; None until it ends."""

    folds_done: int
    """Finished folds that count; so do the next two."""

    correct: int
    clips: int
    """Test clips of these folds."""

    folds_beyond_verdict: int
    """Finished folds that do not count."""

    cells: array[int]
    """One cell per fold, unsigned 16 bit, see `DONE`."""

    @property
    def accuracy(self) -> float | None:
        """Accuracy (0 to 1) pooled over the finished folds; None without any."""
        return self.correct / self.clips if self.clips else None

    def score(self, objective: Objective) -> float | None:
        """What the study maximises, over the finished folds; None where it is not known."""
        return {"accuracy": self.accuracy, "uar": self.uar, "uf1": self.uf1}[objective]


def fold_map(session: Session, study: StudyRow) -> list[MappedTrial]:
    """The trials of a study in order of their numbers."""
    trials = session.execute(
        select(
            TrialRow.id,
            TrialRow.number,
            TrialRow.state,
            TrialRow.parameters,
            TrialRow.value,
            TrialRow.uar,
            TrialRow.uf1,
            TrialRow.pruned,
            TrialRow.end_reason,
            TrialRow.created_at,
            TrialRow.ended_at,
        )
        .where(TrialRow.study_id == study.id)
        .order_by(TrialRow.number)
    ).all()
    kept = _kept_of(session, study.id)
    missing = [row for row in trials if _key(row) not in kept]
    read = _read(session, study, missing)
    mapped = [kept.get(_key(row)) or read[row.id] for row in trials]
    _keep(session, study.id, {_key(row): read[row.id] for row in missing if TrialState(row.state).over})
    return mapped


def _key(row: Row[Any]) -> _Key:
    # The time of its end is part of it, because a database may be restored to an earlier day.
    return row.id, row.state, row.ended_at


def _kept_of(session: Session, study_id: int) -> dict[_Key, MappedTrial]:
    with _memory.lock:
        return _memory.of(session).get(study_id, {})


def _keep(session: Session, study_id: int, ended: dict[_Key, MappedTrial]) -> None:
    with _memory.lock:
        studies = _memory.of(session)
        # A new mapping: other threads may read the old one now.
        studies[study_id] = {**studies.get(study_id, {}), **ended}


def _read(session: Session, study: StudyRow, trials: Sequence[Row[Any]]) -> dict[int, MappedTrial]:
    ids = [row.id for row in trials]

    def counting(sums: Function[Any]) -> FunctionFilter[Any]:
        return sums.filter(~ResultRow.beyond_verdict)

    # Whole studies are read by one scan of their results, which the planner would not choose for a join.
    done = {
        row.trial_id: row
        for row in session.execute(
            select(
                ResultRow.trial_id,
                func.array_agg(aggregate_order_by(ResultRow.fold, ResultRow.fold)).label("folds"),
                func.array_agg(aggregate_order_by(ResultRow.correct, ResultRow.fold)).label("correct"),
                counting(func.count()).label("folds_done"),
                counting(func.sum(ResultRow.correct)).label("counted_correct"),
                counting(func.sum(ResultRow.clips)).label("clips"),
            )
            .where(among(ResultRow.trial_id, ids))
            .group_by(ResultRow.trial_id)
        )
    }
    not_done = session.execute(
        select(FoldRow.trial_id, FoldRow.fold, FoldRow.state, LeaseRow.id)
        .outerjoin(
            LeaseRow,
            (LeaseRow.trial_id == FoldRow.trial_id)
            & (LeaseRow.fold == FoldRow.fold)
            & LeaseRow.outcome.is_(None),
        )
        .where(
            among(FoldRow.trial_id, ids),
            FoldRow.state.in_([FoldState.LEASED, FoldState.FAILED]),
            # As in the index of the folds that are not done.
            FoldRow.state != FoldState.DONE.value,
        )
    ).all()
    cells = {trial_id: array("H", bytes(2 * study.fold_count)) for trial_id in ids}
    for trial_id, row in done.items():
        for fold, correct in zip(row.folds, row.correct, strict=True):
            cells[trial_id][fold] = DONE + correct
    for trial_id, fold, state, lease in not_done:
        if state == FoldState.FAILED:
            cells[trial_id][fold] = FAILED
        elif lease is not None:
            cells[trial_id][fold] = RUNNING
    return {
        row.id: MappedTrial(
            number=row.number,
            state=TrialState(row.state),
            parameters=row.parameters,
            value=row.value,
            uar=row.uar,
            uf1=row.uf1,
            pruned=PruneDecision.model_validate(row.pruned) if row.pruned else None,
            end_reason=row.end_reason,
            seconds=(row.ended_at - row.created_at).total_seconds() if row.ended_at else None,
            folds_done=done[row.id].folds_done if row.id in done else 0,
            correct=int(done[row.id].counted_correct or 0) if row.id in done else 0,
            clips=int(done[row.id].clips or 0) if row.id in done else 0,
            folds_beyond_verdict=len(done[row.id].folds) - done[row.id].folds_done if row.id in done else 0,
            cells=cells[row.id],
        )
        for row in trials
    }
