"""The complete trials of a study, as pruning rules need them, kept in memory because they never change.

Every result is judged against all of them. If they were read each time, the time of a report would grow with
the study; so only those are read that completed since the last time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

from sqlalchemy import Boolean, bindparam, func, literal_column, not_, select
from sqlalchemy.orm import Session

from coordinator.pruning.fold_order import order_of
from coordinator.pruning.trials_of_order import TrialsOfOrder
from coordinator.store.fold_epochs import fold_epochs
from coordinator.store.memory import StudyMemory
from coordinator.store.studies import parsed_spec
from coordinator.store.tables import StudyRow, TrialRow
from services.contracts.base import Objective
from services.pruning.rule import ComparedTrial

STUDIES_KEPT = 32
"""Studies per database kept in memory; a thousand complete trials of 118 folds take about 2 MB, or 10 MB where
one epoch is chosen for all folds."""

PAGE = 100
"""Trials read at once."""

_memory: StudyMemory[_CompleteTrials] = StudyMemory(studies=STUDIES_KEPT)
_complete = (TrialRow.study_id == bindparam("study_id"), TrialRow.completed.is_not(None))
_own = literal_column("trials.xmin = pg_current_xact_id()::xid", Boolean)
_NEWEST = select(TrialRow.completed, _own).where(*_complete).order_by(TrialRow.completed.desc()).limit(1)
_NEWEST_OF_OTHERS = select(func.max(TrialRow.completed)).where(*_complete, not_(_own))
_PAGE = (
    select(TrialRow)
    .where(*_complete, TrialRow.completed > bindparam("after"), TrialRow.completed <= bindparam("last"))
    .order_by(TrialRow.completed)
)


class ComparedTrials:
    """The complete trials with which rules compare a trial: of its order of folds, and known to it."""

    def __init__(self, session: Session, study: StudyRow, trial: TrialRow, known_below: int | None) -> None:
        """See `FoldTable`.

        Args:
            session: the caller's open transaction.
            study: of the trial.
            trial: the trial that is judged.
            known_below: the lowest number whose trial is not known to it; None if all complete ones are.
        """
        self._session, self._study = session, study
        self._learnt_order, self._known_below = trial.learnt_order, known_below

    def at_step(self, step: int) -> Sequence[float]:
        """See `FoldTable.complete_at_step`, by number of the trial."""
        with _as_seen_by(self._session, self._study) as kept:
            return kept.of_order[self._learnt_order].at_step(step, self._known_below)

    def middle(self) -> ComparedTrial | None:
        """See `FoldTable.median_trial`."""
        with _as_seen_by(self._session, self._study) as kept:
            return kept.of_order[self._learnt_order].median_trial(self._known_below)

    def best(self) -> ComparedTrial | None:
        """See `FoldTable.best_trial`."""
        with _as_seen_by(self._session, self._study) as kept:
            return kept.of_order[self._learnt_order].best_trial(self._known_below)


def next_completed(session: Session, study_id: int) -> int:
    """The value of `TrialRow.completed` for the next trial that completes.

    The transaction holds the lock of the study.
    """
    last = select(func.max(TrialRow.completed)).where(TrialRow.study_id == study_id)
    return (session.scalar(last) or 0) + 1


@contextmanager
def _as_seen_by(session: Session, study: StudyRow) -> Iterator[_CompleteTrials]:
    found = session.execute(_NEWEST, {"study_id": study.id}).one_or_none()
    newest, own = (found[0] or 0, found[1]) if found else (0, False)
    # A trial that this transaction has completed must not be kept: the transaction may be rolled back.
    committed = (session.scalar(_NEWEST_OF_OTHERS, {"study_id": study.id}) or 0) if own else newest
    with _memory.lock:
        studies = _memory.of(session)
        kept = studies.get(study.id)
        if kept is None or kept.newest > newest:
            # More than the database has: it was restored to an earlier day.
            kept = studies[study.id] = _CompleteTrials(parsed_spec(study).objective)
        _read_up_to(committed, session, study, kept)
        if own:
            kept = deepcopy(kept)
            _read_up_to(newest, session, study, kept)
        yield kept


class _CompleteTrials:
    def __init__(self, objective: Objective) -> None:
        self.newest = 0
        self.of_order = {False: TrialsOfOrder(objective), True: TrialsOfOrder(objective)}


def _read_up_to(newest: int, session: Session, study: StudyRow, kept: _CompleteTrials) -> None:
    needs_confusions = parsed_spec(study).objective != "accuracy"
    while kept.newest < newest:
        last = min(kept.newest + PAGE, newest)
        page = session.scalars(_PAGE, {"study_id": study.id, "after": kept.newest, "last": last}).all()
        folds_of = fold_epochs(session, study, [trial.id for trial in page], confusions=needs_confusions)
        orders = [order_of(session, study, trial) for trial in page]
        # No query from here on: a page is kept whole or not at all.
        for trial, order in zip(page, orders, strict=True):
            folds = folds_of[trial.id]
            kept.of_order[trial.learnt_order].add(trial.number, [folds[fold] for fold in order])
        kept.newest = last
