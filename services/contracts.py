"""Wire types: what processes say to each other and what people post and read.

Every type refuses unknown fields, and every number is finite. A field's description is its documentation.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NewType

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    field_validator,
    model_validator,
)

from services.errors import InvalidInput
from services.folds import AllClips, HeldOut, LeaveOneSubjectOut, OuterFold, Protocol
from services.grid import grid_axes, grid_size
from services.search_space import Hyperparameters, ParameterValue, SearchSpace, TunableSettings, paper_space

StudyName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
LeaseId = NewType("LeaseId", str)
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?-[0-9a-f]{12}$")]
"""A name and the first 12 digits of the weights' SHA-256."""

PRINTABLE = r"^[^\x00]*$"
"""PostgreSQL has no text with a NUL in it."""

ANY_CLASS = "*"
"""In augmentation counts: every class that is not named."""

TRIALS_ALLOWED = 100_000
"""In one study."""

WORKERS_ALLOWED = 10_000
"""Of one study in Kubernetes."""


class Contract(BaseModel):
    """Base of all wire types: frozen, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- States -----------------------------------------------------------------------------------------------


class StudyState(StrEnum):
    """Life of a study: draft -> running <-> paused -> complete | stopped | failed."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """No fold will ever be leased again."""
        return self in {StudyState.COMPLETE, StudyState.STOPPED, StudyState.FAILED}


class TrialState(StrEnum):
    """Life of a trial: ready -> running -> complete | pruned | failed | cancelled (these absorb)."""

    READY = "ready"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """The trial has ended."""
        return self not in {TrialState.READY, TrialState.RUNNING}


class FoldState(StrEnum):
    """Life of a fold: pending -> leased -> done | failed; a lapsed or released lease is pending again."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"


# --- A study as it is posted ------------------------------------------------------------------------------


class AugmentationCounts(Contract):
    """How many copies of each clip are added to the training set, by kind (paper sections 4.1, 4.2)."""

    flip: int = Field(0, ge=0, le=1)
    rotation: int = Field(0, ge=0, le=100)
    contrast: int = Field(0, ge=0, le=100)


class Augmentation(Contract):
    """Which augmented copies are made (paper section 3.2); made once per study, the same for all its folds."""

    counts: dict[str, AugmentationCounts] = Field(
        default_factory=dict, description=f"per class name; {ANY_CLASS!r} stands for every class not named"
    )
    rotation_degrees: FiniteFloat = Field(30.0, ge=0, le=180, description="angles are drawn from +- this")
    contrast_low: FiniteFloat = Field(0.22, ge=0)
    contrast_high: FiniteFloat = Field(2.2, ge=0)
    border: Literal["black", "replicate"] = Field("black", description="what a rotation pulls in from outside")

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        if self.contrast_low > self.contrast_high:
            raise ValueError(
                f"contrast_low ({self.contrast_low}) is above contrast_high ({self.contrast_high})"
            )
        return self

    def counts_for(self, class_name: str) -> AugmentationCounts:
        """The copies made of a clip of this class."""
        return self.counts.get(class_name) or self.counts.get(ANY_CLASS) or AugmentationCounts()


class TrainingSettings(TunableSettings):
    """What is the same for all trials of a study unless its space searches it; defaults are the paper's."""

    frames: int = Field(10, ge=1, le=256, description="frames of a clip; must be the cache's")
    frame_size: int = Field(112, ge=16, le=512, description="pixels on a side; must be the cache's")
    augmentation: Augmentation = Augmentation()
    batch_norm: Literal["before activation", "after activation"] = Field(
        "before activation", description="where batch normalisation stands after a convolution"
    )
    pool_counts_padding: bool = Field(
        True, description="the last average pool takes the padding around it as zeros"
    )
    pretrained: ModelId | None = Field(
        None, description="model of the catalogue that networks start from, with a new last layer"
    )


class Economies(Contract):
    """Ways to the same reported result with less work. Each is proven by a test, and can be switched off."""

    stop_when_perfect: bool = Field(
        True, description="end a fold at the first epoch with every test clip right: its best epoch is known"
    )
    skip_dead_taps: bool = Field(True, description="do not compute kernel taps that only ever meet padding")
    gray_as_one_channel: bool = Field(
        True, description="take a gray clip's three equal channels through the first convolution as one"
    )
    reuse_folds: bool = Field(True, description="count a fold already done with equal parameters again")


class ComputePlan(Contract):
    """How the arithmetic is done, part of the study because it can change results."""

    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="below fp32 only on devices where a check against fp32 passes"
    )
    compiled: bool = Field(False, description="by torch.compile; needs a C++ compiler (CPU) or Triton (GPU)")


MemoryFormat = Literal["contiguous", "channels_last"]


class TpeSampler(Contract):
    """Optuna's TPE with every argument that matters named (paper section 3.3)."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(10, ge=1, description="trials drawn at random before the model is used")
    candidates: int = Field(24, ge=1, description="candidates scored for each suggestion")
    multivariate: bool = True
    constant_liar: bool = Field(True, description="keeps parallel suggestions apart")


class RandomSampler(Contract):
    """Each configuration drawn at random, whatever came of the others."""

    kind: Literal["random"] = "random"


class GridSampler(Contract):
    """Every combination of the space's values, each once."""

    kind: Literal["grid"] = "grid"
    order: Literal["shuffled", "lexicographic"] = Field(
        "shuffled", description="by the study's seed, or the last parameter of the space changing fastest"
    )
    points: dict[str, Annotated[int, Field(ge=2, le=1000)]] = Field(
        default_factory=dict, description="how many values of each range, both ends included"
    )


def _sampler_kind(given: Any) -> Any:
    # A sampler without a kind is TPE: so it was when there was no other.
    return given.get("kind", "tpe") if isinstance(given, dict) else getattr(given, "kind", None)


Sampler = Annotated[
    Annotated[TpeSampler, Tag("tpe")]
    | Annotated[RandomSampler, Tag("random")]
    | Annotated[GridSampler, Tag("grid")],
    Discriminator(_sampler_kind),
]


class WarmStart(Contract):
    """Ended trials of another study for the sampler to learn from, copied when the study is created."""

    study: StudyName
    trials: str = Field(
        "all",
        pattern=r"^(all|complete|best [1-9][0-9]{0,5})$",
        description="`all` that are complete or pruned, the `complete` ones, or the `best 20` of these",
    )

    @property
    def best(self) -> int | None:
        """How many of the best are meant, if not all."""
        return int(self.trials.removeprefix("best ")) if self.trials.startswith("best ") else None


class BoundRule(Contract):
    """Prune a trial that cannot reach `threshold` even if every clip to come is right. Exact, never wrong."""

    rule: Literal["bound"] = "bound"
    threshold: FiniteFloat = Field(ge=0, le=1, description="of the metric; the paper prunes below 0.965")
    metric: Literal["accuracy", "uar", "uf1"] = Field(
        "accuracy", description="pooled accuracy, or mean recall or mean F1 of the classes, over all folds"
    )


class MedianRule(Contract):
    """Prune a trial whose best running accuracy so far is below the median of complete trials at this fold."""

    rule: Literal["median"] = "median"
    startup_trials: int = Field(5, ge=1, description="complete trials before anything is pruned")
    warmup_folds: int | None = Field(
        None, ge=0, description="folds of a trial that are always run; by default 10 for LOSO, 3 for k-fold"
    )


class PairedRule(Contract):
    """Prune a trial whose folds are worse than the same folds of the median complete trial, beyond chance.

    That is when the mean difference of their accuracies plus so many of its standard errors is below 0.
    """

    rule: Literal["paired"] = "paired"
    standard_errors: FiniteFloat = Field(
        2.5, ge=0, le=100, description="how far below: more let a trial that is nearly as good run on"
    )
    startup_trials: int = Field(5, ge=1, description="complete trials before anything is pruned")
    warmup_folds: int | None = Field(
        None, ge=0, description="folds of a trial that are always run; by default 10 for LOSO, 3 for k-fold"
    )


PruningRule = Annotated[BoundRule | MedianRule | PairedRule, Field(discriminator="rule")]


class CrossValidated(Contract):
    """How a configuration did in the folds of a study; goes with the model that is trained from it."""

    study: str
    trial: int
    trials: int = Field(description="ended trials of the study, of which this one was taken")
    protocol: Protocol
    folds: int
    split_hash: str
    seed: int
    clips: int
    correct: int = Field(description="each fold at its best epoch")
    accuracy: FiniteFloat
    uar: FiniteFloat
    uf1: FiniteFloat
    best_epochs: tuple[int, ...] = Field(description="of each fold, the first is 1")


class StudySpec(Contract):
    """A study as a person posts it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "first", "cache": "ckplus"},
                {
                    "name": "quick",
                    "cache": "ckplus/3f9a21bc77d0",
                    "protocol": {"kind": "kfold", "k": 10},
                    "space": {"activation": ["ReLU", "ELU"], "dropout": {"low": 0.0, "high": 0.5}},
                    "trials": 50,
                    "pruning": [{"rule": "bound", "threshold": 0.965}, {"rule": "median"}],
                },
            ]
        }
    )

    name: StudyName
    cache: str = Field(
        min_length=1,
        max_length=200,
        pattern=PRINTABLE,
        description="a clip cache by dataset name, or by dataset/fingerprint (a prefix of it is enough)",
    )
    protocol: Protocol = LeaveOneSubjectOut()
    space: SearchSpace = Field(default_factory=paper_space)
    trials: int = Field(800, ge=1, le=TRIALS_ALLOWED, description="trials to run, exactly")
    seed: int = Field(0, ge=0, lt=2**31)
    sampler: Sampler = TpeSampler()
    pruning: tuple[PruningRule, ...] = (MedianRule(),)
    fold_order: Literal["fixed", "hardest_first"] = Field(
        "fixed",
        description="in which a trial runs its folds; hardest_first is learnt from the first complete trials",
    )
    training: TrainingSettings = TrainingSettings()
    economies: Economies = Economies()
    compute: ComputePlan = ComputePlan()
    workers_per_trial: int = Field(
        1, ge=1, le=1000, description="with more, idle workers help with the folds of a trial under way"
    )
    enqueue: tuple[dict[str, ParameterValue], ...] = Field(
        (), description="configurations to run first, in this order, before the sampler is asked"
    )
    warm_start: WarmStart | None = None
    trial_seconds: FiniteFloat | None = Field(
        None, ge=1, description="a trial is cancelled so long after its first fold was leased"
    )
    study_seconds: FiniteFloat | None = Field(
        None, ge=1, description="the study is stopped so long after it was started"
    )
    cross_validated: CrossValidated | None = Field(
        None, description="of a study that trains on all clips: how its configuration did before"
    )
    priority: int = Field(0, ge=-100, le=100, description="folds of the highest priority are leased first")
    workers: int | None = Field(
        None, ge=0, le=WORKERS_ALLOWED, description="pods in Kubernetes; null: as many as the chart says"
    )
    start: bool = True

    @model_validator(mode="after")
    def _grid_is_large_enough(self) -> StudySpec:
        if not isinstance(self.sampler, GridSampler):
            return self
        try:
            size = grid_size(grid_axes(self.space, self.sampler.points))
        except InvalidInput as error:
            raise ValueError(error.message) from error
        if self.trials > size + len(self.enqueue):
            enqueued = f" and {len(self.enqueue)} are enqueued" if self.enqueue else ""
            raise ValueError(
                f"trials is {self.trials}, the grid has {size} configurations{enqueued}; "
                f"set trials to {size + len(self.enqueue)} or less"
            )
        return self

    @model_validator(mode="after")
    def _compares_only_by_cross_validation(self) -> StudySpec:
        kind = self.protocol.kind
        if not isinstance(self.protocol, AllClips) and self.cross_validated is not None:
            raise ValueError(f"cross_validated: the protocol is {kind}, not all")
        if isinstance(self.protocol, AllClips | HeldOut) and (self.trials != 1 or self.pruning):
            raise ValueError(
                f"protocol {kind}: trials is {self.trials} and pruning has {len(self.pruning)} rules; nothing "
                "is to be chosen by it, so set trials to 1 and pruning to []"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_is_of_use(self) -> StudySpec:
        if self.warm_start is not None and self.sampler.kind != "tpe":
            raise ValueError(f"warm_start: the sampler {self.sampler.kind} learns from no trials")
        return self

    @model_validator(mode="after")
    def _enqueued_fit(self) -> StudySpec:
        if len(self.enqueue) > self.trials:
            raise ValueError(f"enqueue has {len(self.enqueue)} configurations, the study {self.trials} trials")
        for place, parameters in enumerate(self.enqueue):
            try:
                self.space.tidy(parameters)
            except InvalidInput as error:
                raise ValueError(f"enqueue.{place}: {error.message}") from error
        return self

    @field_validator("pruning")
    @classmethod
    def _each_rule_once(cls, rules: tuple[PruningRule, ...]) -> tuple[PruningRule, ...]:
        names = [rule.rule for rule in rules]
        if len(set(names)) != len(names):
            raise ValueError("a rule stands twice")
        return rules

    def warmup_folds(self, rule: MedianRule | PairedRule) -> int:
        """Folds of a trial that `rule` always lets run."""
        if rule.warmup_folds is not None:
            return rule.warmup_folds
        return 10 if isinstance(self.protocol, LeaveOneSubjectOut) else 3


def configure(
    parameters: dict[str, Any], training: TrainingSettings
) -> tuple[Hyperparameters, TrainingSettings]:
    """What a trial's parameters mean: its network and optimiser, and the settings it trains with.

    Parameters of Table 1 that a space leaves out take the defaults of `Hyperparameters`.
    """
    ours = {k: v for k, v in parameters.items() if k in Hyperparameters.model_fields}
    others = {k: v for k, v in parameters.items() if k not in Hyperparameters.model_fields}
    return Hyperparameters(**ours), training.model_copy(update=others)


# --- What people ask of a study ---------------------------------------------------------------------------


class Enqueue(Contract):
    """`POST /studies/{name}/enqueue`: run these next, before the sampler is asked again."""

    configurations: tuple[dict[str, ParameterValue], ...] = Field(min_length=1, max_length=1000)


class Enqueued(Contract):
    """Which trials the enqueued configurations will be."""

    numbers: tuple[int, ...]


class Budget(Contract):
    """`POST /studies/{name}/budget`: how many trials to run in all."""

    trials: int = Field(ge=1, le=TRIALS_ALLOWED)


class TrainFinal(Contract):
    """`POST /studies/{name}/final`: train a configuration on all clips, for a model to take away."""

    name: StudyName | None = Field(None, description="of the study that trains it; null: NAME-final")
    trial: int | None = Field(None, ge=0, lt=2**31, description="number of a complete trial; null: the best")


class WorkerCount(Contract):
    """`POST /studies/{name}/workers`: how many pods of workers Kubernetes should run."""

    workers: int | None = Field(ge=0, le=WORKERS_ALLOWED, description="null: as many as the chart says")


class Clone(Contract):
    """`POST /studies/{name}/clone`: a new study of the same spec on the same clips, with changes."""

    name: StudyName
    changes: dict[str, Any] = Field(
        default_factory=dict,
        description="JSON merge patch (RFC 7396) of the spec; a mapping with a `kind` replaces the whole",
    )


# --- Worker and coordinator -------------------------------------------------------------------------------


class WorkerInfo(Contract):
    """Who asks for work. The id is new for every process: a restarted pod is another worker."""

    id: str = Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+$")
    name: str = Field(max_length=128, pattern=PRINTABLE)
    device: str = Field(max_length=128, pattern=PRINTABLE, description="such as `cpu` or `NVIDIA H200`")


class ClaimRequest(Contract):
    """`POST /claims`: give me a fold."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "worker": {"id": "5b0c1f6e-worker", "name": "gpu-3", "device": "NVIDIA H200"},
                    "study": "first",
                    "caches": ["f" * 64],
                    "wait_seconds": 20,
                }
            ]
        }
    )

    worker: WorkerInfo
    study: StudyName | None = Field(None, description="only folds of this study; otherwise of any")
    caches: tuple[Annotated[str, Field(max_length=200, pattern=PRINTABLE)], ...] = Field(
        max_length=1000, description="fingerprints of the caches this worker can read"
    )
    plans: tuple[ComputePlan, ...] = Field(
        (ComputePlan(),), max_length=20, description="compute plans that this worker's device runs soundly"
    )
    keeps_models: bool = Field(
        False, description="whether this worker can write to the model catalogue, as training on all clips asks"
    )
    wait_seconds: FiniteFloat = Field(20.0, ge=0, le=20, description="how long to wait for a fold")


class Lease(Contract):
    """The right to run one fold, until it lapses. Every call on it carries its term and secret."""

    id: LeaseId
    term: int = Field(ge=1)
    secret: str
    seconds: FiniteFloat
    heartbeat_seconds: FiniteFloat


class FoldTask(Contract):
    """Everything that a fold's result follows from, and its place in a study."""

    study: str
    trial: int
    fold: int
    fold_name: str
    folds: int = Field(description="folds of the trial")
    hyperparameters: Hyperparameters
    training: TrainingSettings
    economies: Economies
    compute: ComputePlan
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    test_clips: tuple[str, ...]
    split_hash: str
    outer: OuterFold | None = Field(None, description="its subjects are not trained on")
    seed: int
    study_seed: int
    trains_on_all: bool = Field(False, description="on the test clips too; the network is kept as a model")
    cross_validated: CrossValidated | None = Field(None, description="for the card of that model")


class FoldAssignment(FoldTask):
    """A fold to run, and the right to do so."""

    lease: Lease


class EpochResult(Contract):
    """What one training epoch gave on the fold's test clips, in the order of `test_clips`."""

    loss: FiniteFloat | None = Field(description="mean training loss; null when it was not finite")
    predicted: tuple[int, ...]
    probabilities: tuple[tuple[FiniteFloat, ...], ...] = Field(description="clips x classes, 6 decimals")


_Word = Annotated[str, Field(max_length=128, pattern=PRINTABLE)]


class Provenance(Contract):
    """Where and with what a fold was run, for replay."""

    device: _Word
    torch: _Word
    cuda: _Word | None
    cudnn: _Word | None
    threads: int
    compute: ComputePlan
    memory_format: MemoryFormat = Field(description="of the convolutions, chosen by measurement")
    revision: str | None = Field(
        max_length=1000, pattern=PRINTABLE, description="git revision or image digest of the worker"
    )
    fingerprint: str = Field(description="of the clip cache")
    split_hash: str
    seed: int
    seconds: FiniteFloat = Field(ge=0, lt=2**31)
    clip_passes: int = Field(ge=0, lt=2**31, description="training clips passed forward and backward")
    redone_steps: int = Field(0, description="steps done again in fp32, their gradient was not finite")
    device_memory: int | None = Field(None, description="most bytes held on the GPU; null on a CPU")
    host_memory: int | None = Field(None, description="most bytes the worker process has held")


class TrainedModel(Contract):
    """A model that a worker has made and keeps until the result that names it is counted."""

    id: ModelId
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the weights file")


class FoldResult(Contract):
    """`PUT /leases/{id}/result`: the predictions of every test clip at every epoch that was run."""

    epochs: tuple[EpochResult, ...] = Field(min_length=1, max_length=1000)
    diverged: bool = Field(False, description="the loss was not finite; the epochs before count")
    model: TrainedModel | None = Field(None, description="exactly where the fold trains on all clips")
    provenance: Provenance


class PruneDecision(Contract):
    """Why a trial was pruned: which rule, after which fold, on what numbers."""

    rule: str
    fold: int = Field(description="index of the last fold that counted")
    numbers: dict[str, FiniteFloat]


class Verdict(Contract):
    """The reply to a result: what became of the trial, and the worker's next fold."""

    decision: Literal["continue", "complete", "pruned"]
    trial_accuracy: FiniteFloat
    pruned: PruneDecision | None = None
    next: FoldAssignment | None = None


class Heartbeat(Contract):
    """`POST /leases/{id}/heartbeat`: I am alive, and this is how far I am."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epoch": 3, "step": 412, "loss": 0.71}]})

    epoch: int = Field(ge=0, lt=2**31)
    step: int = Field(
        ge=0, lt=2**31, description="optimiser steps so far; a number that stands still is not renewed"
    )
    loss: FiniteFloat | None = None


class HeartbeatReply(Contract):
    """What the worker should do now."""

    command: Literal["continue", "abandon", "drain"] = Field(
        description="drain: release the fold and end; somebody asked for it"
    )
    lease_seconds: FiniteFloat


class Failure(Contract):
    """`POST /leases/{id}/fail`: the fold could not be run; whose fault it is decides what follows."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "environment", "message": "the GPU has fallen off the bus"}]}
    )

    kind: Literal["environment", "trial"]
    message: str = Field(max_length=2000, pattern=PRINTABLE)


# --- What people read -------------------------------------------------------------------------------------


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
    reason: str | None = Field(description="why it failed or was stopped")
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


class EventKind(StrEnum):
    """What `/events` tells of."""

    STUDY_MOVED = "study_moved"
    STUDY_CHANGED = "study_changed"
    STUDY_DELETED = "study_deleted"
    TRIAL_ENDED = "trial_ended"
    FOLD_ACCEPTED = "fold_accepted"


class Event(Contract):
    """Something that happened."""

    id: str = Field(description="to go on after it: the header Last-Event-ID, or the query `after`")
    kind: EventKind
    study: str
    at: datetime
    data: dict[str, ParameterValue | None]


class TokenScope(StrEnum):
    """What a token is good for: admin includes write and worker, write includes read."""

    WORKER = "worker"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    @property
    def includes(self) -> frozenset[TokenScope]:
        """The scopes whose routes a token of this scope opens, its own among them."""
        match self:
            case TokenScope.ADMIN:
                return frozenset(TokenScope)
            case TokenScope.WRITE:
                return frozenset({TokenScope.WRITE, TokenScope.READ})
            case _:
                return frozenset({self})


TokenId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class TokenSpec(Contract):
    """`POST /tokens`: a token that is wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "nightly report", "scope": "read"}]})

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$",
        description="who or what it is for; no two tokens in use have the same",
    )
    scope: TokenScope


class TokenView(Contract):
    """A token for reading; nobody can read its secret again."""

    id: TokenId
    name: str
    scope: TokenScope
    created_at: AwareDatetime
    last_used: AwareDatetime | None = Field(description="to the minute; null before its first use")
    revoked_at: AwareDatetime | None = Field(description="null while it is good")


class NewToken(TokenView):
    """A token that was just made, with what its holder sends; this is the only time it is told."""

    token: str


class Problem(Contract):
    """An error as JSON (RFC 9457): what happened, which field, what to do next is in the detail."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
