"""A study as a file: JSON lines, first the study, then its trials in order of their numbers.

A line is one of these types. Leases are no part of it: they say how a coordinator came by a result, and fence
nothing anywhere else. Times are when things happened there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, FiniteFloat

from services.contracts import (
    PRINTABLE,
    Contract,
    FoldState,
    PruneDecision,
    StudySpec,
    StudyState,
    TrialState,
)
from services.search_space import ParameterValue

FORMAT: Literal["foldwise-study/1"] = "foldwise-study/1"
"""Raised when a line's meaning changes; a coordinator reads its own format alone."""

MAX_LINE_BYTES = 64 * 2**20
"""A trial with all predictions of all its folds and epochs; the paper's largest takes about one MiB."""

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]
Reason = Annotated[str, Field(max_length=2000, pattern=PRINTABLE)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FoldLine(Contract):
    """Which clips a fold tests, and their true labels."""

    name: Text
    clip_ids: tuple[Text, ...] = Field(min_length=1)
    labels: tuple[Annotated[int, Field(ge=0)], ...]


class EnqueuedLine(Contract):
    """A configuration enqueued for the trial of this number."""

    number: int = Field(ge=0)
    parameters: dict[str, ParameterValue]


class InheritedLine(Contract):
    """A trial of another study that the sampler learns from."""

    parameters: dict[str, ParameterValue]
    state: Literal[TrialState.COMPLETE, TrialState.PRUNED]
    value: FiniteFloat | None
    curve: tuple[FiniteFloat, ...]


class StudyLine(Contract):
    """The first line."""

    format: Literal["foldwise-study/1"] = FORMAT
    spec: StudySpec
    state: StudyState
    reason: Reason | None
    dataset: Text
    fingerprint: Hash
    classes: tuple[Text, ...] = Field(min_length=1)
    split_hash: Hash
    fold_order: tuple[int, ...] | None = Field(None, description="learnt from its first complete trials")
    folds: tuple[FoldLine, ...] = Field(min_length=1, max_length=10_000)
    enqueued: tuple[EnqueuedLine, ...]
    inherited: tuple[InheritedLine, ...]
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    trials: int = Field(ge=0, description="lines that follow")


class ResultLine(Contract):
    """The result of a fold that was run, as its worker reported it and as it was scored."""

    payload: dict[str, Any] = Field(description="a FoldResult")
    sha256: Hash = Field(description="of the payload's canonical JSON")
    best_epoch: int
    correct: int
    confusion: tuple[tuple[int, ...], ...]
    received_at: AwareDatetime


class ReusedLine(Contract):
    """The result of a fold that was not run: the same as that of a trial with equal parameters."""

    reused_from: int = Field(ge=0, description="number of the trial that ran it")
    received_at: AwareDatetime


class TrialFoldLine(Contract):
    """A fold of a trial; done exactly where it has a result."""

    state: Literal[FoldState.PENDING, FoldState.DONE, FoldState.FAILED]
    result: ResultLine | ReusedLine | None


class TrialLine(Contract):
    """Each of the other lines."""

    number: int
    parameters: dict[str, ParameterValue]
    state: TrialState
    learnt_order: bool = Field(False, description="it runs its folds in the order the study has learnt")
    value: FiniteFloat | None
    pruned: PruneDecision | None
    end_reason: Reason | None
    created_at: AwareDatetime
    ended_at: AwareDatetime | None
    folds: tuple[TrialFoldLine, ...]
