"""Complete trials that ran their folds in the same order, as rules compare a trial with them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from services.pruning.rule import ComparedTrial, running_accuracy


class TrialsOfOrder:
    """The trials by number; they may be added in any order. Of a limit `known_below`, None means all."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._curves: list[array[float]] = []
        self._correct: list[array[int]] = []
        self._clips: Sequence[int] = ()

    def add(self, number: int, folds: Sequence[tuple[int, int]]) -> None:
        """Add a trial that has run all folds; `folds` are (correct, clips) of each, in their order."""
        # All trials test the same clips.
        self._clips = self._clips or tuple(clips for _, clips in folds)
        # Trials complete nearly in order of their numbers, so that little has to move.
        index = bisect_left(self._numbers, number)
        self._numbers.insert(index, number)
        self._curves.insert(index, array("d", running_accuracy(folds)))
        self._correct.insert(index, array("i", (correct for correct, _ in folds)))

    def at_step(self, step: int, known_below: int | None) -> Sequence[float]:
        """Running accuracies after `step` folds of the trials below the limit, by number."""
        return [curve[step - 1] for curve in self._curves[: self._known(known_below)]]

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
        return self._curves[index][-1]

    def _compared(self, index: int, known: int) -> ComparedTrial:
        return ComparedTrial(
            number=self._numbers[index],
            complete_trials=known,
            folds=list(zip(self._correct[index], self._clips, strict=True)),
        )
