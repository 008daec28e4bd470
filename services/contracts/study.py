"""The spec of a study, and the requests that change a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from services.contracts.base import (
    PRINTABLE,
    SECONDS_ALLOWED,
    TRIALS_ALLOWED,
    WORKERS_ALLOWED,
    Contract,
    Count,
    EpochChoice,
    Objective,
    Share,
    StudyName,
)
from services.contracts.pruning_rules import PruningRule
from services.contracts.samplers import GridSampler, Sampler, TpeSampler, WarmStart
from services.contracts.training import ComputeSettings, Economies, TrainingSettings
from services.errors import InvalidInput
from services.folds import AllClips, HeldOut, LeaveOneSubjectOut, Protocol
from services.grid import grid_axes, grid_size
from services.pruning.median import MedianRule
from services.search_space import Hyperparameters, ParameterValue, SearchSpace, paper_space

DEFAULT_FEEDBACK_DELAY = 8
"""Feedback delay of a study that names no number of workers."""


class CrossValidated(Contract):
    """Result of a configuration in the folds of a study; stored with the model that is trained from it."""

    study: str
    trial: Count
    trials: Count = Field(description="ended trials of the study when this one was selected")
    protocol: Protocol
    folds: Count
    split_hash: str
    seed: Count
    clips: Count
    correct: Count = Field(description="correct clips, at the epochs that count")
    accuracy: Share
    uar: Share
    uf1: Share
    objective: Objective = "accuracy"
    epoch_choice: EpochChoice = "best_per_fold"
    best_epochs: tuple[Count, ...] = Field(description="epoch at which each fold counts, from 1")
    epochs: Count | None = Field(
        None, description="number of epochs of the folds; null for a model of an earlier version"
    )


class StudySpec(Contract):
    """`POST /studies`: the spec of a study."""

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
        description="clip cache: the name of the dataset, or dataset/fingerprint (a prefix is enough)",
    )
    protocol: Protocol = Field(
        LeaveOneSubjectOut(),
        description="without it, `POST /studies` takes loso for up to 20 subjects and kfold for more, and fits "
        "the other missing fields to the clip cache",
    )
    space: SearchSpace = Field(default_factory=paper_space)
    trials: int = Field(800, ge=1, le=TRIALS_ALLOWED, description="number of trials to run")
    seed: int = Field(0, ge=0, lt=2**31)
    sampler: Sampler = TpeSampler()
    pruning: tuple[PruningRule, ...] = (MedianRule(),)
    fold_order: Literal["fixed", "hardest_first"] = Field(
        "fixed",
        description="order of a trial's folds; hardest_first is learnt from the first complete trials",
    )
    objective: Objective = Field(
        "accuracy",
        description="what the study maximises: pooled accuracy, mean recall or mean F1 of the classes",
    )
    epoch_choice: EpochChoice = Field(
        "best_per_fold",
        description="epoch at which a fold counts: each fold's own best (the paper), the best for all folds "
        "together, the last, or the best on validation clips; only the last two do not use the test clips",
    )
    validation_share: FiniteFloat = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of a fold's training subjects that `epoch_choice: validation` keeps for the choice",
    )
    training: TrainingSettings = TrainingSettings()
    economies: Economies = Economies()
    compute: ComputeSettings = ComputeSettings()
    workers_per_trial: int = Field(
        1,
        ge=1,
        le=1000,
        description="maximum number of workers that run folds of the same trial at the same time",
    )
    feedback_delay: int | None = Field(
        DEFAULT_FEEDBACK_DELAY,
        ge=0,
        le=TRIALS_ALLOWED,
        description="d: trial n is suggested and pruned by what the trials below n - d have shown, whatever "
        "the workers; null: by what has ended at that moment. Left out: twice `workers`, or 8 without them",
    )
    idle_workers_help: bool = Field(
        True,
        description="whether idle workers help open trials beyond `workers_per_trial` while no trial can "
        "start, because of the feedback delay or because all have started; without a delay they do not",
    )
    max_expired_leases: int = Field(
        3, ge=1, le=1000, description="expired leases of a fold after which it fails, and its trial with it"
    )
    enqueue: Annotated[tuple[dict[str, ParameterValue], ...], FailFast()] = Field(
        (),
        description="configurations to run first, in this order, before the sampler suggests any; a parameter "
        "that one does not name has its default",
    )
    warm_start: WarmStart | None = None
    trial_seconds: FiniteFloat | None = Field(
        None,
        ge=1,
        le=SECONDS_ALLOWED,
        description="seconds after its first lease at which a trial is cancelled; null: no limit",
    )
    study_seconds: FiniteFloat | None = Field(
        None,
        ge=1,
        le=SECONDS_ALLOWED,
        description="seconds after its start at which the study is stopped; null: no limit",
    )
    cross_validated: CrossValidated | None = Field(
        None, description="for a study that trains on all clips: the result of its configuration in folds"
    )
    priority: int = Field(0, ge=-100, le=100, description="folds of the highest priority are leased first")
    workers: int | None = Field(
        None,
        ge=0,
        le=WORKERS_ALLOWED,
        description="number of worker pods in Kubernetes; null: the chart's number",
    )
    start: bool = True

    @property
    def counted_epoch(self) -> EpochChoice:
        """`epoch_choice`, but always the last epoch for a test on held-out clips and for a model."""
        return "last" if isinstance(self.protocol, AllClips | HeldOut) else self.epoch_choice

    @model_validator(mode="after")
    def _has_a_feedback_delay(self) -> StudySpec:
        if self.workers and "feedback_delay" not in self.model_fields_set:
            # Not among the fields that were set, so that others can still tell. Frozen for its users only.
            self.__dict__["feedback_delay"] = 2 * self.workers
        return self

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
            raise ValueError(f"cross_validated: the protocol is {kind}; only all allows it")
        if isinstance(self.protocol, AllClips | HeldOut) and (self.trials != 1 or self.pruning):
            raise ValueError(
                f"protocol {kind}: trials is {self.trials} and pruning has {len(self.pruning)} rules; this "
                "protocol compares no trials, so set trials to 1 and pruning to []"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_is_used(self) -> StudySpec:
        if self.warm_start is not None and self.sampler.kind != "tpe":
            raise ValueError(f"warm_start: the sampler {self.sampler.kind} learns from no trials")
        return self

    @model_validator(mode="after")
    def _enqueued_fit(self) -> StudySpec:
        if len(self.enqueue) > self.trials:
            raise ValueError(f"enqueue has {len(self.enqueue)} configurations, the study {self.trials} trials")
        completed = []
        for index, parameters in enumerate(self.enqueue):
            try:
                completed.append(self.complete(parameters))
                self.space.canonicalize(completed[-1])
            except InvalidInput as error:
                raise ValueError(f"enqueue.{index}: {error.message}") from error
        # Everything that reads a spec finds whole configurations. The model is frozen for its users only.
        self.__dict__["enqueue"] = tuple(completed)
        return self

    def complete(self, parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
        """A configuration with the default of each parameter of the space that it does not name.

        Defaults are the paper's Table 2, and for other parameters the values in `training`. A parameter with
        one option has that option.

        Raises:
            InvalidInput: the default of a parameter that is not named is outside the space.
        """
        return self.space.complete(parameters, {**Hyperparameters().model_dump(), **self.training.model_dump()})

    @field_validator("pruning")
    @classmethod
    def _each_rule_once(cls, rules: tuple[PruningRule, ...]) -> tuple[PruningRule, ...]:
        names = [rule.rule for rule in rules]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the rule {twice!r} is listed twice; remove one")
        return rules


def _without_delay(given: Any) -> Any:
    return {"feedback_delay": None, **given} if isinstance(given, dict) else given


StoredSpec = Annotated[StudySpec, BeforeValidator(_without_delay)]
"""A spec that a coordinator or a file has. One from before feedback delays has none."""


class Enqueue(Contract):
    """`POST /studies/{name}/enqueue`: configurations to run next, before the sampler suggests more.

    A parameter of the space that a configuration does not name has its default.
    """

    configurations: Annotated[tuple[dict[str, ParameterValue], ...], FailFast()] = Field(
        min_length=1, max_length=1000
    )


class Enqueued(Contract):
    """The numbers of the trials that the enqueued configurations will be."""

    numbers: tuple[int, ...]


class Budget(Contract):
    """`POST /studies/{name}/budget`: the number of trials to run in all."""

    trials: int = Field(ge=1, le=TRIALS_ALLOWED)


class TrainFinal(Contract):
    """`POST /studies/{name}/final`: train a configuration on all clips and keep the model."""

    name: StudyName | None = Field(None, description="name of the study that trains it; null: NAME-final")
    trial: int | None = Field(
        None, ge=0, lt=2**31, description="number of a complete trial; null: the best one"
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="epochs to train for; null: what the study's epoch_choice gives",
    )


class ReplayStudy(Contract):
    """`POST /studies/{name}/replay`: run a whole study again, to compare the two."""

    name: StudyName | None = Field(None, description="name of the new study; null: NAME-replay")


def replay_name(study: str) -> str:
    """Name of the study that runs another one again, unless one is given."""
    return f"{study[:56]}-replay"


class WorkerCount(Contract):
    """`POST /studies/{name}/workers`: the number of worker pods in Kubernetes."""

    workers: int | None = Field(
        ge=0, le=WORKERS_ALLOWED, description="number of pods; null: the chart's number"
    )


class Clone(Contract):
    """`POST /studies/{name}/clone`: a new study with the same spec and clips, and with changes."""

    name: StudyName
    changes: dict[str, Any] = Field(
        default_factory=dict,
        description="JSON merge patch (RFC 7396) of the spec; a mapping with a `kind` replaces the old one",
    )
