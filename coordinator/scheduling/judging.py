"""The verdict on a trial after a finished fold, and the epoch at which its folds count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sqlalchemy import bindparam, update
from sqlalchemy.orm import Session

from coordinator.pruning import fold_order
from coordinator.pruning.fold_table import fold_table
from coordinator.pruning.rules import first_decision, folds_judged
from coordinator.store.fold_epochs import epochs_of_result, fold_epochs
from coordinator.store.folds import FoldCount
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from services.contracts import PruneDecision, StudySpec, Verdict
from services.contracts.base import Objective
from services.running_scores import FoldEpochs, RunningScore, counts_at, running_scores


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a finished fold means for its trial."""

    verdict: Verdict

    score: float
    """What the study maximises, over the folds that count."""

    common_epoch: int | None
    """Epoch at which all folds count, from 0; None where it is chosen in each fold by itself."""

    counts_moved: Mapping[int, FoldEpochs]
    """Folds that are stored already and now count at `common_epoch`, but did not before."""


def judge(
    session: Session,
    study: StudyRow,
    spec: StudySpec,
    trial: TrialRow,
    row: ResultRow,
    before: Sequence[FoldCount],
) -> Judgement:
    """Decide on a trial after a fold whose result, `row`, is not stored yet.

    Args:
        session: the caller's open transaction, which holds the lock of the trial.
        study: the trial's study.
        spec: the study's spec.
        trial: the trial that is judged.
        row: the new result. Where one epoch is chosen for all folds, its counts become those of that epoch.
        before: the trial's other finished folds.
    """
    earlier = _finished(session, study, spec, trial, before)
    split = study_split(session, study)[row.fold]
    folds = {**earlier, row.fold: epochs_of_result(study, spec, split, row)}
    order = fold_order.order_of(session, study, trial)
    prefix = _prefix(folds, order)
    pruned = None
    if not fold_order.is_spared(study, spec, trial):
        pruned = first_decision(
            spec,
            order,
            [folds[fold] for fold in prefix],
            study.clips,
            fold_table(session, study, trial, row),
            judged=len(_prefix(earlier, order)),
        )
    judged = prefix if pruned is None else folds_judged(order, pruned)
    running = _running(folds, judged, spec.objective)
    counted = list(folds.values()) if pruned is None else [folds[fold] for fold in judged]
    counts = counts_at(counted, running.epoch)
    complete = pruned is None and len(prefix) == len(order)
    verdict = Verdict(
        decision="complete" if complete else "pruned" if pruned else "continue",
        trial_accuracy=sum(correct for correct, _ in counts) / sum(clips for _, clips in counts),
        pruned=pruned,
    )
    if spec.counted_epoch != "best_common":
        return Judgement(verdict=verdict, score=running.value, common_epoch=None, counts_moved={})
    _count_at(row, folds[row.fold], running.epoch)
    moved = earlier
    if earlier and _running(earlier, _prefix(earlier, order), spec.objective).epoch == running.epoch:
        moved = {}
    return Judgement(verdict=verdict, score=running.value, common_epoch=running.epoch, counts_moved=moved)


def move_counts(session: Session, trial_id: int, judgement: Judgement) -> None:
    """Store the counts of the earlier folds at the epoch at which they now count."""
    if judgement.common_epoch is not None:
        _move(session, trial_id, judgement.counts_moved, judgement.common_epoch)


def count_again(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> None:
    """Store the counts of all folds at the epoch at which they count, for trials that were not judged here."""
    spec = parsed_spec(study)
    if spec.counted_epoch != "best_common":
        return
    finished = fold_epochs(session, study, [trial.id for trial in trials], confusions=True, beyond=True)
    for trial in trials:
        folds, order = finished[trial.id], fold_order.order_of(session, study, trial)
        if folds:
            decision = None if trial.pruned is None else PruneDecision.model_validate(trial.pruned)
            judged = _prefix(folds, order) if decision is None else folds_judged(order, decision)
            _move(session, trial.id, folds, _running(folds, judged, spec.objective).epoch)


def _move(session: Session, trial_id: int, moved: Mapping[int, FoldEpochs], epoch: int) -> None:
    folds = []
    for fold, epochs in moved.items():
        row = ResultRow(fold=fold)
        _count_at(row, epochs, epoch)
        folds.append({"of_fold": fold, "best": row.best_epoch, "right": row.correct, "counts": row.confusion})
    of_fold = (ResultRow.trial_id == trial_id, ResultRow.fold == bindparam("of_fold"))
    values: dict[str, Any] = {
        "best_epoch": bindparam("best"),
        "correct": bindparam("right"),
        "confusion": bindparam("counts"),
    }
    if folds:
        session.connection().execute(update(ResultRow).where(*of_fold).values(values), folds)


def _finished(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, before: Sequence[FoldCount]
) -> dict[int, FoldEpochs]:
    if spec.objective == "accuracy" and spec.counted_epoch != "best_common":
        return {count.fold: FoldEpochs(clips=count.clips, correct=(count.correct,)) for count in before}
    return fold_epochs(session, study, [trial.id], confusions=True)[trial.id]


def _prefix(folds: Mapping[int, FoldEpochs], order: Sequence[int]) -> list[int]:
    return list(takewhile(folds.__contains__, order))


def _running(folds: Mapping[int, FoldEpochs], judged: Sequence[int], objective: Objective) -> RunningScore:
    # While the first fold of the order is still running, there is nothing but the later ones.
    return running_scores([folds[fold] for fold in judged or sorted(folds)], objective)[-1]


def _count_at(row: ResultRow, fold: FoldEpochs, epoch: int) -> None:
    row.best_epoch = fold.own_epoch(epoch)
    row.correct = fold.correct[row.best_epoch]
    row.confusion = fold.confusions[row.best_epoch].tolist()
