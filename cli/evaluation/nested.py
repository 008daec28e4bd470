"""`foldwise nested`: a whole search cross-validated, measured on people who had no part in choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean, median
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cli.evaluation.comparison import study_of
from cli.evaluation.runs import Evaluated, ensure, evaluate
from client.study_client import StudyClient
from report.table import Percent, Table
from services import scores
from services.contracts import StudySpec, StudyState, StudyView, TrialView
from services.errors import Conflict, FoldwiseError, InvalidInput
from services.folds import HeldOut, KFold, LeaveOneSubjectOut, OuterFold
from services.intervals import Interval, wilson
from services.search_space import ParameterValue, first_problem


class OuterResult(BaseModel):
    """An outer fold: what was selected without its subjects, and how that did on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fold: int
    """From 0."""

    search: str
    """The study that selected, on the clips of all other subjects."""

    trial: int
    """Its best."""

    parameters: dict[str, ParameterValue]
    epochs: int
    """The median of the best epochs of the trial's folds, which the measured network was trained for."""

    selected: float
    """Accuracy of the trial in its search."""

    measurement: str
    """The study that trained on all other subjects and tested these."""

    correct: int
    clips: int
    confusion: tuple[tuple[int, ...], ...]
    """Rows true, columns predicted."""

    @property
    def measured(self) -> float:
        """Accuracy on the held-out clips."""
        return self.correct / self.clips


class NestedResult(BaseModel):
    """What `foldwise nested --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    folds: tuple[OuterResult, ...]
    correct: int
    clips: int
    accuracy: float
    """Of the search as a whole, pooled over the outer folds."""

    interval: Interval
    """Wilson's, 95 %."""

    uar: float
    uf1: float
    selected: float
    """Mean accuracy of the searches' best trials."""

    optimism: float
    """By how much `selected` is higher."""


def nested(
    client: StudyClient, spec: StudySpec, *, outer: int, watch: Callable[[StudyView], StudyView]
) -> NestedResult:
    """Search once for each outer fold without its subjects, then measure the best configuration on them.

    The searches are studies `NAME-search-1` and so on, with the spec's protocol inside; the measurements
    `NAME-measure-1` and so on, with the protocol `held_out`: one fold, which trains on all other subjects for
    the median of the best epochs of the selected trial's folds, and counts its last epoch.

    Args:
        client: with the scope write.
        spec: the search that is to be judged.
        outer: outer folds, subject-independent.
        watch: waits until a study is over, and returns it.

    Raises:
        InvalidInput: the spec's protocol is no cross-validation, its outer fold is set, it starts warm or has a
            time limit, or its name is too long.
        NotFound: no such clip cache.
        Conflict: a study of one of the names to be used is another one, or on another clip cache.
        FoldwiseError: a search did not get to its end or has no complete trial, or a fold could not be run.
    """
    if not isinstance(spec.protocol, LeaveOneSubjectOut | KFold) or spec.protocol.outer is not None:
        raise InvalidInput(
            f"protocol is {spec.protocol.model_dump(exclude_none=True)}; give loso or kfold, nested sets the "
            "outer fold itself",
            field="protocol",
        )
    if spec.warm_start is not None:
        raise InvalidInput(
            "warm_start: what another study found on these people would choose for them; leave it out",
            field="warm_start",
        )
    if spec.study_seconds is not None:
        raise InvalidInput(
            "study_seconds: the searches run at once and would get different shares of the time; set trials",
            field="study_seconds",
        )
    folds = [OuterFold(k=outer, fold=fold) for fold in range(outer)]
    searches = [_search(spec, fold) for fold in folds]
    for fold in folds:
        _renamed(spec, f"measure-{fold.fold + 1}")
    # All are there before the first is waited for: no worker idles between two.
    for search in searches:
        ensure(client, search)
    started = [client.get(search.name) for search in searches]
    caches = {study.fingerprint for study in started}
    if len(caches) > 1:
        raise Conflict(
            f"the searches of {spec.name} train on {len(caches)} clip caches, since that of {spec.cache} was "
            "made anew; choose another --name, or delete them",
            field="name",
        )
    selected = [_selected(client, watch(study)) for study in started]
    measurements = [_measurement(spec, fold, best) for fold, best in zip(folds, selected, strict=True)]
    measured = [one for (one,) in evaluate(client, measurements, watch=watch)]
    counts = [client.confusion(one.study.name, one.trial.number).counts for one in measured]
    return NestedResult.model_validate(
        {
            **_scores(np.sum(counts, axis=0, dtype=np.int64), [best.accuracy for best in selected]),
            "dataset": measured[0].study.dataset,
            "fingerprint": measured[0].study.fingerprint,
            "classes": measured[0].study.classes,
            "folds": [
                _outer(fold, best, one, confusion)
                for fold, best, one, confusion in zip(folds, selected, measured, counts, strict=True)
            ],
        }
    )


def nested_table(found: NestedResult) -> Table:
    """The outer folds, each a row, and all of them together."""
    return Table(
        name="nested",
        caption=f"Nested cross-validation on {found.dataset}: each search chose without the subjects it is "
        "measured on",
        columns=("Outer fold", "Trial", "Epochs", "Clips", "In the search", "Held out", "Optimism"),
        rows=[
            *(
                (str(one.fold + 1), one.trial, one.epochs, one.clips, *_percents(one.selected, one.measured))
                for one in found.folds
            ),
            ("all", None, None, found.clips, *_percents(found.selected, found.accuracy)),
        ],
    )


def nested_sentence(found: NestedResult) -> str:
    """What to report of a search."""
    low, high = found.interval
    above = f"{100 * found.optimism:.2f} points more" if found.optimism > 0 else "no more"
    return (
        f"On people who had no part in choosing, the search reaches {100 * found.accuracy:.2f} % "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f}, {found.clips} clips). The best trials of its "
        f"{len(found.folds)} runs claimed {100 * found.selected:.2f} % on average, {above} than was measured. "
        "Such a gap holds the choice of the configuration, that of each fold's best epoch, and chance."
    )


def _percents(selected: float, measured: float) -> tuple[Percent, Percent, Percent]:
    return Percent(selected), Percent(measured), Percent(selected - measured)


@dataclass(frozen=True, kw_only=True)
class _Selected:
    """What a search chose."""

    study: StudyView
    trial: TrialView
    accuracy: float
    epochs: int


def _search(spec: StudySpec, outer: OuterFold) -> StudySpec:
    protocol = spec.protocol.model_copy(update={"outer": outer})
    return _renamed(spec, f"search-{outer.fold + 1}").model_copy(update={"protocol": protocol, "start": True})


def _renamed(spec: StudySpec, ending: str) -> StudySpec:
    try:
        return StudySpec.model_validate({**spec.model_dump(), "name": f"{spec.name}-{ending}"})
    except ValidationError as error:
        raise InvalidInput(f"{first_problem(error)}; choose a shorter --name", field="name") from error


def _selected(client: StudyClient, search: StudyView) -> _Selected:
    best = search.best
    if search.state != StudyState.COMPLETE:
        raise FoldwiseError(
            f"search {search.name} is {search.state} after {sum(search.trials.values())} of "
            f"{search.spec.trials} trials; the outer folds must judge whole searches"
        )
    if best is None or best.value is None:
        raise FoldwiseError(
            f"search {search.name} is {search.state} and has no complete trial to measure; loosen its pruning "
            "or give it more trials, under another --name"
        )
    epochs = [fold.best_epoch for fold in client.folds(search.name, best.number) if fold.best_epoch is not None]
    return _Selected(
        study=search, trial=best, accuracy=best.value, epochs=ceil(median(epoch + 1 for epoch in epochs))
    )


def _measurement(spec: StudySpec, outer: OuterFold, best: _Selected) -> StudySpec:
    of_one = study_of(
        [{**best.trial.parameters, "epochs": best.epochs}], spec, pretrained=spec.training.pretrained
    )
    return of_one.model_copy(
        update={
            "name": f"{spec.name}-measure-{outer.fold + 1}",
            "cache": f"{best.study.dataset}/{best.study.fingerprint}",
            "protocol": HeldOut(outer=outer),
            "workers_per_trial": 1,
            "start": True,
        }
    )


def _outer(
    outer: OuterFold, best: _Selected, measured: Evaluated, confusion: tuple[tuple[int, ...], ...]
) -> OuterResult:
    return OuterResult(
        fold=outer.fold,
        search=best.study.name,
        trial=best.trial.number,
        parameters=best.trial.parameters,
        epochs=best.epochs,
        selected=best.accuracy,
        measurement=measured.study.name,
        correct=measured.trial.correct,
        clips=measured.trial.clips,
        confusion=confusion,
    )


def _scores(counts: scores.Counts, selected: Sequence[float]) -> dict[str, Any]:
    correct, clips = int(np.trace(counts)), int(counts.sum())
    return {
        "correct": correct,
        "clips": clips,
        "accuracy": correct / clips,
        "interval": wilson(correct, clips),
        "uar": scores.unweighted_average_recall(counts),
        "uf1": scores.unweighted_f1(counts),
        "selected": fmean(selected),
        "optimism": fmean(selected) - correct / clips,
    }
