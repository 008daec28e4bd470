"""Folds that failed, and when their trial fails with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.pruning.fold_order import order_of
from coordinator.scheduling.leases import FAILED
from coordinator.scheduling.trials import end_trial
from coordinator.store.folds import FoldCount, finished_prefix, fold_counts
from coordinator.store.tables import FoldRow, LeaseRow, StudyRow, TrialRow
from services.contracts import FoldState, StudySpec, TrialState


def fail_fold(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, fold: int, reason: str
) -> None:
    """Record that a fold failed; its trial fails with it.

    With a feedback delay, the trial fails only once all folds before the failed one, in the trial's order, are
    counted: until then a rule may end it. Otherwise, a helper that runs a later fold would decide how it ends.
    """
    session.execute(
        update(FoldRow).where(FoldRow.trial_id == trial.id, FoldRow.fold == fold).values(state=FoldState.FAILED)
    )
    if spec.feedback_delay is None:
        end_trial(session, trial, TrialState.FAILED, reason)
    else:
        fail_if_next(session, study, trial)


def fail_if_next(session: Session, study: StudyRow, trial: TrialRow) -> bool:
    """End a trial as failed if the first fold that is not counted, in its order, failed; whether it did."""
    folds = select(FoldRow.fold).where(FoldRow.trial_id == trial.id, FoldRow.state == FAILED)
    failed = set(session.scalars(folds))
    if not failed:
        return False
    done = fold_counts(session, [trial.id])[trial.id]
    following = next_in_order(done, order_of(session, study, trial), failed)
    if following is None:
        return False
    of_fold = (LeaseRow.trial_id == trial.id, LeaseRow.fold == following)
    reason = session.scalar(select(LeaseRow.message).where(*of_fold).order_by(LeaseRow.term.desc()).limit(1))
    end_trial(session, trial, TrialState.FAILED, reason or f"fold {following} failed")
    return True


def next_in_order(done: Sequence[FoldCount], order: Sequence[int], failed: Collection[int]) -> int | None:
    """The first fold of an order that is not among the finished ones, if it failed; else None."""
    prefix = len(finished_prefix(done, order))
    following = order[prefix] if prefix < len(order) else None
    return following if following in failed else None
