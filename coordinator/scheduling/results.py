"""Checking a fold's result against its task and scoring it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from pydantic import ValidationError

from coordinator.store.tables import (
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
)
from services import scores
from services.contracts import (
    FoldResult,
    FoldTask,
    StudySpec,
)
from services.errors import (
    InvalidInput,
)
from services.search_space import first_problem
from services.seeds import sha256_of


def imported_result(
    study: StudyRow,
    spec: StudySpec,
    trial: TrialRow,
    split: StudyFoldRow,
    task: FoldTask,
    payload: dict[str, Any],
) -> ResultRow:
    """Build an unsaved row from another coordinator's result, checked and scored as in a report.

    Raises:
        InvalidInput: `payload` is not a result, does not fit the fold's clips and classes, or is the result of
            another task.
    """
    try:
        result = FoldResult.model_validate(payload)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field="payload") from error
    check_result(result, split, task)
    row = score_result(study, spec, trial, split, result)
    row.imported, row.payload, row.sha256, row.verdict = True, payload, sha256_of(payload), {}
    return row


def reused_result(trial: TrialRow, ran: ResultRow) -> ResultRow:
    """Build an unsaved row for `trial` from the result `ran` of a trial with equal parameters."""
    return ResultRow(
        trial_id=trial.id,
        fold=ran.fold,
        reused_from=ran.trial_id,
        sha256=ran.sha256,
        payload=ran.payload,
        best_epoch=ran.best_epoch,
        correct=ran.correct,
        clips=ran.clips,
        confusion=ran.confusion,
    )


def score_result(
    study: StudyRow, spec: StudySpec, trial: TrialRow, split: StudyFoldRow, result: FoldResult
) -> ResultRow:
    """Build an unsaved row with the epoch that counts and its counts; the caller sets its origin.

    Where one epoch is chosen for all folds, it is the last one until `judge` sets it.
    """
    best = _chosen_epoch(spec, split, result)
    predicted: Sequence[int] = result.epochs[best].predicted
    if result.epochs[0].loss is None and spec.counted_epoch != "best_per_fold":
        (predicted,) = scores.epochs_that_count(split.labels, [predicted], len(study.classes), trained=False)
    counts = scores.confusion(split.labels, predicted, len(study.classes))
    return ResultRow(
        trial_id=trial.id,
        fold=split.fold,
        best_epoch=best,
        correct=int(counts.trace()),
        clips=len(split.labels),
        confusion=counts.tolist(),
    )


def check_result(result: FoldResult, split: StudyFoldRow, task: FoldTask) -> None:
    """Reject a result that is not of this task.

    Raises:
        InvalidInput: its message names the field that does not fit.
    """
    if (result.model is not None) != task.trains_on_all:
        problem = (
            f"names no model; the fold {task.fold_name!r} trains on all clips and must keep one"
            if task.trains_on_all
            else f"names a model; the fold {task.fold_name!r} does not train on all clips and keeps none"
        )
        raise InvalidInput(f"model: the result {problem}", field="model")
    fields = ["fingerprint", "split_hash", "seed", "compute"]
    if task.memory_format is not None:
        fields.append("memory_format")
    if task.threads is not None and result.provenance.device == "cpu":
        fields.append("threads")
    for field in fields:
        reported, leased = getattr(result.provenance, field), getattr(task, field)
        if reported != leased:
            where = f"provenance.{field}"
            raise InvalidInput(f"{where} is {reported!r}, the fold was leased with {leased!r}", field=where)
    clips, validated, classes = len(split.labels), len(split.validation_labels), len(task.classes)
    for number, epoch in enumerate(result.epochs):
        where = f"epochs.{number}"
        if len(epoch.predicted) != clips or len(epoch.probabilities) != clips:
            raise InvalidInput(f"{where} must have one prediction for each of {clips} test clips", field=where)
        if any(not 0 <= label < classes for label in (*epoch.predicted, *epoch.validation_predicted)):
            raise InvalidInput(f"{where} predicts a label outside 0..{classes - 1}", field=where)
        if any(len(row) != classes for row in epoch.probabilities):
            raise InvalidInput(f"{where} must have one probability for each of {classes} classes", field=where)
        if len(epoch.validation_predicted) != validated:
            raise InvalidInput(
                f"{where} has {len(epoch.validation_predicted)} validation predictions, the fold has "
                f"{validated} validation clips",
                field=where,
            )


def _chosen_epoch(spec: StudySpec, split: StudyFoldRow, result: FoldResult) -> int:
    last = len(result.epochs) - 1
    match spec.counted_epoch:
        case "best_per_fold":
            return scores.best_epoch(split.labels, [epoch.predicted for epoch in result.epochs])[0]
        case "validation":
            predicted = [epoch.validation_predicted for epoch in result.epochs]
            return scores.best_epoch(split.validation_labels, predicted)[0]
        case "last" | "best_common":
            return last
        case _:
            assert_never(spec.counted_epoch)
