"""`foldwise replay STUDY`: run a whole study again under another name, and find the first difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cli.evaluation.runs import create_or_continue
from client.study_client import StudyClient
from services.contracts import (
    FoldView,
    ReplayStudy,
    StudyDigest,
    StudyView,
    TrialView,
    replay_name,
)
from services.errors import Conflict, InvalidInput


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first thing in which two studies differ."""

    trial: int | None
    """Number of the trial; None if it belongs to the whole study."""

    fold: int | None
    """Index of the fold, from 0; None if it belongs to the whole trial."""

    field: str
    """Such as `parameters.dropout` or `epochs.3.predicted.7`, counted from 0."""

    recorded: Any
    replayed: Any


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A study, its replay, and how they differ."""

    study: str
    replay: str
    equal: bool
    """Whether both have the same digest."""

    trials: int
    """Number of trials that were compared."""

    digest: str
    digest_of_replay: str
    depends_on: tuple[str, ...]
    """What the digest depends on besides spec, seed and clips; see `StudyDigest`."""

    difference: Difference | None


def repeat(
    client: StudyClient, name: str, new_name: str | None, *, watch: Callable[[StudyView], StudyView]
) -> Repetition:
    """Run a study again, and compare all its trials.

    A replay that an earlier call created is continued, or only compared if it is over.

    Args:
        client: a client with the scope write.
        name: of the study, which must be over.
        new_name: name of the replay; None means NAME-replay.
        watch: a function that waits until a study is over, and returns it.

    Raises:
        NotFound: there is no such study.
        Conflict: the study is not over, or another study has the new name.
        InvalidInput: the new name is that of the study.
    """
    study = client.get(name)
    if not study.state.over:
        raise Conflict(f"study {name} is {study.state}; replay it once it is over", field="name")
    again_name = new_name or replay_name(name)
    if again_name == name:
        raise InvalidInput(f"--name is {name}, the study itself; give the replay another name", field="name")
    again = watch(_create_or_continue(client, study, again_name))
    first, second = client.digest(name), client.digest(again.name)
    equal = first.digest == second.digest
    return Repetition(
        study=name,
        replay=again.name,
        equal=equal,
        trials=min(first.trials, second.trials),
        digest=first.digest,
        digest_of_replay=second.digest,
        depends_on=first.depends_on,
        difference=None if equal else _first_difference(client, study, again, first, second),
    )


def _create_or_continue(client: StudyClient, study: StudyView, name: str) -> StudyView:
    return create_or_continue(
        client,
        study.spec.model_copy(update={"name": name}),
        create=lambda: client.replay(study.name, ReplayStudy(name=name)),
        # A replay names its cache and its plan exactly, and it has copies of the trials of a warm start.
        also_neutral={"cache", "compute", "warm_start"},
        fingerprint=study.fingerprint,
    )


def _first_difference(
    client: StudyClient, study: StudyView, again: StudyView, first: StudyDigest, second: StudyDigest
) -> Difference:
    if first.plan != second.plan:
        return Difference(
            trial=None, fold=None, field="plan", recorded=str(first.plan), replayed=str(second.plan)
        )
    for number, (one, other) in enumerate(zip(first.of_trials, second.of_trials, strict=False)):
        if one != other:
            return _difference_of_trials(client, study, again, number)
    if first.trials != second.trials:
        return Difference(
            trial=min(first.trials, second.trials),
            fold=None,
            field="trials",
            recorded=first.trials,
            replayed=second.trials,
        )
    return Difference(trial=None, fold=None, field="enqueued", recorded=first.digest, replayed=second.digest)


def _difference_of_trials(client: StudyClient, study: StudyView, again: StudyView, number: int) -> Difference:
    """The first difference in the order in which one follows from the other: chosen, trained, decided."""
    one, other = (_trial(client, view.name, number) for view in (study, again))
    found = _difference(one.parameters, other.parameters, "parameters")
    if found is not None:
        return Difference(trial=number, fold=None, **found)
    orders = [view.fold_order if trial.learnt_order else None for view, trial in ((study, one), (again, other))]
    if orders[0] != orders[1]:
        return Difference(trial=number, fold=None, field="fold_order", recorded=orders[0], replayed=orders[1])
    folds = [_counted(client, view.name, number) for view in (study, again)]
    for index in orders[0] or range(study.folds):
        if index in folds[0] and index in folds[1]:
            records = [
                client.fold(view.name, number, index).result.model_dump(mode="json", include={"epochs"})
                for view in (study, again)
            ]
            found = _difference(records[0], records[1])
            if found is not None:
                return Difference(trial=number, fold=index, **found)
    for name in ("state", "pruned", "value"):
        values = [trial.model_dump(mode="json")[name] for trial in (one, other)]
        found = _difference(values[0], values[1], name)
        if found is not None:
            fold = None if one.pruned is None else one.pruned.fold
            return Difference(trial=number, fold=fold, **found)
    return Difference(
        trial=number, fold=None, field="folds", recorded=sorted(folds[0]), replayed=sorted(folds[1])
    )


def _trial(client: StudyClient, name: str, number: int) -> TrialView:
    return next(trial for trial in client.trials(name, after=number - 1) if trial.number == number)


def _counted(client: StudyClient, name: str, number: int) -> Mapping[int, FoldView]:
    folds = client.folds(name, number)
    return {fold.index: fold for fold in folds if fold.state == "done" and not fold.beyond_verdict}


def _difference(recorded: Any, replayed: Any, where: str = "") -> dict[str, Any] | None:
    """The first different value of two JSON values and its path, such as `epochs.3.predicted.7`."""
    if recorded == replayed:
        return None
    for key, one, other in _parts(recorded, replayed):
        found = _difference(one, other, f"{where}.{key}".lstrip("."))
        if found is not None:
            return found
    return {"field": where, "recorded": recorded, "replayed": replayed}


def _parts(recorded: Any, replayed: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The parts of two JSON values that both have."""
    if isinstance(recorded, Mapping) and isinstance(replayed, Mapping):
        yield from ((key, recorded[key], replayed[key]) for key in recorded if key in replayed)
    elif isinstance(recorded, list) and isinstance(replayed, list):
        yield from ((index, *both) for index, both in enumerate(zip(recorded, replayed, strict=False)))
