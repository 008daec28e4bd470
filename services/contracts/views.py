"""What the coordinator answers about studies, trials, folds, datasets and workers."""

from __future__ import annotations

from pydantic import (
    Field,
    FiniteFloat,
)

from services.contracts.base import Contract
from services.contracts.states import FoldState, StudyState, TrialState
from services.contracts.study import StudySpec
from services.contracts.work import FoldResult, FoldTask
from services.pruning.rule import PruneDecision
from services.search_space import ParameterValue


class TrialView(Contract):
    """A trial for reading."""

    number: int
    state: TrialState
    parameters: dict[str, ParameterValue]
    value: FiniteFloat | None = Field(description="pooled accuracy; null until every fold is done")
    folds_done: int
    folds: int
    correct: int
    clips: int = Field(description="test clips of the folds done")
    running_accuracy: FiniteFloat | None
    pruned: PruneDecision | None
    learnt_order: bool = Field(description="it runs its folds in the order that the study learnt")
    end_reason: str | None
    worker: str | None = Field(description="name of the worker that holds a fold of it now")


class StudyView(Contract):
    """A study for reading."""

    name: str
    state: StudyState
    reason: str | None = Field(description="why it was stopped")
    spec: StudySpec
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    clips: int
    folds: int
    split_hash: str
    fold_order: tuple[int, ...] | None = Field(
        description="indices of the folds, hardest first; null while not learnt, or where the order is fixed"
    )
    trials: dict[TrialState, int]
    folds_done: int
    chance: FiniteFloat = Field(description="one over the number of classes")
    best: TrialView | None = Field(
        description="best complete trial; with none, the pruned one of highest bound"
    )
    stalled: str | None = Field(
        None, description="why Kubernetes can run no worker of it, in the words of whoever hinders it"
    )


class PodView(Contract):
    """A worker's pod as Kubernetes has it."""

    name: str
    uid: str
    phase: str = Field(description="Pending, Running, Succeeded, Failed, Unknown or Terminating")
    node: str | None
    gpus: dict[str, str] = Field(description="extended resources it was given, such as nvidia.com/gpu: 1")
    reason: str | None = Field(description="why it does not start, or why it ended")
    message: str | None


class StudyWorkersView(Contract):
    """A study's workers in Kubernetes."""

    job: str | None = Field(description="name of its Job; null where there is none")
    wanted: int | None = Field(description="pods of the Job; null where there is none")
    suspended: bool
    stalled: str | None
    pods: tuple[PodView, ...]


class FoldView(Contract):
    """A fold of a trial for reading."""

    index: int
    name: str
    state: FoldState
    term: int
    worker: str | None
    correct: int | None
    clips: int
    best_epoch: int | None
    epochs: int | None
    seconds: FiniteFloat | None
    reused_from: int | None = Field(description="number of the trial with equal parameters that ran it")


class FoldRecord(Contract):
    """A finished fold: what was asked, what came of it. Enough to run it again."""

    task: FoldTask
    result: FoldResult
    best_epoch: int = Field(description="from 0")
    correct: int
    reused_from: int | None = Field(description="number of the trial with equal parameters that ran it")


class ConfusionView(Contract):
    """Confusion counts of a trial's finished folds; row = true class, column = predicted class."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    accuracy: FiniteFloat
    uar: FiniteFloat
    uf1: FiniteFloat


class SplitClip(Contract):
    """A clip that a fold tests."""

    clip_id: str
    label: int = Field(description="its true class, as a place in the study's classes")
    subject: str | None = Field(description="null where the coordinator has the study's clip cache no more")


class SplitFold(Contract):
    """A fold of a study's split."""

    name: str
    clips: tuple[SplitClip, ...]


class SplitView(Contract):
    """Which clips each fold of a study tests; it trains on those of all other subjects."""

    split_hash: str
    classes: tuple[str, ...]
    folds: tuple[SplitFold, ...]


class TrialCost(Contract):
    """What a trial's finished folds took, by what their workers reported."""

    number: int
    folds_run: int = Field(description="folds that were trained for this trial")
    folds_reused: int = Field(description="folds counted from a trial with equal parameters")
    seconds: dict[str, FiniteFloat] = Field(description="of the folds that were run, by device")
    seconds_reused: FiniteFloat = Field(description="that the reused folds had taken where they were run")
    epochs: int = Field(description="of the folds that were run")
    clip_passes: int = Field(description="training clips passed forward and backward, of the folds run")


class ImportanceView(Contract):
    """How much each parameter mattered among a study's complete trials."""

    method: str
    trials: int = Field(description="complete trials it is computed from")
    importance: dict[str, FiniteFloat] = Field(
        description="shares of 1, the largest first; empty where too few trials differ"
    )


class DatasetView(Contract):
    """A clip cache the coordinator knows."""

    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    clips: int
    subjects: int
    frames: int
    frame_size: int
    channels: int


class WorkerView(Contract):
    """A worker that has asked for folds."""

    id: str
    name: str
    device: str
    pod_uid: str | None = Field(description="of its Kubernetes pod, where it showed a token of the cluster")
    seconds_since_seen: FiniteFloat
    study: str | None
    trial: int | None
    fold: int | None
    draining: bool = Field(description="whether it was told to end")
    pod: PodView | None = Field(None, description="as Kubernetes has it, where the coordinator asks it")
