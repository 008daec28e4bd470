"""Read-only answers as contract types: studies, trials, folds, costs, workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, exists, extract, func, or_, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import among
from coordinator.store.folds import confusion_counts, fold_task, pooled_confusions
from coordinator.store.studies import get_study, parsed_spec, study_split
from coordinator.store.tables import (
    EnqueuedRow,
    FoldRow,
    LeaseRow,
    ResultRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services import scores
from services.contracts import (
    ConfusionView,
    FoldRecord,
    FoldResult,
    PruneDecision,
    StudyPlan,
    StudyState,
    StudyView,
    TrialCost,
    TrialState,
    TrialView,
    WorkerView,
)
from services.errors import Conflict, NotFound


def list_studies(
    session: Session, *, state: StudyState | None = None, after: str | None = None, limit: int | None = None
) -> list[StudyView]:
    """Studies, oldest first; only those of one state, and those created after the study named `after`.

    Raises:
        NotFound: there is no study `after`.
    """
    wanted = select(StudyRow).order_by(StudyRow.id).limit(limit)
    if state is not None:
        wanted = wanted.where(StudyRow.state == state)
    if after is not None:
        wanted = wanted.where(StudyRow.id > get_study(session, after).id)
    return study_views(session, session.scalars(wanted).all())


def study_view(session: Session, study: StudyRow) -> StudyView:
    """A study with its counts and its best trial."""
    return study_views(session, [study])[0]


def study_views(session: Session, studies: Sequence[StudyRow]) -> list[StudyView]:
    """Studies with their counts and their best trials, in a few queries for any number of studies."""
    ids = [study.id for study in studies]
    counts = {study_id: dict.fromkeys(TrialState, 0) for study_id in ids}
    for study_id, state, count in session.execute(
        select(TrialRow.study_id, TrialRow.state, func.count())
        .where(among(TrialRow.study_id, ids))
        .group_by(TrialRow.study_id, TrialRow.state)
    ):
        counts[study_id][TrialState(state)] = count
    of_results = select(TrialRow.study_id, func.count()).join(ResultRow, ResultRow.trial_id == TrialRow.id)
    of_results = of_results.where(among(TrialRow.study_id, ids)).group_by(TrialRow.study_id)
    done = {study_id: int(count) for study_id, count in session.execute(of_results)}
    best = best_trials(session, studies)
    return [
        StudyView(
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
            plan=None if study.plan is None else StudyPlan.model_validate(study.plan),
            trials=counts[study.id],
            folds_done=done.get(study.id, 0),
            chance=1 / len(study.classes),
            best=best.get(study.id),
        )
        for study in studies
    ]


def best_trial(session: Session, study: StudyRow) -> TrialView | None:
    """The complete trial of highest value, earliest on ties; without any, the pruned one of highest bound."""
    return best_trials(session, [study]).get(study.id)


def best_trials(session: Session, studies: Sequence[StudyRow]) -> dict[int, TrialView]:
    """The best trial of each study that has one, as `best_trial` says, by the study's id."""
    complete = select(TrialRow.id, _rank(TrialRow.value.desc())).where(
        among(TrialRow.study_id, [study.id for study in studies]), TrialRow.state == TrialState.COMPLETE
    )
    best = _first(session, complete)
    pruned = (
        select(TrialRow.id, _rank(func.sum(ResultRow.clips - ResultRow.correct)))
        .join(ResultRow, ResultRow.trial_id == TrialRow.id)
        .where(
            among(TrialRow.study_id, [study.id for study in studies if study.id not in best]),
            TrialRow.state == TrialState.PRUNED,
            ~ResultRow.beyond_verdict,
        )
        .group_by(TrialRow.id)
    )
    best |= _first(session, pruned)
    folds = {study.id: study.fold_count for study in studies}
    views = _trial_views(session, list(best.values()), folds)
    return dict(zip(best, views, strict=True))


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
    """Trials that come after trial `after` in this order.

    By value, the best come first and those without a value last; equal ones are ordered by number.

    Args:
        session: only read from.
        study: of the trials.
        state: only trials of this state.
        after: number of a trial; -1 for the first ones.
        limit: maximum number of trials.
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
    """Trials of a study with their finished folds and their workers, in two queries for any number of them."""
    return _trial_views(session, trials, {study.id: study.fold_count})


def fold_record(session: Session, study: StudyRow, trial: TrialRow, index: int) -> FoldRecord:
    """A finished fold: its task and its result.

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


def confusion_view(session: Session, study: StudyRow, trial: TrialRow) -> ConfusionView:
    """Confusion counts over the finished folds of a trial that count, and the scores that follow from them."""
    counts = confusion_counts(session, study, trial)
    return ConfusionView(
        classes=tuple(study.classes),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        accuracy=scores.accuracy(counts),
        uar=scores.unweighted_average_recall(counts),
        uf1=scores.unweighted_f1(counts),
    )


def trial_costs(session: Session, study: StudyRow, *, after: int, limit: int) -> list[TrialCost]:
    """Costs of the finished folds of the trials after trial `after`, by number."""
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
        .where(among(ResultRow.trial_id, numbers))
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
    """Workers that made contact in the last `seen_within` seconds, with the fold that each holds."""
    seconds_since_seen = extract("epoch", func.clock_timestamp() - WorkerRow.last_seen)
    rows = session.execute(
        select(WorkerRow, seconds_since_seen, StudyRow.name, TrialRow.number, LeaseRow.fold)
        .outerjoin(LeaseRow, (LeaseRow.worker_id == WorkerRow.id) & LeaseRow.outcome.is_(None))
        .outerjoin(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .outerjoin(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(seconds_since_seen < seen_within)
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
    """Configurations enqueued after the study was created, by the number of their trial."""
    rows = session.scalars(
        select(EnqueuedRow).where(EnqueuedRow.study_id == study_id).order_by(EnqueuedRow.number)
    )
    return {row.number: row.parameters for row in rows}


def _behind(trial: TrialRow) -> ColumnElement[bool]:
    if trial.value is None:
        return and_(TrialRow.value.is_(None), TrialRow.number > trial.number)
    equal = and_(TrialRow.value == trial.value, TrialRow.number > trial.number)
    return or_(TrialRow.value < trial.value, equal, TrialRow.value.is_(None))


def _trial_views(session: Session, trials: Sequence[TrialRow], folds_of: Mapping[int, int]) -> list[TrialView]:
    """Trials of several studies; `folds_of` has the number of folds by the study's id."""
    ids = [trial.id for trial in trials]
    sums = {
        trial_id: (int(folds), int(all_folds), int(correct), int(clips))
        for trial_id, folds, all_folds, correct, clips in session.execute(
            select(
                ResultRow.trial_id,
                func.count().filter(~ResultRow.beyond_verdict),
                func.count(),
                func.sum(ResultRow.correct).filter(~ResultRow.beyond_verdict),
                func.sum(ResultRow.clips).filter(~ResultRow.beyond_verdict),
            )
            .where(among(ResultRow.trial_id, ids))
            .group_by(ResultRow.trial_id)
        )
    }
    held = session.execute(
        select(LeaseRow.trial_id, WorkerRow.name)
        .join(WorkerRow, WorkerRow.id == LeaseRow.worker_id)
        .where(among(LeaseRow.trial_id, ids), LeaseRow.outcome.is_(None))
    ).all()
    holders = {row.trial_id: row.name for row in held}
    # Trials that run, and those that ended before these scores were kept or without being complete or pruned.
    unscored = [trial.id for trial in trials if trial.uar is None and trial.id in sums]
    class_scores = {
        trial_id: (scores.unweighted_average_recall(counts), scores.unweighted_f1(counts))
        for trial_id, counts in pooled_confusions(session, unscored).items()
    }
    views = []
    for trial in trials:
        folds, all_folds, correct, clips = sums.get(trial.id, (0, 0, 0, 0))
        uar, uf1 = class_scores.get(trial.id, (trial.uar, trial.uf1))
        views.append(
            TrialView(
                number=trial.number,
                state=TrialState(trial.state),
                parameters=trial.parameters,
                value=trial.value,
                folds_done=folds,
                folds_beyond_verdict=all_folds - folds,
                folds=folds_of[trial.study_id],
                correct=correct,
                clips=clips,
                running_accuracy=correct / clips if clips else None,
                uar=uar,
                uf1=uf1,
                pruned=PruneDecision.model_validate(trial.pruned) if trial.pruned else None,
                learnt_order=trial.learnt_order,
                end_reason=trial.end_reason,
                worker=holders.get(trial.id),
            )
        )
    return views


def _rank(order: ColumnElement[Any]) -> ColumnElement[int]:
    rank = func.row_number().over(partition_by=TrialRow.study_id, order_by=(order, TrialRow.number))
    return rank.label("rank")


def _first(session: Session, ranked: Select[int, int]) -> dict[int, TrialRow]:
    """The trial of rank 1 of each study, by the study's id."""
    rows = ranked.subquery()
    first = select(TrialRow).join(rows, rows.c.id == TrialRow.id).where(rows.c.rank == 1)
    return {trial.study_id: trial for trial in session.scalars(first)}
