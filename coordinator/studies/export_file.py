"""Exports a study from the tables to a study file, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from coordinator.store.conditions import among
from coordinator.store.studies import get_study, parsed_spec, study_split
from coordinator.store.tables import FoldRow, InheritedTrialRow, ResultRow, StudyRow, TrialRow
from coordinator.store.views import enqueued_parameters
from services.contracts import FoldState, TrialState
from services.study_file import (
    EnqueuedLine,
    FoldLine,
    InheritedLine,
    ResultLine,
    ReusedLine,
    StudyLine,
    TrialFoldLine,
    TrialLine,
)

TRIALS_AT_ONCE = 20
"""Trials read at once, with all their results."""


def export_lines(session: Session, name: str) -> Iterator[bytes]:
    """The lines of a study file, read some trials at a time; the session's transaction must be a snapshot.

    Raises:
        NotFound: no study has this name.
    """
    study = get_study(session, name)
    yield _line(_study_line(session, study))
    after = -1
    while trials := session.scalars(
        select(TrialRow)
        .where(TrialRow.study_id == study.id, TrialRow.number > after)
        .order_by(TrialRow.number)
        .limit(TRIALS_AT_ONCE)
    ).all():
        folds, beyond = _folds(session, [trial.id for trial in trials])
        for trial in trials:
            yield _line(_trial_line(trial, folds[trial.id], beyond[trial.id]))
        after = trials[-1].number
        session.expunge_all()


def _study_line(session: Session, study: StudyRow) -> StudyLine:
    inherited = select(InheritedTrialRow).where(InheritedTrialRow.study_id == study.id)
    trials = select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id)
    return StudyLine.model_validate(
        {
            "spec": parsed_spec(study),
            "state": study.state,
            "reason": study.reason,
            "dataset": study.dataset,
            "fingerprint": study.fingerprint,
            "classes": study.classes,
            "split_hash": study.split_hash,
            "fold_order": study.fold_order,
            "plan": study.plan,
            "folds": [
                FoldLine(
                    name=fold.name,
                    clip_ids=tuple(fold.clip_ids),
                    labels=tuple(fold.labels),
                    validation_clip_ids=tuple(fold.validation_clip_ids),
                    validation_labels=tuple(fold.validation_labels),
                )
                for fold in study_split(session, study)
            ],
            "enqueued": [
                EnqueuedLine(number=number, parameters=parameters)
                for number, parameters in enqueued_parameters(session, study.id).items()
            ],
            "inherited": [
                InheritedLine.model_validate(
                    {"parameters": t.parameters, "state": t.state, "value": t.value, "curve": t.curve}
                )
                for t in session.scalars(inherited.order_by(InheritedTrialRow.place))
            ],
            "created_at": _utc(study.created_at),
            "started_at": None if study.started_at is None else _utc(study.started_at),
            "trials": session.scalar(trials),
        }
    )


def _trial_line(trial: TrialRow, folds: list[TrialFoldLine], beyond: list[int]) -> TrialLine:
    return TrialLine.model_validate(
        {
            "number": trial.number,
            "parameters": trial.parameters,
            "state": TrialState(trial.state),
            "learnt_order": trial.learnt_order,
            "value": trial.value,
            "pruned": trial.pruned,
            "beyond_verdict": beyond,
            "end_reason": trial.end_reason,
            "created_at": _utc(trial.created_at),
            "ended_at": None if trial.ended_at is None else _utc(trial.ended_at),
            "folds": folds,
        }
    )


def _folds(
    session: Session, trial_ids: list[int]
) -> tuple[dict[int, list[TrialFoldLine]], dict[int, list[int]]]:
    """The folds of each trial, and the indices of those beyond its verdict."""
    origin = aliased(TrialRow)
    rows = session.execute(
        select(FoldRow, ResultRow, origin.number)
        .outerjoin(ResultRow, (ResultRow.trial_id == FoldRow.trial_id) & (ResultRow.fold == FoldRow.fold))
        .outerjoin(origin, origin.id == ResultRow.reused_from)
        .where(among(FoldRow.trial_id, trial_ids))
        .order_by(FoldRow.trial_id, FoldRow.fold)
    )
    folds: dict[int, list[TrialFoldLine]] = {trial_id: [] for trial_id in trial_ids}
    beyond: dict[int, list[int]] = {trial_id: [] for trial_id in trial_ids}
    for fold, result, reused_from in rows:
        # A lease is not part of a file: there the fold is one to run.
        state = FoldState.PENDING if fold.state == FoldState.LEASED else fold.state
        line = None if result is None else _result_line(result, reused_from)
        folds[fold.trial_id].append(TrialFoldLine.model_validate({"state": state, "result": line}))
        if result is not None and result.beyond_verdict:
            beyond[fold.trial_id].append(fold.fold)
    return folds, beyond


def _result_line(result: ResultRow, reused_from: int | None) -> ResultLine | ReusedLine:
    if reused_from is not None:
        return ReusedLine(reused_from=reused_from, received_at=_utc(result.received_at))
    return ResultLine(
        payload=result.payload,
        sha256=result.sha256,
        best_epoch=result.best_epoch,
        correct=result.correct,
        confusion=tuple(map(tuple, result.confusion)),
        received_at=_utc(result.received_at),
    )


def _line(content: BaseModel) -> bytes:
    return content.model_dump_json().encode() + b"\n"


def _utc(moment: datetime) -> datetime:
    # The database gives times in its session's zone; a file must be the same from every coordinator.
    return moment.astimezone(UTC)
