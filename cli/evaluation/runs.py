"""Run given configurations as the trials of ordinary studies, and read what each gave, fold by fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from client.study_client import StudyClient
from services.contracts import (
    FoldState,
    FoldView,
    RandomSampler,
    StudySpec,
    StudyState,
    StudyView,
    TrialState,
    TrialView,
)
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound
from services.search_space import ParameterValue, first_problem

OF_NO_RESULT = {"name", "start", "workers", "workers_per_trial", "priority", "study_seconds", "trial_seconds"}
"""Fields of a spec that no number follows from: two studies may differ in them and still be the same."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A configuration that ran all its folds."""

    study: StudyView
    trial: TrialView
    folds: tuple[FoldView, ...]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy in each fold."""
        return [(fold.correct or 0) / fold.clips for fold in self.folds]


def evaluate(
    client: StudyClient, specs: Sequence[StudySpec], *, watch: Callable[[StudyView], StudyView]
) -> list[list[Evaluated]]:
    """Run studies of enqueued configurations; for each what its trials gave, in their order.

    A study that is there already, from a call before, is gone on with.

    Args:
        client: with the scope write.
        specs: each with as many trials as it enqueues, and no pruning.
        watch: waits until a study is over, and returns it.

    Raises:
        Conflict: a study of one of these names is another one.
        FoldwiseError: a study or a trial did not get to its end.
    """
    for spec in specs:
        ensure(client, spec)
    return [_results(client, watch(client.get(spec.name))) for spec in specs]


def ensure(client: StudyClient, spec: StudySpec) -> None:
    """Create a study and start it, or go on with the one of this name.

    Raises:
        Conflict: the study of this name is another one.
    """
    try:
        study = client.get(spec.name)
    except NotFound:
        client.create(spec)
        return
    wanted, there = (one.model_dump(exclude=OF_NO_RESULT) for one in (spec, study.spec))
    if wanted != there:
        differs = next(name for name, value in wanted.items() if value != there[name])
        raise Conflict(
            f"a study {spec.name} exists already and differs in {differs}; choose another --name or delete it",
            field="name",
        )
    verb = {StudyState.PAUSED: "resume", StudyState.DRAFT: "start"}.get(study.state)
    if verb is not None:
        client.change_state(spec.name, verb)


def exactly(
    spec: StudySpec, configurations: Sequence[Mapping[str, ParameterValue]], **changes: Any
) -> StudySpec:
    """A spec that runs these configurations, all folds of each, and nothing else.

    Raises:
        InvalidInput: what comes out is no spec.
    """
    own = {
        "trials": len(configurations),
        "enqueue": tuple(map(dict, configurations)),
        "sampler": RandomSampler(),
        "pruning": (),
        "fold_order": "fixed",
        "warm_start": None,
    }
    try:
        return StudySpec.model_validate({**spec.model_dump(), **own, **changes})
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error


def _results(client: StudyClient, study: StudyView) -> list[Evaluated]:
    results = []
    trials = client.trials(study.name)
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            why = f": {trial.end_reason}" if trial.end_reason else ""
            raise FoldwiseError(f"trial {trial.number} of study {study.name} is {trial.state}{why}")
        folds = tuple(client.folds(study.name, trial.number))
        assert all(fold.state == FoldState.DONE for fold in folds)  # noqa: S101 - it is complete
        results.append(Evaluated(study=study, trial=trial, folds=folds))
    if len(trials) < study.spec.trials:
        raise FoldwiseError(
            f"study {study.name} is {study.state} with {len(trials)} of {study.spec.trials} trials; "
            "delete it and run this again"
        )
    return results
