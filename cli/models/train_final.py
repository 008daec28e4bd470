"""`foldwise train-final`: a worker trains a study's best configuration on all clips and publishes the model."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from cli.terminal.watch import watch
from client.study_client import StudyClient
from services.contracts import CrossValidated, StudyState, StudyView, TrainedModel, TrainFinal, TrialState
from services.errors import Conflict, FoldwiseError, NotFound
from services.intervals import wilson
from services.model_card import may_be_guessing


def start_final(client: StudyClient, study: str, wanted: TrainFinal) -> StudyView:
    """Create the study that trains the model, or return the one that an earlier call created.

    Args:
        client: a client with the scope write.
        study: name of the study that was searched.
        wanted: the trial, and the name of the new study; None means the defaults.

    Raises:
        NotFound: there is no such study or trial.
        Conflict: no trial is complete, or another study has the name.
    """
    try:
        return client.train_final(study, wanted)
    except Conflict as error:
        if error.field != "name":
            raise
        earlier = client.get(wanted.name or f"{study[:57]}-final")
        before = earlier.spec.cross_validated
        other = before is None or before.study != study or wanted.trial not in {None, before.trial}
        if other or wanted.epochs not in {None, earlier.spec.training.epochs}:
            raise
        return earlier


def chance_warning(before: CrossValidated, classes: int) -> str | None:
    """What to say of a configuration whose accuracy may be that of guessing; None if it is better.

    Args:
        before: its cross-validated scores.
        classes: number of classes.
    """
    if not may_be_guessing(before, classes):
        return None
    low, high = wilson(before.correct, before.clips)
    return (
        f"the 95 % interval of this accuracy, {low:.2%} to {high:.2%}, contains that of guessing "
        f"({1 / classes:.2%}); the model is kept, but do not rely on it"
    )


def wait_for_model(
    client: StudyClient, name: str, console: Console, *, on_poll: Callable[[], None] = lambda: None
) -> TrainedModel:
    """Show the study until it is over, and return its model, which is then in the catalogue.

    Args:
        client: a client of the coordinator.
        name: name of the study that trains the model.
        console: where to show the progress.
        on_poll: called before every poll of the coordinator, about once a second.

    Raises:
        FoldwiseError: the training failed or was stopped.
        NotFound: the training has published no model.
    """
    study = watch(client, name, console, on_poll=on_poll)
    trial = next(iter(client.trials(name)), None)
    if study.state != StudyState.COMPLETE or trial is None or trial.state != TrialState.COMPLETE:
        reason = study.reason or (trial.end_reason if trial else None) or f"it is {study.state}"
        raise FoldwiseError(f"study {name} did not train a model: {reason}")
    model = client.fold(name, trial.number, 0).result.model
    if model is None:
        raise NotFound(f"study {name} has published no model", field="name")
    return model
