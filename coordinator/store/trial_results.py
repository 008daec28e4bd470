"""The folds of one trial, in short or with the predictions of every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from coordinator.store.studies import parsed_spec
from coordinator.store.tables import FoldRow, LeaseRow, ResultRow, StudyFoldRow, StudyRow, TrialRow, WorkerRow
from services import scores
from services.contracts import FoldState, FoldView, Reading, ReadingsView, TrialState, configure
from services.readings import PredictedFold, readings


@dataclass(frozen=True, kw_only=True)
class FoldOutcome:
    """A fold of a trial: the clips that it tests, and its result."""

    index: int
    name: str
    state: FoldState
    clip_ids: tuple[str, ...]
    labels: tuple[int, ...]
    """True label of each of these clips."""

    term: int
    worker: str | None
    """Name of the worker that holds it, or ran it."""

    reused_from: int | None
    """Number of the trial with equal parameters that ran it."""

    result: dict[str, Any] | None
    """As in `FoldResult`, not parsed; None where the fold is not done."""

    best_epoch: int | None
    """From 0."""

    correct: int | None

    beyond_verdict: bool
    """Whether it enters no figure of the trial."""

    validation_labels: tuple[int, ...]
    """True labels of its validation clips."""


def fold_views(session: Session, study: StudyRow, trial: TrialRow) -> list[FoldView]:
    """All folds of a trial in order of their index, in short."""
    return [
        FoldView(
            index=fold.index,
            name=fold.name,
            state=fold.state,
            term=fold.term,
            worker=fold.worker,
            correct=fold.correct,
            clips=len(fold.labels),
            best_epoch=fold.best_epoch,
            epochs=len(fold.result["epochs"]) if fold.result else None,
            seconds=fold.result["provenance"]["seconds"] if fold.result else None,
            reused_from=fold.reused_from,
            beyond_verdict=fold.beyond_verdict,
        )
        for fold in fold_outcomes(session, study, trial)
    ]


def fold_outcomes(session: Session, study: StudyRow, trial: TrialRow) -> list[FoldOutcome]:
    """All folds of a trial in order of their index."""
    origin = aliased(TrialRow)
    rows = session.execute(
        select(
            FoldRow.fold,
            StudyFoldRow.name,
            FoldRow.state,
            FoldRow.term,
            StudyFoldRow.clip_ids,
            StudyFoldRow.labels,
            StudyFoldRow.validation_labels,
            WorkerRow.name.label("worker"),
            origin.number.label("reused_from"),
            ResultRow.payload,
            ResultRow.best_epoch,
            ResultRow.correct,
            ResultRow.beyond_verdict,
        )
        .join(StudyFoldRow, (StudyFoldRow.study_id == study.id) & (StudyFoldRow.fold == FoldRow.fold))
        .outerjoin(ResultRow, (ResultRow.trial_id == FoldRow.trial_id) & (ResultRow.fold == FoldRow.fold))
        .outerjoin(origin, origin.id == ResultRow.reused_from)
        .outerjoin(
            LeaseRow,
            (LeaseRow.trial_id == FoldRow.trial_id)
            & (LeaseRow.fold == FoldRow.fold)
            & (LeaseRow.term == FoldRow.term),
        )
        .outerjoin(WorkerRow, WorkerRow.id == LeaseRow.worker_id)
        .where(FoldRow.trial_id == trial.id)
        .order_by(FoldRow.fold)
    ).all()
    return [
        FoldOutcome(
            index=row.fold,
            name=row.name,
            state=FoldState(row.state),
            clip_ids=tuple(row.clip_ids),
            labels=tuple(row.labels),
            term=row.term,
            # The last worker that held a reused fold did not run it.
            worker=row.worker if row.reused_from is None else None,
            reused_from=row.reused_from,
            result=row.payload,
            best_epoch=row.best_epoch,
            correct=row.correct,
            beyond_verdict=bool(row.beyond_verdict),
            validation_labels=tuple(row.validation_labels),
        )
        for row in rows
    ]


def readings_view(
    study: StudyRow, trial: TrialRow, outcomes: Sequence[FoldOutcome], subject_of: Mapping[str, str]
) -> ReadingsView:
    """All readings of the best epoch of a trial.

    Args:
        study: of the trial.
        trial: the trial.
        outcomes: its folds.
        subject_of: subject by clip id; empty where they are unknown.
    """
    spec = parsed_spec(study)
    epochs = configure(trial.parameters, spec.training)[1].epochs
    counted = [outcome for outcome in outcomes if outcome.result is not None and not outcome.beyond_verdict]
    clips = [clip for outcome in counted for clip in outcome.clip_ids]
    folds = [_predicted(outcome, outcome.result or {}, epochs) for outcome in counted]
    found: tuple[Reading, ...] = ()
    if folds:
        found = readings(
            folds,
            len(study.classes),
            spec.objective,
            counts=spec.counted_epoch,
            # While a trial has gaps, it is chosen over the folds before the first one.
            common_epoch=max(outcome.best_epoch or 0 for outcome in counted)
            if spec.counted_epoch == "best_common"
            else None,
            complete=trial.state == TrialState.COMPLETE,
        )
    return ReadingsView(
        trial=trial.number,
        clips=len(clips),
        subjects=len({subject_of[clip] for clip in clips}) if subject_of else None,
        counts=spec.counted_epoch,
        readings=found,
    )


def _predicted(outcome: FoldOutcome, result: Mapping[str, Any], epochs: int) -> PredictedFold:
    made = result["epochs"]
    validation = None
    if outcome.validation_labels:
        predicted = [epoch["validation_predicted"] for epoch in made]
        validation = scores.best_epoch(outcome.validation_labels, predicted)[0]
    return PredictedFold(
        labels=outcome.labels,
        epochs=[epoch["predicted"] for epoch in made],
        trained=made[0]["loss"] is not None,
        whole=len(made) == epochs or result["diverged"],
        validation_epoch=validation,
    )
