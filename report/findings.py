"""The numbers of a report, computed from predictions, labels and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from report.material import Material
from services import intervals, scores
from services.contracts import FoldRecord, Reading, SplitFold, TrialCost, TrialState, TrialView, configure
from services.contracts.base import EpochChoice
from services.folds import protocol_words
from services.scores import Counts


class Finding(BaseModel):
    """Base of the objects in `report.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Finding):
    """The clips that the study searched on."""

    dataset: str
    fingerprint: str
    clips: int
    subjects: int | None
    """Null if the coordinator no longer has the clip cache."""

    class_counts: dict[str, int]
    protocol: str
    folds: int
    split_hash: str


class Score(Finding):
    """One score of the shown trial, with its 95 % intervals."""

    name: str
    value: float
    wilson: tuple[float, float] | None
    """Only for the accuracy of a complete trial."""

    bootstrap: tuple[float, float] | None
    """Only for a complete trial with enough subjects or folds."""


class ClassScore(Finding):
    """The scores of one class."""

    name: str
    clips: int
    recall: float | None
    precision: float | None
    f1: float | None


class FoldScore(Finding):
    """One fold of the shown trial."""

    index: int
    name: str
    subjects: int | None
    clips: int
    correct: int | None
    accuracy: float | None
    best_epoch: int | None
    """Counted from 1."""

    epochs: int | None
    state: Literal["run", "reused", "not run"]


class Shown(Finding):
    """The trial that the report is about."""

    number: int
    complete: bool
    parameters: dict[str, bool | int | float | str]
    correct: int
    clips: int
    confusion: tuple[tuple[int, ...], ...]
    scores: tuple[Score, ...]
    resampled: str | None
    """What the bootstrap resampled, such as `10 subjects` or `5 folds`; null without a bootstrap."""

    classes: tuple[ClassScore, ...]
    folds: tuple[FoldScore, ...]
    readings: tuple[Reading, ...]
    counted_epoch: EpochChoice
    """The reading that counts."""


class RuleAccount(Finding):
    """What one pruning rule ended and saved."""

    rule: str
    trials: int
    folds_saved: int
    seconds_saved: float
    """Estimate: each fold not run counts the mean time of the folds that its trial finished."""


class Account(Finding):
    """Folds and device time of a study. Every fold of every trial is counted once in `run` to `to_come`."""

    folds: int
    run: int
    reused: int
    pruned: int
    abandoned: int
    """Folds of failed or cancelled trials that never ran."""

    to_come: int
    seconds: dict[str, float]
    """Training and testing time of the folds run, by device, as workers report it."""

    seconds_saved_by_reuse: float
    epochs_run: int
    epochs_allowed: int
    clip_passes: int
    rules: tuple[RuleAccount, ...]


class Findings(Finding):
    """All numbers of a report."""

    study: str
    state: str
    reason: str | None
    data: Data
    chance: float
    trials: dict[TrialState, int]
    trials_wanted: int
    shown: Shown | None
    account: Account
    importance: dict[str, float]
    importance_trials: int


def find(material: Material) -> Findings:
    """Compute the numbers of a report."""
    study = material.study
    counts = dict.fromkeys(TrialState, 0)
    for trial in material.trials:
        counts[trial.state] += 1
    return Findings(
        study=study.name,
        state=study.state,
        reason=study.reason,
        data=_data(material),
        chance=study.chance,
        trials=counts,
        trials_wanted=study.spec.trials,
        shown=None if material.shown is None else _shown(material, material.shown),
        account=_account(material),
        importance=material.importance.importance,
        importance_trials=material.importance.trials,
    )


def _data(material: Material) -> Data:
    study, clips = material.study, [clip for fold in material.split.folds for clip in fold.clips]
    subjects = {clip.subject for clip in clips}
    return Data(
        dataset=study.dataset,
        fingerprint=study.fingerprint,
        clips=len(clips),
        subjects=None if None in subjects else len(subjects),
        class_counts={
            name: sum(clip.label == label for clip in clips) for label, name in enumerate(study.classes)
        },
        protocol=protocol_words(study.spec.protocol, study.folds),
        folds=study.folds,
        split_hash=study.split_hash,
    )


def _shown(material: Material, trial: TrialView) -> Shown:
    size = len(material.study.classes)
    done = [(material.split.folds[index], record) for index, record in sorted(material.folds.items())]
    total = np.zeros((size, size), dtype=np.int64)
    for fold, record in done:
        total += _confusion(material, fold, record)
    resampled, units = _units(material, done, size)
    complete = trial.state == TrialState.COMPLETE
    named: tuple[tuple[str, Callable[[Counts], float]], ...] = (
        ("accuracy", scores.accuracy),
        ("UAR", scores.unweighted_average_recall),
        ("UF1", scores.unweighted_f1),
    )
    correct, clips = int(np.trace(total)), int(total.sum())
    # The finished folds of a pruned trial are not a sample of all folds, so an interval would be misleading.
    drawn = complete and len(units) >= intervals.MIN_UNITS
    return Shown(
        number=trial.number,
        complete=complete,
        parameters=trial.parameters,
        correct=correct,
        clips=clips,
        confusion=tuple(tuple(int(n) for n in row) for row in total),
        scores=tuple(
            Score(
                name=name,
                value=score(total),
                wilson=intervals.wilson(correct, clips) if complete and name == "accuracy" else None,
                bootstrap=intervals.bootstrap(units, score) if drawn else None,
            )
            for name, score in named
        ),
        resampled=f"{len(units)} {resampled}" if drawn else None,
        classes=tuple(_class_scores(material.study.classes, total)),
        folds=tuple(_fold_scores(material)),
        readings=() if material.readings is None else material.readings.readings,
        counted_epoch=material.study.spec.counted_epoch,
    )


def _confusion(material: Material, fold: SplitFold, record: FoldRecord) -> Counts:
    labels = [clip.label for clip in fold.clips]
    return scores.confusion(labels, _predicted(material, fold, record), len(material.study.classes))


def _predicted(material: Material, fold: SplitFold, record: FoldRecord) -> Sequence[int]:
    """The predictions of a fold at the epoch at which it counts."""
    trained = record.result.epochs[0].loss is not None
    (predicted,) = scores.epochs_that_count(
        [clip.label for clip in fold.clips],
        [record.result.epochs[record.best_epoch].predicted],
        len(material.study.classes),
        trained=trained or material.study.spec.counted_epoch == "best_per_fold",
    )
    return predicted


def _units(
    material: Material, done: Sequence[tuple[SplitFold, FoldRecord]], size: int
) -> tuple[str, list[Counts]]:
    """Confusion counts of each subject, or of each fold if the subjects are unknown."""
    if any(clip.subject is None for fold, _ in done for clip in fold.clips):
        return "folds", [_confusion(material, fold, record) for fold, record in done]
    of_subject: dict[str | None, Counts] = {}
    for fold, record in done:
        for clip, label in zip(fold.clips, _predicted(material, fold, record), strict=True):
            of_subject.setdefault(clip.subject, np.zeros((size, size), dtype=np.int64))[clip.label, label] += 1
    return "subjects", list(of_subject.values())


def _class_scores(classes: Sequence[str], total: Counts) -> Iterator[ClassScore]:
    for label, name in enumerate(classes):
        right, true, assigned = (
            int(n) for n in (total[label, label], total[label].sum(), total[:, label].sum())
        )
        yield ClassScore(
            name=name,
            clips=true,
            recall=right / true if true else None,
            precision=right / assigned if assigned else None,
            f1=2 * right / (true + assigned) if true else None,
        )


def _fold_scores(material: Material) -> Iterator[FoldScore]:
    for index, fold in enumerate(material.split.folds):
        record = material.folds.get(index)
        subjects = {clip.subject for clip in fold.clips}
        yield FoldScore(
            index=index,
            name=fold.name,
            subjects=None if None in subjects else len(subjects),
            clips=len(fold.clips),
            correct=None if record is None else record.correct,
            accuracy=None if record is None else record.correct / len(fold.clips),
            best_epoch=None if record is None else record.best_epoch + 1,
            epochs=None if record is None else len(record.result.epochs),
            state="not run" if record is None else "run" if record.reused_from is None else "reused",
        )


def _account(material: Material) -> Account:
    study = material.study
    pruned: dict[str, list[TrialView]] = {}
    missing = dict.fromkeys(TrialState, 0)
    seconds: dict[str, float] = {}
    for trial in material.trials:
        missing[trial.state] += _not_run(trial)
        if trial.pruned is not None:
            pruned.setdefault(trial.pruned.rule, []).append(trial)
    costs = material.costs.values()
    for cost in costs:
        for device, spent in cost.seconds.items():
            seconds[device] = seconds.get(device, 0.0) + spent
    run, reused = sum(cost.folds_run for cost in costs), sum(cost.folds_reused for cost in costs)
    return Account(
        folds=len(material.trials) * study.folds,
        run=run,
        reused=reused,
        pruned=missing[TrialState.PRUNED],
        abandoned=missing[TrialState.FAILED] + missing[TrialState.CANCELLED],
        # In a running study, the costs may be slightly newer than the trials.
        to_come=len(material.trials) * study.folds
        - run
        - reused
        - missing[TrialState.PRUNED]
        - missing[TrialState.FAILED]
        - missing[TrialState.CANCELLED],
        seconds=seconds,
        seconds_saved_by_reuse=sum(cost.seconds_reused for cost in costs),
        epochs_run=sum(cost.epochs for cost in costs),
        epochs_allowed=sum(
            material.costs[trial.number].folds_run * configure(trial.parameters, study.spec.training)[1].epochs
            for trial in material.trials
            if trial.number in material.costs
        ),
        clip_passes=sum(cost.clip_passes for cost in costs),
        rules=tuple(
            RuleAccount(
                rule=rule,
                trials=len(trials),
                folds_saved=sum(map(_not_run, trials)),
                seconds_saved=sum(
                    _not_run(trial) * _mean_seconds(material.costs.get(trial.number)) for trial in trials
                ),
            )
            for rule, trials in sorted(pruned.items())
        ),
    )


def _not_run(trial: TrialView) -> int:
    """Folds that nobody ran; those beyond a verdict were run."""
    return trial.folds - trial.folds_done - trial.folds_beyond_verdict


def _mean_seconds(cost: TrialCost | None) -> float:
    """Mean seconds of a trial's folds, including reused ones."""
    if cost is None or not cost.folds_run + cost.folds_reused:
        return 0.0
    return (sum(cost.seconds.values()) + cost.seconds_reused) / (cost.folds_run + cost.folds_reused)
