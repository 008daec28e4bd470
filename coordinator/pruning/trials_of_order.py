"""Complete trials that ran their folds in the same order, as rules compare a trial with them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from services.contracts.base import Objective
from services.pruning.rule import ComparedTrial
from services.running_scores import FoldEpochs, running_scores


class TrialsOfOrder:
    """The trials by number; they may be added in any order. Of a limit `known_below`, None means all."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._numbers: list[int] = []
        self._trials: list[_Trial] = []
        self._clips: Sequence[int] = ()

    def add(self, number: int, folds: Sequence[FoldEpochs]) -> None:
        """Add a trial that has run all folds, which are in their order."""
        # All trials test the same clips.
        self._clips = self._clips or tuple(fold.clips for fold in folds)
        running = running_scores(folds, self._objective)
        chosen = array("h", (step.epoch for step in running))
        epochs = range(max(chosen) + 1)
        trial = _Trial(
            curve=array("d", (step.value for step in running)),
            epochs=chosen,
            correct=[array("i", (fold.correct_at(epoch) for fold in folds)) for epoch in epochs],
        )
        # Trials complete nearly in order of their numbers, so that little has to move.
        index = bisect_left(self._numbers, number)
        self._numbers.insert(index, number)
        self._trials.insert(index, trial)

    def at_step(self, step: int, known_below: int | None) -> Sequence[float]:
        """Step `step` of the curves of the trials below the limit, by number."""
        return [trial.curve[step - 1] for trial in self._trials[: self._known(known_below)]]

    def median_trial(self, known_below: int | None) -> ComparedTrial | None:
        """See `FoldTable.median_trial`, of the trials below the limit."""
        known = self._known(known_below)
        if not known:
            return None
        by_value = sorted(range(known), key=self._value)
        return self._compared(by_value[(known - 1) // 2], known)

    def best_trial(self, known_below: int | None) -> ComparedTrial | None:
        """See `FoldTable.best_trial`, of the trials below the limit."""
        known = self._known(known_below)
        if not known:
            return None
        return self._compared(max(range(known), key=self._value), known)

    def _known(self, known_below: int | None) -> int:
        return len(self._numbers) if known_below is None else bisect_left(self._numbers, known_below)

    def _value(self, index: int) -> float:
        return self._trials[index].curve[-1]

    def _compared(self, index: int, known: int) -> ComparedTrial:
        trial, clips = self._trials[index], self._clips

        def first_folds(length: int) -> Sequence[tuple[int, int]]:
            correct = trial.correct[trial.epochs[length - 1]]
            return list(zip(correct[:length], clips[:length], strict=True))

        return ComparedTrial(
            number=self._numbers[index],
            complete_trials=known,
            first_folds=first_folds,
            folds=first_folds(len(clips)),
        )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    curve: array[float]
    epochs: array[int]
    """The epoch chosen for the first 1, 2, ... folds."""

    correct: Sequence[array[int]]
    """Correct clips of each fold, by epoch."""
