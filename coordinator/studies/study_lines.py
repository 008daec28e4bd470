"""Checks of the lines of a study file that need no database."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.pruning.rules import folds_judged
from coordinator.store.tables import StudyRow
from services.contracts import FoldState, StudySpec, StudyState, TrialState
from services.errors import InvalidInput
from services.folds import AllClips, Fold, HeldOut, Holdout, KFold, split_hash
from services.search_space import ParameterValue, SearchSpace
from services.study_file import FoldLine, StudyLine, TrialLine
from services.validation import needs_validation


def check_study_line(line: StudyLine, spec: StudySpec) -> None:
    """Reject a first line whose parts do not fit each other.

    Raises:
        InvalidInput: the message names the field and the reason.
    """
    clips = [clip for fold in line.folds for clip in fold.clip_ids]
    must(len(set(clips)) == len(clips), "folds", "a clip is tested twice")
    for index, fold in enumerate(line.folds):
        fits = len(fold.labels) == len(fold.clip_ids) and max(fold.labels) < len(line.classes)
        must(fits, f"folds.{index}.labels", "there must be one for each clip, below the number of classes")
        _check_validation_clips(index, fold, line, spec)
    folds = [Fold(index=i, name=f.name, subjects=(), test_clips=f.clip_ids) for i, f in enumerate(line.folds)]
    must(split_hash(folds) == line.split_hash, "split_hash", "is not that of these folds")
    wanted = _folds_wanted(spec)
    must(wanted in {None, len(line.folds)}, "folds", "must be as many as the protocol says")
    ordered = line.fold_order is None or sorted(line.fold_order) == list(range(len(line.folds)))
    must(ordered, "fold_order", "must name each fold once")
    must(line.trials <= spec.trials, "trials", f"are more than the budget of {spec.trials}")
    enough = line.state != StudyState.COMPLETE or line.trials == spec.trials
    must(enough, "trials", f"are fewer than the budget of {spec.trials}, and the study is complete")
    allowed = line.plan is None or spec.compute.allow(line.plan)
    must(allowed, "plan", f"is {line.plan}, which the study's compute settings ({spec.compute}) exclude")
    numbers = [enqueued.number for enqueued in line.enqueued]
    must(len(set(numbers)) == len(numbers), "enqueued", "a number is listed twice")
    must(max(numbers, default=0) < spec.trials, "enqueued", "a number is beyond the budget")
    for index, enqueued in enumerate(line.enqueued):
        must(_is_canonical(spec.space, enqueued.parameters), f"enqueued.{index}", "does not fit the space")
    for index, trial in enumerate(line.inherited):
        must(_is_canonical(spec.space, trial.parameters), f"inherited.{index}", "does not fit the space")
        scored = (trial.value is not None) == (trial.state == TrialState.COMPLETE)
        must(scored, f"inherited.{index}.value", "must be given exactly if the trial is complete")


def check_trial_line(line: TrialLine, number: int, spec: StudySpec, study: StudyRow) -> None:
    """Reject a trial that is not the trial of this number or does not fit its study.

    Raises:
        InvalidInput: the message names the field and the reason.
    """
    must(line.number == number, "number", f"is {line.number}; {number} comes next")
    must(_is_canonical(spec.space, line.parameters), "parameters", "do not fit the space")
    must(study.fold_order is not None or not line.learnt_order, "learnt_order", "the study has learnt no order")
    must(len(line.folds) == study.fold_count, "folds", f"must be the {study.fold_count} of the study")
    must(line.state.over or study.state != StudyState.COMPLETE, "state", "the study is complete")
    must(
        (line.ended_at is not None) == line.state.over,
        "ended_at",
        "must be given exactly if the trial has ended",
    )
    must((line.pruned is not None) == (line.state == TrialState.PRUNED), "pruned", "does not fit the state")
    complete = line.state == TrialState.COMPLETE
    must((line.value is not None) == complete, "value", "must be given exactly if the trial is complete")
    done = [fold.state == FoldState.DONE for fold in line.folds]
    must(all(done) or not complete, "folds", "are not all done, and the trial is complete")
    if line.beyond_verdict:
        must(line.pruned is not None, "beyond_verdict", "must be empty, because the trial is not pruned")
        order = study.fold_order if line.learnt_order and study.fold_order else range(study.fold_count)
        judged = folds_judged(order, line.pruned) if line.pruned and line.pruned.fold in order else order
        beyond = [fold for fold, is_done in enumerate(done) if is_done and fold not in judged]
        must(
            list(line.beyond_verdict) == beyond,
            "beyond_verdict",
            "must be the finished folds after the verdict",
        )
    for index, fold in enumerate(line.folds):
        must((fold.result is not None) == done[index], f"folds.{index}.result", "does not fit the state")


def must(true: bool, field: str, problem: str) -> None:
    """Reject the field of a line unless this is true.

    Raises:
        InvalidInput: names the field and the problem.
    """
    if not true:
        raise InvalidInput(f"{field}: {problem}", field=field)


def _folds_wanted(spec: StudySpec) -> int | None:
    match spec.protocol:
        case KFold(k=k):
            return k
        case Holdout() | HeldOut() | AllClips():
            return 1
        case _:
            return None


def _check_validation_clips(index: int, fold: FoldLine, line: StudyLine, spec: StudySpec) -> None:
    where, validated = f"folds.{index}.validation_clip_ids", fold.validation_clip_ids
    used = (*validated, *fold.clip_ids)
    must(len(set(used)) == len(used), where, "a clip is used twice")
    fits = len(fold.validation_labels) == len(validated)
    fits = fits and max(fold.validation_labels, default=0) < len(line.classes)
    must(
        fits,
        f"folds.{index}.validation_labels",
        "there must be one for each validation clip, below the number of classes",
    )
    must(bool(validated) or not needs_validation(spec), where, "must choose the epoch, but there are none")


def _is_canonical(space: SearchSpace, parameters: Mapping[str, ParameterValue]) -> bool:
    try:
        return space.canonicalize(parameters) == dict(parameters)
    except InvalidInput:
        return False
