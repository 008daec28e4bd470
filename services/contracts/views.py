"""The coordinator's replies about studies, trials, folds, datasets and workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationInfo

from services.contracts.base import Contract, EpochChoice, Objective, Share
from services.contracts.states import FoldState, StudyState, TrialState
from services.contracts.study import StoredSpec
from services.contracts.training import StudyPlan
from services.contracts.work import FoldResult, FoldTask
from services.pruning.rule import PruneDecision
from services.replies import is_reply
from services.search_space import ParameterValue


def _known_states(counts: Any, info: ValidationInfo) -> Any:
    """Keeps the counts whose state this program knows."""
    if not is_reply(info) or not isinstance(counts, Mapping):
        return counts
    known = {state.value for state in TrialState}
    return {state: number for state, number in counts.items() if state in known}


class TrialView(Contract):
    """A trial."""

    number: int
    state: TrialState
    parameters: dict[str, ParameterValue]
    value: FiniteFloat | None = Field(
        description="what the study maximises, over all folds (0 to 1); null until all are done"
    )
    folds_done: int = Field(description="finished folds that count")
    folds_beyond_verdict: int = Field(
        0, description="other finished folds: a rule ended the trial on fewer folds than were finished"
    )
    folds: int
    correct: int = Field(description="correct clips of the finished folds")
    clips: int = Field(description="test clips of the finished folds")
    running_accuracy: FiniteFloat | None
    uar: Share | None = Field(None, description="mean recall of the classes over these folds; null for none")
    uf1: Share | None = Field(None, description="mean F1 of the classes over these folds; null for none")
    pruned: PruneDecision | None
    learnt_order: bool = Field(description="whether it runs its folds in the order that the study learnt")
    end_reason: str | None
    worker: str | None = Field(description="name of a worker that holds a fold of it now")

    def score(self, objective: Objective) -> float | None:
        """Accuracy, UAR or UF1 over the finished folds that count; None without any."""
        return {"accuracy": self.running_accuracy, "uar": self.uar, "uf1": self.uf1}[objective]


class StudyView(Contract):
    """A study with its counts and its best trial."""

    name: str
    state: StudyState
    reason: str | None = Field(description="why it was stopped")
    spec: StoredSpec
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    clips: int
    folds: int
    split_hash: str
    fold_order: tuple[int, ...] | None = Field(
        description="indices of the folds, hardest first; null if the order is fixed or not learnt yet"
    )
    plan: StudyPlan | None = Field(
        None, description="how its folds are computed; null until it is frozen with a lease"
    )
    trials: Annotated[dict[TrialState, int], BeforeValidator(_known_states)]
    folds_done: int = Field(description="finished folds of all trials, also those beyond a verdict")
    chance: FiniteFloat = Field(description="chance level: 1 / number of classes")
    best: TrialView | None = Field(
        description="best complete trial; without any, the pruned one of highest bound"
    )
    stalled: str | None = Field(
        None, description="reason from the scheduler, the quota or Kueue why no worker pod starts"
    )
    troubles: tuple[str, ...] = Field(
        (), description="in the reply for one study: what keeps it from getting on, in sentences"
    )
    warnings: tuple[str, ...] = Field(
        (), description="in the reply to the study's creation: what is wrong with its clips, though it can run"
    )


class StudyDigest(Contract):
    """`GET /studies/{name}/digest`: equal for two runs that chose, trained and pruned the same."""

    study: str
    digest: str = Field(description="SHA-256 over the trials, the budget, what was enqueued and the plan")
    trials: int = Field(description="number of trials in it: those that ended, up to the first that has not")
    of_trials: tuple[str, ...] = Field(description="SHA-256 of each of these trials, by number")
    depends_on: tuple[Literal["order", "clock", "failures", "stop"], ...] = Field(
        description="what it depends on besides spec, seed and clips: the order in which folds finished (the "
        "study has no feedback delay), a clock (it has a time limit), failed trials, or the moment at which it "
        "was stopped"
    )
    plan: StudyPlan | None


class PodView(Contract):
    """A worker's pod in Kubernetes."""

    name: str
    uid: str
    phase: str = Field(description="Pending, Running, Succeeded, Failed, Unknown or Terminating")
    node: str | None
    gpus: dict[str, str] = Field(description="extended resources that it has, such as nvidia.com/gpu: 1")
    reason: str | None = Field(description="reason why it does not start, or why it ended")
    message: str | None


class StudyWorkersView(Contract):
    """A study's workers in Kubernetes."""

    job: str | None = Field(description="name of its Job; null if there is none")
    wanted: int | None = Field(description="number of pods that the Job runs; null if there is no Job")
    suspended: bool
    stalled: str | None
    pods: tuple[PodView, ...]


class FoldView(Contract):
    """A fold of a trial."""

    index: int
    beyond_verdict: bool = Field(
        False, description="whether it enters no figure of the trial: a rule ended the trial on fewer folds"
    )
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
    """A finished fold: its task and its result, enough to run it again."""

    task: FoldTask
    result: FoldResult
    best_epoch: int = Field(description="from 0")
    correct: int
    reused_from: int | None = Field(description="number of the trial with equal parameters that ran it")


class Reading(Contract):
    """The scores of a trial if the epoch at which its folds count is chosen in this way."""

    choice: EpochChoice
    epoch: int | None = Field(description="from 1; null if each fold has its own")
    correct: int | None
    accuracy: Share | None
    uar: Share | None
    uf1: Share | None
    not_recorded: str | None = Field(description="why there are no numbers")


class ReadingsView(Contract):
    """All readings of a trial's best epoch, over its finished folds that count."""

    trial: int
    clips: int = Field(description="test clips of these folds")
    subjects: int | None = Field(description="null if the coordinator does not have the study's clip cache")
    counts: EpochChoice = Field(description="the reading that counts in the study")
    readings: tuple[Reading, ...] = Field(description="without `validation` where there are no such clips")


class ConfusionView(Contract):
    """Confusion counts of a trial's finished folds: row = true class, column = predicted class."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    accuracy: FiniteFloat
    uar: FiniteFloat
    uf1: FiniteFloat


class SplitClip(Contract):
    """A clip that a fold tests, or chooses its epoch on."""

    clip_id: str
    label: int = Field(description="true class, as an index into the study's classes")
    subject: str | None = Field(description="null if the coordinator does not have the study's clip cache")


class SplitFold(Contract):
    """A fold of a study's split."""

    name: str
    clips: tuple[SplitClip, ...]
    validation: tuple[SplitClip, ...] = Field((), description="clips that choose the epoch, not trained on")


class SplitView(Contract):
    """The clips that each fold of a study tests, and those that choose its epoch.

    A fold trains on the clips of all other subjects, except those of an outer fold.
    """

    split_hash: str
    classes: tuple[str, ...]
    folds: tuple[SplitFold, ...]


class TrialCost(Contract):
    """Costs of a trial's finished folds, as their workers reported them."""

    number: int
    folds_run: int = Field(description="folds that were run for this trial")
    folds_reused: int = Field(description="folds counted from a trial with equal parameters")
    seconds: dict[str, FiniteFloat] = Field(description="seconds of the folds that were run, by device")
    seconds_reused: FiniteFloat = Field(description="seconds that the reused folds took where they were run")
    epochs: int = Field(description="epochs of the folds that were run")
    clip_passes: int = Field(
        description="training clips passed forward and backward in the folds that were run"
    )


class ImportanceView(Contract):
    """Importance of each parameter among a study's complete trials."""

    method: str
    trials: int = Field(description="number of complete trials that it is computed from")
    importance: dict[str, FiniteFloat] = Field(
        description="shares that sum to 1, the largest first; empty if too few trials differ"
    )


class DatasetView(Contract):
    """A clip cache that the coordinator has."""

    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    class_counts: dict[str, int] = Field(
        {}, description="clips of each class; empty from a coordinator of an earlier version"
    )
    clips: int
    subjects: int
    frames: int
    frame_size: int
    channels: int


class WorkerView(Contract):
    """A worker that has claimed folds."""

    id: str
    name: str
    device: str
    pod_uid: str | None = Field(
        description="uid of its Kubernetes pod; null if it sent no token of the cluster"
    )
    seconds_since_seen: FiniteFloat
    study: str | None
    trial: int | None
    fold: int | None
    draining: bool = Field(description="whether it was drained")
    pod: PodView | None = Field(None, description="its pod; null if the coordinator does not watch it")
