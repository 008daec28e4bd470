"""Read-only questions to the tables, answered as contract types or plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, and_, exists, extract, func, or_, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from coordinator.store.tables import (
    EnqueuedRow,
    FoldRow,
    LeaseRow,
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services import scores
from services.contracts import (
    ConfusionView,
    Economies,
    FoldRecord,
    FoldResult,
    FoldTask,
    PruneDecision,
    SplitClip,
    SplitFold,
    SplitView,
    StudySpec,
    StudyState,
    StudyView,
    TrialCost,
    TrialState,
    TrialView,
    WorkerView,
    configure,
)
from services.errors import Conflict, NotFound
from services.folds import AllClips, HeldOut
from services.seeds import fold_seed


@dataclass(frozen=True, kw_only=True)
class FoldCount:
    """What counts of a finished fold."""

    fold: int
    correct: int
    clips: int


def get_study(session: Session, name: str, *, lock: bool = False) -> StudyRow:
    """A study by name.

    Raises:
        NotFound: no study has this name; the message lists those there are.
    """
    wanted = select(StudyRow).where(StudyRow.name == name)
    study = session.scalar(wanted)
    if study is None:
        names = session.scalars(select(StudyRow.name).order_by(StudyRow.id.desc()).limit(10)).all()
        there = f"there are: {', '.join(names)}" if names else "there is none yet"
        raise NotFound(f"there is no study {name!r} ({there})", field="name")
    return lock_study(session, study.id) if lock else study


def lock_study(session: Session, study_id: int) -> StudyRow:
    """A study as it is now, locked against all that lock it too."""
    # Not against those who only refer to it: PostgreSQL takes a shared lock on the study for a trial that is
    # changed twice in a transaction, and two trials that end together would wait for each other's.
    return session.get_one(StudyRow, study_id, with_for_update={"key_share": True}, populate_existing=True)


def parsed_spec(study: StudyRow) -> StudySpec:
    """The spec of a study. Parsing is the dearest part of many a request, so it is done once for equal ones."""
    stored, spec = _specs.get(study.id, (None, None))
    if spec is None or stored != study.spec:
        spec = StudySpec.model_validate(study.spec)
        _specs[study.id] = study.spec, spec
    return spec


_specs: dict[int, tuple[dict[str, Any], StudySpec]] = {}


def study_split(session: Session, study: StudyRow) -> Sequence[StudyFoldRow]:
    """The split of a study, by fold; rows of no session. It never changes, so it is read once."""
    # Of another database the study of this id was made at another time.
    known = (study.id, study.created_at, study.split_hash)
    split = _splits.get(known)
    if split is None:
        columns = StudyFoldRow.__table__.c
        rows = session.execute(select(*columns).where(columns.study_id == study.id).order_by(columns.fold))
        split = tuple(StudyFoldRow(**row) for row in rows.mappings())
        if not split:
            raise NoResultFound(f"the study {study.name} was deleted meanwhile")
        if len(_splits) >= SPLITS_KEPT:
            _splits.clear()
        _splits[known] = split
    return split


SPLITS_KEPT = 100
"""So many studies' splits are remembered, of some 50 kB each."""

_splits: dict[tuple[int, datetime, str], Sequence[StudyFoldRow]] = {}


def list_studies(
    session: Session, *, state: StudyState | None = None, after: str | None = None, limit: int | None = None
) -> list[StudyView]:
    """Studies, oldest first; of one state, and those made after the study named `after`.

    Raises:
        NotFound: there is no study `after`.
    """
    wanted = select(StudyRow).order_by(StudyRow.id).limit(limit)
    if state is not None:
        wanted = wanted.where(StudyRow.state == state)
    if after is not None:
        wanted = wanted.where(StudyRow.id > get_study(session, after).id)
    return [study_view(session, study) for study in session.scalars(wanted).all()]


def study_view(session: Session, study: StudyRow) -> StudyView:
    """A study with its counts and its best trial."""
    states = session.execute(
        select(TrialRow.state, func.count()).where(TrialRow.study_id == study.id).group_by(TrialRow.state)
    ).all()
    counts = dict.fromkeys(TrialState, 0) | {TrialState(state): count for state, count in states}
    done = session.scalar(
        select(func.count())
        .select_from(ResultRow)
        .join(TrialRow, TrialRow.id == ResultRow.trial_id)
        .where(TrialRow.study_id == study.id)
    )
    return StudyView(
        name=study.name,
        state=StudyState(study.state),
        reason=study.reason,
        spec=parsed_spec(study),
        dataset=study.dataset,
        fingerprint=study.fingerprint,
        classes=tuple(study.classes),
        clips=study.clips,
        folds=study.fold_count,
        split_hash=study.split_hash,
        fold_order=None if study.fold_order is None else tuple(study.fold_order),
        trials=counts,
        folds_done=done or 0,
        chance=1 / len(study.classes),
        best=best_trial(session, study),
    )


def best_trial(session: Session, study: StudyRow) -> TrialView | None:
    """The complete trial of highest value, earliest on ties; with none, the pruned one of highest bound."""
    complete = session.scalar(
        select(TrialRow)
        .where(TrialRow.study_id == study.id, TrialRow.state == TrialState.COMPLETE)
        .order_by(TrialRow.value.desc(), TrialRow.number)
        .limit(1)
    )
    if complete is not None:
        return _trial_view(session, study, complete)
    errors = func.sum(ResultRow.clips - ResultRow.correct)
    pruned = session.scalar(
        select(TrialRow)
        .join(ResultRow, ResultRow.trial_id == TrialRow.id)
        .where(TrialRow.study_id == study.id, TrialRow.state == TrialState.PRUNED)
        .group_by(TrialRow.id)
        .order_by(errors, TrialRow.number)
        .limit(1)
    )
    return _trial_view(session, study, pruned) if pruned is not None else None


def list_trials(
    session: Session,
    study: StudyRow,
    *,
    state: TrialState | None,
    after: int,
    limit: int,
    order: Literal["number", "value"] = "number",
    worker: str | None = None,
) -> list[TrialView]:
    """Trials that come after trial `after` in this order; -1 is before all.

    By value the best come first, and those without one last; equal ones by number.

    Args:
        session: only read from.
        study: whose trials.
        state: only trials of this state.
        after: number of a trial.
        limit: at most so many.
        order: by number or by value.
        worker: only trials of which a worker of this name holds a fold now.

    Raises:
        NotFound: by value, there is no trial `after`.
    """
    wanted = select(TrialRow).where(TrialRow.study_id == study.id)
    if state is not None:
        wanted = wanted.where(TrialRow.state == state)
    if worker is not None:
        held = exists().where(
            LeaseRow.trial_id == TrialRow.id,
            LeaseRow.outcome.is_(None),
            WorkerRow.id == LeaseRow.worker_id,
            WorkerRow.name == worker,
        )
        wanted = wanted.where(held)
    if order == "number":
        wanted = wanted.where(TrialRow.number > after).order_by(TrialRow.number)
    else:
        wanted = wanted.order_by(TrialRow.value.desc().nulls_last(), TrialRow.number)
        if after >= 0:
            wanted = wanted.where(_behind(get_trial(session, study, after)))
    return trial_views(session, study, session.scalars(wanted.limit(limit)).all())


def complete_trials(session: Session, study: StudyRow) -> Sequence[TrialRow]:
    """The complete trials of a study, by number."""
    wanted = select(TrialRow).where(TrialRow.study_id == study.id, TrialRow.state == TrialState.COMPLETE)
    return session.scalars(wanted.order_by(TrialRow.number)).all()


def _behind(trial: TrialRow) -> ColumnElement[bool]:
    if trial.value is None:
        return and_(TrialRow.value.is_(None), TrialRow.number > trial.number)
    equal = and_(TrialRow.value == trial.value, TrialRow.number > trial.number)
    return or_(TrialRow.value < trial.value, equal, TrialRow.value.is_(None))


def get_trial(session: Session, study: StudyRow, number: int) -> TrialRow:
    """A trial by number.

    Raises:
        NotFound: the study has no such trial.
    """
    trial = session.scalar(select(TrialRow).where(TrialRow.study_id == study.id, TrialRow.number == number))
    if trial is None:
        raise NotFound(f"study {study.name} has no trial {number}", field="number")
    return trial


def trial_views(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> list[TrialView]:
    """Trials with what of them is done, in two queries however many they are."""
    ids = [trial.id for trial in trials]
    sums = {
        trial_id: (int(folds), int(correct), int(clips))
        for trial_id, folds, correct, clips in session.execute(
            select(
                ResultRow.trial_id,
                func.count(),
                func.sum(ResultRow.correct),
                func.sum(ResultRow.clips),
            )
            .where(ResultRow.trial_id.in_(ids))
            .group_by(ResultRow.trial_id)
        )
    }
    held = session.execute(
        select(LeaseRow.trial_id, WorkerRow.name)
        .join(WorkerRow, WorkerRow.id == LeaseRow.worker_id)
        .where(LeaseRow.trial_id.in_(ids), LeaseRow.outcome.is_(None))
    ).all()
    holders = {row.trial_id: row.name for row in held}
    views = []
    for trial in trials:
        folds, correct, clips = sums.get(trial.id, (0, 0, 0))
        views.append(
            TrialView(
                number=trial.number,
                state=TrialState(trial.state),
                parameters=trial.parameters,
                value=trial.value,
                folds_done=folds,
                folds=study.fold_count,
                correct=correct,
                clips=clips,
                running_accuracy=correct / clips if clips else None,
                pruned=PruneDecision.model_validate(trial.pruned) if trial.pruned else None,
                learnt_order=trial.learnt_order,
                end_reason=trial.end_reason,
                worker=holders.get(trial.id),
            )
        )
    return views


def fold_record(session: Session, study: StudyRow, trial: TrialRow, index: int) -> FoldRecord:
    """A finished fold: what was asked and what came of it.

    Raises:
        NotFound: the study has no such fold.
        Conflict: the fold has no result.
    """
    fold = session.get(FoldRow, (trial.id, index))
    if fold is None:
        raise NotFound(
            f"study {study.name} has no fold {index}; its folds are 0 to {study.fold_count - 1}", field="index"
        )
    result = session.get(ResultRow, (trial.id, index))
    if result is None:
        raise Conflict(
            f"fold {index} of trial {trial.number} is {fold.state} and has no result (the trial is "
            f"{trial.state})",
            field="index",
        )
    origin = session.get_one(TrialRow, result.reused_from) if result.reused_from is not None else None
    return FoldRecord(
        task=fold_task(study, parsed_spec(study), trial, study_split(session, study)[index]),
        result=FoldResult.model_validate(result.payload),
        best_epoch=result.best_epoch,
        correct=result.correct,
        reused_from=origin.number if origin else None,
    )


def fold_task(study: StudyRow, spec: StudySpec, trial: TrialRow, split: StudyFoldRow) -> FoldTask:
    """What is asked of whoever runs a fold; it follows from these rows alone. `spec` is the study's."""
    hyperparameters, training = configure(trial.parameters, spec.training)
    return FoldTask(
        study=study.name,
        trial=trial.number,
        fold=split.fold,
        fold_name=split.name,
        folds=study.fold_count,
        hyperparameters=hyperparameters,
        training=training,
        economies=_economies(spec),
        compute=spec.compute,
        dataset=study.dataset,
        fingerprint=study.fingerprint,
        classes=tuple(study.classes),
        test_clips=tuple(split.clip_ids),
        split_hash=study.split_hash,
        outer=None if isinstance(spec.protocol, AllClips) else spec.protocol.outer,
        seed=fold_seed(
            study_seed=spec.seed, parameters=trial.parameters, fold=split.fold, fingerprint=study.fingerprint
        ),
        study_seed=spec.seed,
        trains_on_all=isinstance(spec.protocol, AllClips),
        cross_validated=spec.cross_validated,
    )


def _economies(spec: StudySpec) -> Economies:
    """Those of the study; held-out clips must not say when training ends."""
    if isinstance(spec.protocol, HeldOut):
        return spec.economies.model_copy(update={"stop_when_perfect": False})
    return spec.economies


def confusion_view(session: Session, study: StudyRow, trial: TrialRow) -> ConfusionView:
    """Confusion counts over the finished folds of a trial, and the scores they give."""
    counts = confusion_counts(session, study, trial)
    return ConfusionView(
        classes=tuple(study.classes),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        accuracy=scores.accuracy(counts),
        uar=scores.unweighted_average_recall(counts),
        uf1=scores.unweighted_f1(counts),
    )


def confusion_counts(session: Session, study: StudyRow, trial: TrialRow) -> scores.Counts:
    """Confusion counts over the finished folds of a trial."""
    size = len(study.classes)
    counts = np.zeros((size, size), dtype=np.int64)
    for matrix in session.scalars(select(ResultRow.confusion).where(ResultRow.trial_id == trial.id)):
        counts += np.asarray(matrix, dtype=np.int64)
    return counts


def split_view(session: Session, study: StudyRow, subjects: Mapping[str, str]) -> SplitView:
    """The split of a study; `subjects` has that of each clip, or nothing where they are not known."""
    return SplitView(
        split_hash=study.split_hash,
        classes=tuple(study.classes),
        folds=tuple(
            SplitFold(
                name=fold.name,
                clips=tuple(
                    SplitClip(clip_id=clip_id, label=label, subject=subjects.get(clip_id))
                    for clip_id, label in zip(fold.clip_ids, fold.labels, strict=True)
                ),
            )
            for fold in study_split(session, study)
        ),
    )


def trial_costs(session: Session, study: StudyRow, *, after: int, limit: int) -> list[TrialCost]:
    """What the finished folds of the trials that come after trial `after` took, by number."""
    wanted = (
        select(TrialRow.id, TrialRow.number)
        .where(TrialRow.study_id == study.id, TrialRow.number > after)
        .order_by(TrialRow.number)
        .limit(limit)
    )
    numbers = {row.id: row.number for row in session.execute(wanted)}
    provenance = ResultRow.payload["provenance"]
    reused = ResultRow.reused_from.is_not(None)
    rows = session.execute(
        select(
            ResultRow.trial_id,
            provenance["device"].as_string().label("device"),
            reused.label("reused"),
            func.count().label("folds"),
            func.sum(provenance["seconds"].as_float()).label("seconds"),
            func.sum(func.json_array_length(ResultRow.payload["epochs"])).label("epochs"),
            func.sum(provenance["clip_passes"].as_integer()).label("clip_passes"),
        )
        .where(ResultRow.trial_id.in_(numbers))
        .group_by("trial_id", "device", "reused")
        .order_by("device")
    ).all()
    of_trial: dict[int, list[Any]] = {trial_id: [] for trial_id in numbers}
    for row in rows:
        of_trial[row.trial_id].append(row)
    costs = []
    for trial_id, number in numbers.items():
        run = [row for row in of_trial[trial_id] if not row.reused]
        again = [row for row in of_trial[trial_id] if row.reused]
        costs.append(
            TrialCost(
                number=number,
                folds_run=sum(row.folds for row in run),
                folds_reused=sum(row.folds for row in again),
                seconds={row.device: row.seconds for row in run},
                seconds_reused=sum(row.seconds for row in again),
                epochs=sum(row.epochs for row in run),
                clip_passes=sum(row.clip_passes for row in run),
            )
        )
    return costs


def list_workers(session: Session, *, seen_within: float) -> list[WorkerView]:
    """Workers heard of in the last `seen_within` seconds, with the fold each holds."""
    silence = extract("epoch", func.clock_timestamp() - WorkerRow.last_seen)
    rows = session.execute(
        select(WorkerRow, silence, StudyRow.name, TrialRow.number, LeaseRow.fold)
        .outerjoin(LeaseRow, (LeaseRow.worker_id == WorkerRow.id) & LeaseRow.outcome.is_(None))
        .outerjoin(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .outerjoin(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(silence < seen_within)
        .order_by(WorkerRow.first_seen)
    ).all()
    return [
        WorkerView(
            id=worker.id,
            name=worker.name,
            device=worker.device,
            pod_uid=worker.pod_uid,
            seconds_since_seen=float(seconds),
            study=study,
            trial=trial,
            fold=fold,
            draining=worker.drain is not None,
        )
        for worker, seconds, study, trial, fold in rows
    ]


def enqueued_parameters(session: Session, study_id: int) -> dict[int, dict[str, Any]]:
    """Configurations enqueued for a study that was there already, by the number of their trial."""
    rows = session.scalars(
        select(EnqueuedRow).where(EnqueuedRow.study_id == study_id).order_by(EnqueuedRow.number)
    )
    return {row.number: row.parameters for row in rows}


def fold_counts(session: Session, trial_ids: Sequence[int]) -> dict[int, list[FoldCount]]:
    """Finished folds of each trial, in order of the fold; an empty list for a trial without one."""
    counts: dict[int, list[FoldCount]] = {trial_id: [] for trial_id in trial_ids}
    for trial_id, fold, correct, clips in session.execute(
        select(ResultRow.trial_id, ResultRow.fold, ResultRow.correct, ResultRow.clips)
        .where(ResultRow.trial_id.in_(trial_ids))
        .order_by(ResultRow.trial_id, ResultRow.fold)
    ):
        counts[trial_id].append(FoldCount(fold=fold, correct=correct, clips=clips))
    return counts


def finished_prefix(counts: Sequence[FoldCount], order: Sequence[int]) -> list[tuple[int, int]]:
    """(correct, clips) of the folds that are finished without a gap from the first of `order`, in its order."""
    done = {count.fold: (count.correct, count.clips) for count in counts}
    return [done[fold] for fold in takewhile(done.__contains__, order)]


def _trial_view(session: Session, study: StudyRow, trial: TrialRow) -> TrialView:
    return trial_views(session, study, [trial])[0]
