"""What a report is made from, asked of a coordinator; a token of the scope `read` is enough."""

from __future__ import annotations

from dataclasses import dataclass

from client.study_client import StudyClient
from report.selection import check_cross_validated
from services.contracts import (
    FoldRecord,
    FoldState,
    ImportanceView,
    SplitView,
    StudyView,
    TrialCost,
    TrialState,
    TrialView,
)


@dataclass(frozen=True, kw_only=True)
class Material:
    """A study as the coordinator has it."""

    study: StudyView
    trials: tuple[TrialView, ...]
    costs: dict[int, TrialCost]
    """By the number of the trial."""

    split: SplitView
    importance: ImportanceView
    shown: TrialView | None
    """The best complete trial; with none, the pruned one that could have gone furthest, if there is one."""

    folds: dict[int, FoldRecord]
    """The finished folds of the trial shown, by index."""

    @property
    def best(self) -> TrialView | None:
        """The trial shown, where it is complete."""
        return self.shown if self.shown is not None and self.shown.state == TrialState.COMPLETE else None


def gather(client: StudyClient, name: str) -> Material:
    """Ask for everything a report says.

    Raises:
        NotFound: there is no such study.
        InvalidInput: it cross-validates nothing, so there is nothing to report.
        Unavailable: the coordinator does not answer.
    """
    # The study first: all trials it counts are then among the trials.
    study = client.get(name)
    check_cross_validated(study)
    trials = tuple(client.trials(name))
    folds: dict[int, FoldRecord] = {}
    if study.best is not None:
        for fold in client.folds(name, study.best.number):
            if fold.state == FoldState.DONE:
                folds[fold.index] = client.fold(name, study.best.number, fold.index)
    return Material(
        study=study,
        trials=trials,
        costs={cost.number: cost for cost in client.costs(name)},
        split=client.split(name),
        importance=client.importance(name),
        shown=study.best,
        folds=folds,
    )
