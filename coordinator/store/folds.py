"""Finished folds of trials, and the task of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.conditions import among
from coordinator.store.tables import (
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
)
from services import scores
from services.contracts import (
    Economies,
    FoldTask,
    StudyPlan,
    StudySpec,
    configure,
)
from services.folds import AllClips
from services.seeds import fold_seed


@dataclass(frozen=True, kw_only=True)
class FoldCount:
    """The counts of a finished fold."""

    fold: int
    correct: int
    clips: int


def fold_task(study: StudyRow, spec: StudySpec, trial: TrialRow, split: StudyFoldRow) -> FoldTask:
    """The task of a fold, which follows from these rows alone; `spec` is the study's parsed spec."""
    hyperparameters, training = configure(trial.parameters, spec.training)
    plan = plan_of(study, spec)
    return FoldTask(
        study=study.name,
        trial=trial.number,
        fold=split.fold,
        fold_name=split.name,
        folds=study.fold_count,
        hyperparameters=hyperparameters,
        training=training,
        economies=_economies(spec),
        compute=plan.compute,
        memory_format=plan.memory_format,
        threads=plan.threads,
        dataset=study.dataset,
        fingerprint=study.fingerprint,
        classes=tuple(study.classes),
        test_clips=tuple(split.clip_ids),
        validation_clips=tuple(split.validation_clip_ids),
        split_hash=study.split_hash,
        outer=None if isinstance(spec.protocol, AllClips) else spec.protocol.outer,
        seed=_seed(spec.seed, study, trial, split),
        study_seed=spec.seed,
        trains_on_all=isinstance(spec.protocol, AllClips),
        cross_validated=spec.cross_validated,
    )


def plan_of(study: StudyRow, spec: StudySpec) -> StudyPlan:
    """How the study's folds are computed.

    A study whose file is older than plans has none; its settings then say what was computed.
    """
    if study.plan is not None:
        return StudyPlan.model_validate(study.plan)
    chosen = spec.compute
    return StudyPlan(
        precision="fp32" if chosen.precision == "auto" else chosen.precision,
        compiled=chosen.compiled is True,
    )


def next_task(task: FoldTask, study: StudyRow, trial: TrialRow, split: StudyFoldRow) -> FoldTask:
    """The task of another fold of the same trial, in a fraction of the time of `fold_task`."""
    return task.model_copy(
        update={
            "fold": split.fold,
            "fold_name": split.name,
            "test_clips": tuple(split.clip_ids),
            "validation_clips": tuple(split.validation_clip_ids),
            "seed": _seed(task.study_seed, study, trial, split),
        }
    )


def confusion_counts(session: Session, study: StudyRow, trial: TrialRow) -> scores.Counts:
    """Confusion counts over the finished folds of a trial that count."""
    size = len(study.classes)
    return pooled_confusions(session, [trial.id]).get(trial.id, np.zeros((size, size), dtype=np.int64))


def pooled_confusions(session: Session, trial_ids: Sequence[int]) -> dict[int, scores.Counts]:
    """Confusion counts over the finished folds that count of each trial that has one, by its id."""
    rows = select(ResultRow.trial_id, ResultRow.confusion).where(
        among(ResultRow.trial_id, trial_ids), ~ResultRow.beyond_verdict
    )
    pooled: dict[int, scores.Counts] = {}
    for trial_id, matrix in session.execute(rows) if trial_ids else ():
        counts = np.asarray(matrix, dtype=np.int64)
        pooled[trial_id] = pooled[trial_id] + counts if trial_id in pooled else counts
    return pooled


def keep_scores(session: Session, study: StudyRow, trial: TrialRow) -> None:
    """Keep UAR and UF1 of a trial that ends with its row, so that tables need not read its folds."""
    counts = confusion_counts(session, study, trial)
    trial.uar, trial.uf1 = scores.unweighted_average_recall(counts), scores.unweighted_f1(counts)


def fold_counts(session: Session, trial_ids: Sequence[int]) -> dict[int, list[FoldCount]]:
    """Finished folds of each trial that count, by its id and in order of the fold; an empty list for none."""
    counts: dict[int, list[FoldCount]] = {trial_id: [] for trial_id in trial_ids}
    for trial_id, fold, correct, clips in session.execute(
        select(ResultRow.trial_id, ResultRow.fold, ResultRow.correct, ResultRow.clips)
        .where(among(ResultRow.trial_id, trial_ids), ~ResultRow.beyond_verdict)
        .order_by(ResultRow.trial_id, ResultRow.fold)
    ):
        counts[trial_id].append(FoldCount(fold=fold, correct=correct, clips=clips))
    return counts


def finished_prefix(counts: Sequence[FoldCount], order: Sequence[int]) -> list[tuple[int, int]]:
    """(correct, clips) of the folds that are finished without a gap from the first of `order`, in its order."""
    done = {count.fold: (count.correct, count.clips) for count in counts}
    return [done[fold] for fold in takewhile(done.__contains__, order)]


def _economies(spec: StudySpec) -> Economies:
    """The study's economies, but a fold may end at a perfect epoch only where that epoch counts anyway."""
    if spec.counted_epoch != "best_per_fold":
        return spec.economies.model_copy(update={"stop_when_perfect": False})
    return spec.economies


def _seed(study_seed: int, study: StudyRow, trial: TrialRow, split: StudyFoldRow) -> int:
    return fold_seed(
        study_seed=study_seed, parameters=trial.parameters, fold=split.fold, fingerprint=study.fingerprint
    )
