"""The stored data that a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from report.selection import check_cross_validated
from services.contracts import (
    FoldRecord,
    FoldState,
    FoldView,
    ImportanceView,
    ReadingsView,
    SplitView,
    StudyView,
    TrialCost,
    TrialState,
    TrialView,
)


class StudySource(Protocol):
    """The calls that a report needs. `StudyClient` of the package `client` makes them over HTTP; its token
    needs the scope `read`.
    """

    def get(self, name: str) -> StudyView:
        """One study."""

    def trials(self, name: str) -> Sequence[TrialView]:
        """All trials of a study, by number."""

    def costs(self, name: str) -> Sequence[TrialCost]:
        """What each trial of a study cost; trials without a finished fold may be missing."""

    def split(self, name: str) -> SplitView:
        """The clips that each fold of a study tests, with their subjects and true classes."""

    def importance(self, name: str) -> ImportanceView:
        """How much each parameter of a study mattered."""

    def readings(self, name: str, number: int) -> ReadingsView:
        """The scores of trial `number` under every choice of the epoch that counts."""

    def folds(self, name: str, number: int) -> Sequence[FoldView]:
        """The folds of trial `number`."""

    def fold(self, name: str, number: int, index: int) -> FoldRecord:
        """Fold `index` of trial `number` with its task and result; only asked for finished folds."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything about a study that its report needs."""

    study: StudyView
    trials: tuple[TrialView, ...]
    costs: dict[int, TrialCost]
    """By trial number."""

    split: SplitView
    importance: ImportanceView
    shown: TrialView | None
    """The best complete trial. If there is none, the pruned trial with the fewest errors, if any."""

    folds: dict[int, FoldRecord]
    """The finished folds of the shown trial, by index."""

    readings: ReadingsView | None
    """Of the shown trial, if there is one."""

    @property
    def best(self) -> TrialView | None:
        """The shown trial, if it is complete."""
        return self.shown if self.shown is not None and self.shown.state == TrialState.COMPLETE else None


def gather(source: StudySource, name: str) -> Material:
    """Read everything that a report shows.

    Raises:
        InvalidInput: the study does not cross-validate, so it has nothing to report.
        FoldwiseError: as the source raises, such as NotFound or Unavailable.
    """
    # The study first: the trials that it counts are then among the trials.
    study = source.get(name)
    check_cross_validated(study)
    trials = tuple(source.trials(name))
    folds: dict[int, FoldRecord] = {}
    if study.best is not None:
        for fold in source.folds(name, study.best.number):
            if fold.state == FoldState.DONE and not fold.beyond_verdict:
                folds[fold.index] = source.fold(name, study.best.number, fold.index)
    return Material(
        study=study,
        trials=trials,
        costs={cost.number: cost for cost in source.costs(name)},
        split=source.split(name),
        importance=source.importance(name),
        shown=study.best,
        folds=folds,
        readings=None if study.best is None else source.readings(name, study.best.number),
    )
