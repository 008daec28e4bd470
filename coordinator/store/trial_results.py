"""The folds of one trial, in short or with the predictions of every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from coordinator.store.tables import FoldRow, LeaseRow, ResultRow, StudyFoldRow, StudyRow, TrialRow, WorkerRow
from services.contracts import FoldState, FoldView


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
        )
        for row in rows
    ]
