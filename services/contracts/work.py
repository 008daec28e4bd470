"""The protocol between worker and coordinator: claims, leases, tasks, results, heartbeats."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import (
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
)

from services.contracts.base import (
    PRINTABLE,
    Contract,
    Count,
    LeaseId,
    Loss,
    ModelId,
    Share,
    StudyName,
    is_empty,
)
from services.contracts.study import CrossValidated
from services.contracts.training import ComputePlan, Economies, MemoryFormat, TrainingSettings
from services.folds import OuterFold
from services.pruning.rule import PruneDecision
from services.search_space import Hyperparameters


class WorkerInfo(Contract):
    """The worker that claims a fold. Its id is new for every process: a restarted pod is another worker."""

    id: str = Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+$")
    name: str = Field(max_length=128, pattern=PRINTABLE)
    device: str = Field(max_length=128, pattern=PRINTABLE, description="such as `cpu` or `NVIDIA H200`")


class ClaimRequest(Contract):
    """`POST /claims`: claim a fold."""

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
    study: StudyName | None = Field(None, description="claim only folds of this study; null: of any")
    caches: Annotated[tuple[Annotated[str, Field(max_length=200, pattern=PRINTABLE)], ...], FailFast()] = Field(
        max_length=1000, description="fingerprints of the clip caches that this worker can read"
    )
    plans: tuple[ComputePlan, ...] = Field(
        (ComputePlan(),),
        max_length=20,
        description="compute plans that this worker's device runs soundly, the preferred one first",
    )
    keeps_models: bool = Field(
        False,
        description="whether this worker can write to the model catalogue, which training on all clips needs",
    )
    wait_seconds: FiniteFloat = Field(20.0, ge=0, le=20, description="seconds to wait for a fold")


class Lease(Contract):
    """The right to run one fold until the lease expires. Every call on it sends its term and secret."""

    id: LeaseId
    term: int = Field(ge=1)
    secret: str
    seconds: FiniteFloat = Field(description="seconds after which the lease expires unless it is renewed")
    heartbeat_seconds: FiniteFloat = Field(description="seconds between two heartbeats")


class FoldTask(Contract):
    """Everything that determines a fold's result, and the fold's position in its study."""

    study: str
    trial: int
    fold: int
    fold_name: str
    folds: int = Field(description="number of folds of the trial")
    hyperparameters: Hyperparameters
    training: TrainingSettings
    economies: Economies
    compute: ComputePlan
    memory_format: MemoryFormat | None = Field(
        None, description="memory format of the convolutions; null: the worker's choice"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads to train with; null: the worker's choice, and on a GPU"
    )
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    test_clips: tuple[str, ...]
    validation_clips: tuple[str, ...] = Field(
        (), description="clips that are not trained on and are tested too, to choose the epoch"
    )
    split_hash: str
    outer: OuterFold | None = Field(None, description="outer fold whose subjects are not trained on")
    seed: int
    study_seed: int
    trains_on_all: bool = Field(
        False, description="whether it also trains on the test clips; the network is then kept as a model"
    )
    cross_validated: CrossValidated | None = Field(
        None, description="result of the configuration in folds, for the card of that model"
    )


class FoldAssignment(FoldTask):
    """A fold to run, with its lease."""

    lease: Lease


class EpochResult(Contract):
    """Predictions of one training epoch for the fold's test clips, in the order of `test_clips`.

    Validation predictions are not written if there are none, as in older results and in their hashes.
    """

    loss: Loss | None = Field(description="mean training loss; null if it was not finite")
    predicted: Annotated[tuple[Count, ...], FailFast()]
    probabilities: Annotated[tuple[Annotated[tuple[Share, ...], MinLen(2), FailFast()], ...], FailFast()] = (
        Field(description="clips x classes, 6 decimals")
    )
    validation_predicted: Annotated[tuple[Count, ...], FailFast()] = Field(
        (), exclude_if=is_empty, description="predictions for `validation_clips`, in their order"
    )


_Word = Annotated[str, Field(max_length=128, pattern=PRINTABLE)]


class Provenance(Contract):
    """Device, versions and inputs with which a fold was run, for running it again."""

    device: _Word
    torch: _Word
    cuda: _Word | None
    cudnn: _Word | None
    threads: Count
    compute: ComputePlan
    memory_format: MemoryFormat = Field(description="memory format of the convolutions")
    revision: str | None = Field(
        max_length=1000, pattern=PRINTABLE, description="git revision or image digest of the worker"
    )
    fingerprint: str = Field(description="fingerprint of the clip cache")
    split_hash: str
    seed: int = Field(ge=0, lt=2**63)
    seconds: FiniteFloat = Field(ge=0, lt=2**31)
    clip_passes: int = Field(ge=0, lt=2**31, description="training clips passed forward and backward")
    redone_steps: Count = Field(
        0, description="steps that were repeated in fp32 because their gradient was not finite"
    )
    device_memory: int | None = Field(
        None, ge=0, lt=2**63, description="peak memory on the GPU in bytes; null on a CPU"
    )
    host_memory: int | None = Field(
        None, ge=0, lt=2**63, description="peak memory of the worker process in bytes"
    )


class TrainedModel(Contract):
    """A model that a worker has trained and stages until the result that names it is counted."""

    id: ModelId
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the weights file")


class FoldResult(Contract):
    """`PUT /leases/{id}/result`: the predictions for every test clip after every epoch."""

    epochs: Annotated[tuple[EpochResult, ...], FailFast()] = Field(min_length=1, max_length=1000)
    diverged: bool = Field(
        False, description="whether the loss became infinite or NaN; the epochs before that count"
    )
    model: TrainedModel | None = Field(
        None, description="the trained model; required if the fold trains on all clips, otherwise null"
    )
    provenance: Provenance


class Verdict(Contract):
    """The reply to a result: the decision on the trial, and the worker's next fold."""

    decision: Literal["continue", "complete", "pruned"]
    trial_accuracy: FiniteFloat
    pruned: PruneDecision | None = None
    next: FoldAssignment | None = None


class Heartbeat(Contract):
    """`POST /leases/{id}/heartbeat`: the worker's progress in its fold."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epoch": 3, "step": 412, "loss": 0.71}]})

    epoch: int = Field(ge=0, lt=2**31)
    step: int = Field(
        ge=0,
        lt=2**31,
        description="optimiser steps so far; if it stops growing, the lease is no longer renewed",
    )
    loss: Loss | None = None


class HeartbeatReply(Contract):
    """The command for the worker."""

    command: Literal["continue", "abandon", "drain"] = Field(
        description="continue; abandon: stop running the fold; drain: release the fold and end"
    )
    lease_seconds: FiniteFloat = Field(description="seconds until the lease expires; 0 if it was not renewed")


class Failure(Contract):
    """`POST /leases/{id}/fail`: the fold could not be run, because of the worker's environment or the trial."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "environment", "message": "the GPU has fallen off the bus"}]}
    )

    kind: Literal["environment", "trial"]
    message: str = Field(max_length=2000, pattern=PRINTABLE)
