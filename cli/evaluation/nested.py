"""`foldwise nested`: evaluate a whole search on subjects that took no part in the selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cli.evaluation.comparison import one_model_spec
from cli.evaluation.readings import number_of_clips
from cli.evaluation.runs import CompletedTrial, create_or_continue, run_studies
from client.study_client import StudyClient
from report.table import Percent, Table
from services import scores
from services.contracts import Reading, StudySpec, StudyState, StudyView, TrialView, configure
from services.contracts.base import Objective
from services.errors import Conflict, FoldwiseError, InvalidInput
from services.final_epochs import final_epochs
from services.folds import GivenFolds, HeldOut, KFold, LeaveOneSubjectOut, OuterFold
from services.intervals import Interval, wilson
from services.readings import PredictedFold, readings
from services.score_names import OBJECTIVE_NAMES, READING_NAMES
from services.search_space import ParameterValue, first_problem


class OuterResult(BaseModel):
    """An outer fold: the configuration selected without its subjects, and its accuracy on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fold: int
    """Index of the outer fold, from 0."""

    search: str
    """Name of the study that selected the configuration, on the clips of all other subjects."""

    trial: int
    """Number of the best trial of the search."""

    parameters: dict[str, ParameterValue]
    epochs: int
    """Epochs that the measured network was trained for, see `services.final_epochs`."""

    selected: float
    """What the study maximises, of the trial in the search."""

    score: float
    """The same on the held-out clips."""

    measurement: str
    """Name of the study that trained on all other subjects and tested on these."""

    correct: int
    clips: int
    confusion: tuple[tuple[int, ...], ...]
    """Counts; rows are true classes, columns predicted ones."""


class NestedResult(BaseModel):
    """What `foldwise nested --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    objective: Objective
    folds: tuple[OuterResult, ...]
    correct: int
    clips: int
    accuracy: float
    """Accuracy of the search as a whole, pooled over the outer folds."""

    interval: Interval
    """Wilson's 95 % interval of the accuracy."""

    uar: float
    uf1: float
    score: float
    """What the study maximises: one of the three."""

    subjects: int | None
    """People in these clips; null if the coordinator does not have the clip cache."""

    readings: tuple[Reading, ...]
    """The readings of the best epoch on the held-out clips; only the last epoch was chosen without them."""

    selected: float
    """Mean of what the searches' best trials had."""

    optimism: float
    """`selected` minus `score`."""


def nested(
    client: StudyClient, spec: StudySpec, *, outer: int, watch: Callable[[StudyView], StudyView]
) -> NestedResult:
    """Search once per outer fold without its subjects, then measure the best configuration on them.

    The searches are the studies `NAME-search-1` and so on, with the spec's protocol on the remaining subjects.
    The measurements are the studies `NAME-measure-1` and so on, with the protocol `held_out`: one fold trains
    on all other subjects for the epochs that `services.final_epochs` says. Its last epoch is the result.

    Args:
        client: a client with the scope write.
        spec: the search to evaluate.
        outer: number of outer folds; each contains all clips of its subjects.
        watch: a function that waits until a study is over, and returns it.

    Raises:
        InvalidInput: the spec's protocol is not a cross-validation or sets an outer fold, the spec has a warm
            start or a time limit, or its name is too long.
        NotFound: there is no such clip cache.
        Conflict: a study of one of the new names exists and differs, or uses another clip cache.
        FoldwiseError: a search is incomplete or has no complete trial, or a measurement has not completed.
    """
    crossed = LeaveOneSubjectOut | KFold | GivenFolds
    if not isinstance(spec.protocol, crossed) or spec.protocol.outer is not None:
        raise InvalidInput(
            f"protocol is {spec.protocol.model_dump(exclude_none=True)}; use loso, kfold or given_folds "
            "without outer: nested sets the outer fold itself",
            field="protocol",
        )
    if spec.warm_start is not None:
        raise InvalidInput(
            "warm_start is set: its trials were measured on these subjects and would influence the selection; "
            "remove it",
            field="warm_start",
        )
    if spec.study_seconds is not None:
        raise InvalidInput(
            "study_seconds is set: the searches run at the same time and would get different shares of it; set "
            "trials instead",
            field="study_seconds",
        )
    folds = [OuterFold(k=outer, fold=fold) for fold in range(outer)]
    searches = [_search_spec(spec, fold) for fold in folds]
    # Reject a name that is too long before anything runs.
    for fold in folds:
        _renamed(spec, f"measure-{fold.fold + 1}")
    # Create all searches before waiting for the first one, so that no worker is idle between two.
    for search in searches:
        create_or_continue(client, search)
    started = [client.get(search.name) for search in searches]
    caches = {study.fingerprint for study in started}
    if len(caches) > 1:
        raise Conflict(
            f"the searches of {spec.name} use {len(caches)} different clip caches, because cache {spec.cache} "
            "was rebuilt between them; choose another --name, or delete the searches",
            field="name",
        )
    selected = [_select_best(client, watch(study)) for study in started]
    measurements = [_measurement_spec(spec, fold, best) for fold, best in zip(folds, selected, strict=True)]
    measured = [trial for (trial,) in run_studies(client, measurements, watch=watch)]
    counts = [client.confusion(trial.study.name, trial.trial.number).counts for trial in measured]
    return NestedResult.model_validate(
        {
            **_scores(
                np.sum(counts, axis=0, dtype=np.int64), [best.value for best in selected], spec.objective
            ),
            **_readings(client, measured, spec.objective),
            "objective": spec.objective,
            "dataset": measured[0].study.dataset,
            "fingerprint": measured[0].study.fingerprint,
            "classes": measured[0].study.classes,
            "folds": [
                _outer_result(fold, best, trial, confusion, spec.objective)
                for fold, best, trial, confusion in zip(folds, selected, measured, counts, strict=True)
            ],
        }
    )


def nested_table(found: NestedResult) -> Table:
    """A row for each outer fold, and one for all of them together."""
    return Table(
        name="nested",
        caption=f"Nested cross-validation on {found.dataset}: each search selected a configuration without the "
        "subjects on which it is measured",
        columns=("Outer fold", "Trial", "Epochs", "Clips", "In the search", "Held out", "Optimism"),
        rows=[
            *(
                (str(one.fold + 1), one.trial, one.epochs, one.clips, *_percents(one.selected, one.score))
                for one in found.folds
            ),
            ("all", None, None, found.clips, *_percents(found.selected, found.score)),
        ],
    )


def nested_readings_table(found: NestedResult) -> Table:
    """A row for each reading of the best epoch on the held-out clips."""
    return Table(
        name="readings",
        caption="Readings of the best epoch on the held-out clips; only the last epoch was chosen without them",
        columns=("Reading", "Epoch", "Accuracy", "UAR", "UF1"),
        rows=[
            (
                READING_NAMES[one.choice] + (" (counts)" if one.choice == "last" else ""),
                one.epoch,
                *(None if value is None else Percent(value) for value in (one.accuracy, one.uar, one.uf1)),
            )
            for one in found.readings
        ],
    )


def nested_sentence(found: NestedResult) -> str:
    """What to report about a search."""
    low, high = found.interval
    difference = f"{100 * found.optimism:.2f} points more" if found.optimism > 0 else "not more"
    name = OBJECTIVE_NAMES[found.objective]
    reached = "" if found.objective == "accuracy" else f"and a {name} of {100 * found.score:.2f} % "
    return (
        f"On subjects that took no part in the selection, the search reaches {100 * found.accuracy:.2f} % "
        f"{reached}(95 % interval of the accuracy {100 * low:.2f} to {100 * high:.2f}, "
        f"{number_of_clips(found.clips, found.subjects)}). The best trials of its {len(found.folds)} runs had "
        f"{100 * found.selected:.2f} % {name} on average, {difference} than measured here. A difference comes "
        "from selecting the configuration and the epochs, and from chance."
    )


def _percents(selected: float, measured: float) -> tuple[Percent, Percent, Percent]:
    return Percent(selected), Percent(measured), Percent(selected - measured)


@dataclass(frozen=True, kw_only=True)
class _Selected:
    """The best trial of a search."""

    study: StudyView
    trial: TrialView
    value: float
    epochs: int
    """For how many epochs the measured network is trained."""


def _search_spec(spec: StudySpec, outer: OuterFold) -> StudySpec:
    protocol = spec.protocol.model_copy(update={"outer": outer})
    return _renamed(spec, f"search-{outer.fold + 1}").model_copy(update={"protocol": protocol, "start": True})


def _renamed(spec: StudySpec, ending: str) -> StudySpec:
    try:
        return StudySpec.model_validate({**spec.model_dump(), "name": f"{spec.name}-{ending}"})
    except ValidationError as error:
        raise InvalidInput(f"{first_problem(error)}; choose a shorter --name", field="name") from error


def _select_best(client: StudyClient, search: StudyView) -> _Selected:
    best = search.best
    if search.state != StudyState.COMPLETE:
        raise FoldwiseError(
            f"search {search.name} is {search.state} after {sum(search.trials.values())} of "
            f"{search.spec.trials} trials, but only a complete search can be measured; delete it and run the "
            "same command again"
        )
    if best is None or best.value is None:
        raise FoldwiseError(
            f"search {search.name} has no complete trial to measure; loosen the pruning or set more trials, "
            "and choose another --name"
        )
    _, training = configure(best.parameters, search.spec.training)
    counted = [(fold.best_epoch or 0) + 1 for fold in client.folds(search.name, best.number)]
    epochs = final_epochs(search.spec.counted_epoch, counted, training.epochs)
    return _Selected(study=search, trial=best, value=best.value, epochs=epochs)


def _measurement_spec(spec: StudySpec, outer: OuterFold, best: _Selected) -> StudySpec:
    measurement = one_model_spec(
        [{**best.trial.parameters, "epochs": best.epochs}], spec, pretrained=spec.training.pretrained
    )
    return measurement.model_copy(
        update={
            "name": f"{spec.name}-measure-{outer.fold + 1}",
            "cache": f"{best.study.dataset}/{best.study.fingerprint}",
            "protocol": HeldOut(outer=outer),
            "workers_per_trial": 1,
            "start": True,
        }
    )


def _outer_result(
    outer: OuterFold,
    best: _Selected,
    measured: CompletedTrial,
    confusion: tuple[tuple[int, ...], ...],
    objective: Objective,
) -> OuterResult:
    return OuterResult(
        fold=outer.fold,
        search=best.study.name,
        trial=best.trial.number,
        parameters=best.trial.parameters,
        epochs=best.epochs,
        selected=best.value,
        score=float(scores.score(np.asarray(confusion), objective)),
        measurement=measured.study.name,
        correct=measured.trial.correct,
        clips=measured.trial.clips,
        confusion=confusion,
    )


def _readings(client: StudyClient, measured: Sequence[CompletedTrial], objective: Objective) -> dict[str, Any]:
    folds = []
    for trial in measured:
        (split,) = client.split(trial.study.name).folds
        result = client.fold(trial.study.name, trial.trial.number, 0).result
        folds.append(
            PredictedFold(
                labels=[clip.label for clip in split.clips],
                epochs=[epoch.predicted for epoch in result.epochs],
                trained=result.epochs[0].loss is not None,
                whole=True,
                validation_epoch=None,
            )
        )
    subjects = [trial.readings.subjects for trial in measured]
    return {
        "readings": readings(
            folds, len(measured[0].study.classes), objective, counts="last", common_epoch=None, complete=True
        ),
        # Each person is in one outer fold.
        "subjects": None if None in subjects else sum(filter(None, subjects)),
    }


def _scores(counts: scores.Counts, selected: Sequence[float], objective: Objective) -> dict[str, Any]:
    correct, clips = int(np.trace(counts)), int(counts.sum())
    score = float(scores.score(counts, objective))
    return {
        "correct": correct,
        "clips": clips,
        "accuracy": correct / clips,
        "interval": wilson(correct, clips),
        "uar": scores.unweighted_average_recall(counts),
        "uf1": scores.unweighted_f1(counts),
        "score": score,
        "selected": fmean(selected),
        "optimism": fmean(selected) - score,
    }
