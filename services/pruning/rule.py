"""What every pruning rule is: its inputs and its decision.

A trial's curve is its running score: what the study maximises, pooled over the first 1, 2, ... finished folds
of the trial's fold order. Step n of a curve is the score of n folds. Where one epoch is chosen for all folds,
step n is at the best epoch of these n folds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, assert_never

from pydantic import Field, FiniteFloat

from services.contracts.base import TRIALS_ALLOWED, Contract, Objective
from services.folds import (
    AllClips,
    GivenFolds,
    HeldOut,
    Holdout,
    KFold,
    LeaveOneSubjectOut,
    SplitProtocol,
)

if TYPE_CHECKING:
    # Brings numpy, which every command would load with the contracts.
    from services.scores import Counts

MarkColour = Literal["red", "amber", "violet", "magenta", "brown"]
"""Colours that the study page's style sheet has for rules (`--mark-red`), for light and dark pages."""


StartupTrials = Annotated[
    int, Field(ge=1, le=TRIALS_ALLOWED, description="complete trials before anything is pruned")
]
WarmupFolds = Annotated[
    int | None,
    Field(
        ge=0,
        le=100_000,
        description="folds of a trial that are always run; by default 10 for LOSO, 3 for k-fold",
    ),
]


class PruneDecision(Contract):
    """Why a trial was pruned: which rule, after which fold, on what numbers."""

    rule: str
    fold: int = Field(description="index of the last fold that counted")
    numbers: dict[str, FiniteFloat]

    def describe_numbers(self) -> str:
        """The compared numbers in words, such as `best running accuracy 0.7, median 0.8`."""
        return ", ".join(f"{key.replace('_', ' ')} {number:.4g}" for key, number in self.numbers.items())


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """The first folds of a trial in its order, all finished; later folds enter no decision."""

    order: Sequence[int]
    """Indices of the folds as the trial runs them."""

    prefix: Sequence[tuple[int, int]]
    """(correct, clips) of each of the first folds of the order, at the epoch chosen for them; at least one."""

    clips_total: int
    """Test clips of all folds of the trial."""

    curve: Sequence[float]
    """The running score of these folds."""

    objective: Objective = "accuracy"
    """What the study maximises."""

    @property
    def fold(self) -> int:
        """Index of the last fold of the prefix."""
        return self.order[len(self.prefix) - 1]

    @cached_property
    def correct(self) -> int:
        """Correct clips over the prefix."""
        return sum(correct for correct, _ in self.prefix)

    @cached_property
    def clips_done(self) -> int:
        """Test clips of the prefix."""
        return sum(clips for _, clips in self.prefix)


@dataclass(frozen=True, kw_only=True)
class ComparedTrial:
    """A complete trial with which the judged one is compared."""

    number: int
    complete_trials: int
    """Number of complete trials from which it was chosen."""

    first_folds: Callable[[int], Sequence[tuple[int, int]]]
    """(correct, clips) of this number of its first folds, in its order, at the epoch chosen for them."""

    folds: Sequence[tuple[int, int]]
    """(correct, clips) of all its folds, in its order."""


@dataclass(frozen=True, kw_only=True)
class FoldTable:
    """Data about a study's folds for rules; each function is called only if a rule needs it.

    Complete trials are those that the judged trial is compared with: they ran their folds in the same order,
    because after n folds of another order, other clips are tested; and where the study has a feedback delay,
    their numbers are far enough below the trial's.
    """

    complete_at_step: Callable[[int], Sequence[float]]
    """Step of this number of the curves of the complete trials."""

    median_trial: Callable[[], ComparedTrial | None]
    """The median of the complete trials by score; None without any.

    With an even number of trials it is the lower of the two in the middle; ties go to the earlier trial.
    """

    best_trial: Callable[[], ComparedTrial | None]
    """The complete trial of highest score, the earliest on ties; None without any."""

    confusions: Callable[[int], tuple[Sequence[Counts], Sequence[int]]]
    """Confusion counts over this number of the trial's first folds, at each epoch that can still be chosen; and
    the other test clips of each class."""


class Rule(Contract, ABC):
    """A pruning rule as a study names it, and its decision about a trial.

    A rule is a frozen value and its methods are pure: they change nothing, they read nothing but the rule and
    their arguments, and equal arguments give equal answers. Threads can therefore share a rule.
    """

    mark: ClassVar[MarkColour]
    """Colour in the heat map of the fold after which the rule pruned a trial; no two rules share one."""

    @abstractmethod
    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """Decide whether to prune a trial that is not complete; None lets it run.

        Args:
            progress: the first folds of the trial.
            table: the folds of its study.
            protocol: how its study splits the clips.
        """

    @abstractmethod
    def describe(self) -> str:
        """The rule and its settings in a few words, for the study page."""

    def drawn_threshold(self, objective: Objective) -> float | None:
        """Score (0 to 1) that a trial must be able to reach, drawn as a line; None for no line."""
        return None

    @property
    def compares_with_median(self) -> bool:
        """Whether the rule compares a trial with the median of the complete ones, so that figures show it."""
        return False


def warmup(folds: int | None, protocol: SplitProtocol) -> int:
    """Number of folds of a trial that a rule with `warmup_folds=folds` always runs; null has a default."""
    if folds is not None:
        return folds
    match protocol:
        case LeaveOneSubjectOut():
            return 10
        case KFold() | GivenFolds() | Holdout() | HeldOut() | AllClips():
            return 3
        case _:
            assert_never(protocol)
