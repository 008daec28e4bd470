"""A study as a file of JSON lines: first the study, then its trials, ordered by number.

A line is one of these types. Leases are not exported, because they matter only to the coordinator that granted
them. Times are those of that coordinator.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, FiniteFloat

from services.contracts import (
    PRINTABLE,
    Contract,
    FoldState,
    PruneDecision,
    StoredSpec,
    StudyPlan,
    StudyState,
    TrialState,
)
from services.contracts.base import is_empty
from services.search_space import ParameterValue

FORMAT: Literal["foldwise-study/1"] = "foldwise-study/1"
"""It is increased when the meaning of a line changes; a coordinator reads only its own format."""

MAX_LINE_BYTES = 64 * 2**20
"""Maximum bytes of a line; the paper's largest trial, with all predictions, takes about one MiB."""

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]
Reason = Annotated[str, Field(max_length=2000, pattern=PRINTABLE)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[int, Field(ge=0)]


class FoldLine(Contract):
    """The test clips of a fold and its validation clips, with their true labels."""

    name: Text
    clip_ids: tuple[Text, ...] = Field(min_length=1)
    labels: tuple[Label, ...]
    validation_clip_ids: tuple[Text, ...] = Field((), exclude_if=is_empty)
    validation_labels: tuple[Label, ...] = Field((), exclude_if=is_empty)


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
    spec: StoredSpec
    state: StudyState
    reason: Reason | None
    dataset: Text
    fingerprint: Hash
    classes: tuple[Text, ...] = Field(min_length=1)
    split_hash: Hash
    fold_order: tuple[int, ...] | None = Field(None, description="order learnt from the first complete trials")
    plan: StudyPlan | None = Field(None, description="compute plan, frozen with the first lease")
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
    """The result of a fold that was not run, reused from a trial with equal parameters."""

    reused_from: int = Field(ge=0, description="number of the trial that ran it")
    received_at: AwareDatetime


class TrialFoldLine(Contract):
    """A fold of a trial; it is done if and only if it has a result."""

    state: Literal[FoldState.PENDING, FoldState.DONE, FoldState.FAILED]
    result: ResultLine | ReusedLine | None


class TrialLine(Contract):
    """A trial: each line after the first."""

    number: int
    parameters: dict[str, ParameterValue]
    state: TrialState
    learnt_order: bool = Field(False, description="it runs its folds in the order the study has learnt")
    value: FiniteFloat | None
    pruned: PruneDecision | None
    beyond_verdict: tuple[int, ...] = Field(
        (), description="finished folds of a pruned trial that its decision does not rest on"
    )
    end_reason: Reason | None
    created_at: AwareDatetime
    ended_at: AwareDatetime | None
    folds: tuple[TrialFoldLine, ...]
