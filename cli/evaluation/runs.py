"""Run given configurations as trials of ordinary studies, and read their results fold by fold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from client.study_client import StudyClient
from services.contracts import (
    BoundRule,
    FoldState,
    FoldView,
    RandomSampler,
    ReadingsView,
    StudySpec,
    StudyState,
    StudyView,
    TrialState,
    TrialView,
)
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound
from services.search_space import ParameterValue, first_problem

NEUTRAL_FIELDS = {
    "name",
    "start",
    "workers",
    "workers_per_trial",
    "idle_workers_help",
    "max_expired_leases",
    "priority",
    "study_seconds",
    "trial_seconds",
}
"""Fields of a spec that influence no result: studies that differ only in these give the same numbers."""


@dataclass(frozen=True, kw_only=True)
class CompletedTrial:
    """A trial that ran all its folds."""

    study: StudyView
    trial: TrialView
    folds: tuple[FoldView, ...]
    readings: ReadingsView

    @property
    def accuracies(self) -> list[float]:
        """Accuracy in each fold."""
        return [(fold.correct or 0) / fold.clips for fold in self.folds]


def run_studies(
    client: StudyClient, specs: Sequence[StudySpec], *, watch: Callable[[StudyView], StudyView]
) -> list[list[CompletedTrial]]:
    """Run studies of enqueued configurations and return the trials of each, in their order.

    Reuses studies that an earlier call created.

    Args:
        client: a client with the scope write.
        specs: the studies, each with as many trials as it enqueues, and without pruning.
        watch: a function that waits until a study is over, and returns it.

    Raises:
        Conflict: a study of the same name exists and differs.
        FoldwiseError: a study or a trial has not completed.
    """
    for spec in specs:
        create_or_continue(client, spec)
    return [_completed_trials(client, watch(client.get(spec.name))) for spec in specs]


def create_or_continue(
    client: StudyClient,
    spec: StudySpec,
    *,
    create: Callable[[], StudyView] | None = None,
    also_neutral: Collection[str] = (),
    fingerprint: str | None = None,
) -> StudyView:
    """Create and start a study, or start or resume the one that an earlier call created.

    Args:
        client: a client with the scope write.
        spec: the study.
        create: creates it, if not `client.create(spec)` does.
        also_neutral: fields in which an existing study may differ, beside `NEUTRAL_FIELDS`.
        fingerprint: of the clip cache that an existing study must have; None does not ask.

    Raises:
        Conflict: a study of the same name exists and differs.
    """
    try:
        study = client.get(spec.name)
    except NotFound:
        return client.create(spec) if create is None else create()
    # A delay changes nothing where nothing is suggested or pruned.
    neutral = {*NEUTRAL_FIELDS, *also_neutral, *(["feedback_delay"] if _is_fixed(spec) else [])}
    wanted, existing = (_comparable(one).model_dump(exclude=neutral) for one in (spec, study.spec))
    if wanted != existing or fingerprint not in {None, study.fingerprint}:
        differs = next((name for name, value in wanted.items() if value != existing[name]), "cache")
        raise Conflict(
            f"a study {spec.name} exists already and differs in {differs}; choose another name or delete it",
            field="name",
        )
    verb = {StudyState.PAUSED: "resume", StudyState.DRAFT: "start"}.get(study.state)
    return study if verb is None else client.change_state(spec.name, verb)


def spec_of_configurations(
    spec: StudySpec, configurations: Sequence[Mapping[str, ParameterValue]], **changes: Any
) -> StudySpec:
    """Build a spec that runs all folds of these configurations with all their epochs, and nothing else.

    All epochs give all readings of the best epoch.

    Args:
        spec: the spec to start from.
        configurations: the parameters of each trial, in order.
        **changes: fields of the spec to replace.

    Raises:
        InvalidInput: the result is not a valid spec.
    """
    fixed = {
        "trials": len(configurations),
        "enqueue": tuple(map(dict, configurations)),
        "sampler": RandomSampler(),
        "pruning": (),
        "fold_order": "fixed",
        "warm_start": None,
        "economies": spec.economies.model_copy(update={"stop_when_perfect": False}),
    }
    try:
        return StudySpec.model_validate({**spec.model_dump(), **fixed, **changes})
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error


def _comparable(spec: StudySpec) -> StudySpec:
    """A spec without what makes no difference, or did not when an earlier version stored it."""
    pruning = [
        rule.model_copy(update={"metric": rule.metric or spec.objective})
        if isinstance(rule, BoundRule)
        else rule
        for rule in spec.pruning
    ]
    # Only the readings of the best epoch that are not counted need all epochs.
    economies = spec.economies.model_copy(update={"stop_when_perfect": True})
    return spec.model_copy(update={"pruning": tuple(pruning), "economies": economies})


def _is_fixed(spec: StudySpec) -> bool:
    """Whether all trials of a study are given, and all of them run to their end."""
    return not spec.pruning and len(spec.enqueue) == spec.trials


def _completed_trials(client: StudyClient, study: StudyView) -> list[CompletedTrial]:
    completed = []
    trials = client.trials(study.name)
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            reason = f" ({trial.end_reason})" if trial.end_reason else ""
            raise FoldwiseError(
                f"trial {trial.number} of study {study.name} is {trial.state}{reason}; delete the study and "
                "run the same command again"
            )
        folds = tuple(client.folds(study.name, trial.number))
        assert all(fold.state == FoldState.DONE for fold in folds)  # noqa: S101 - the trial is complete
        readings = client.readings(study.name, trial.number)
        completed.append(CompletedTrial(study=study, trial=trial, folds=folds, readings=readings))
    if len(trials) < study.spec.trials:
        raise FoldwiseError(
            f"study {study.name} is {study.state} with {len(trials)} of {study.spec.trials} trials; "
            "delete it and run the same command again"
        )
    return completed
