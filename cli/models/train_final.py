"""`foldwise train-final`: a study's best configuration, trained on all clips by a worker, as a model."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from cli.terminal.watch import watch
from client.study_client import StudyClient
from services.contracts import StudyState, StudyView, TrainedModel, TrainFinal, TrialState
from services.errors import Conflict, FoldwiseError, NotFound


def start_final(client: StudyClient, study: str, wanted: TrainFinal) -> StudyView:
    """The study that trains the model: created now, or by an earlier call for the same trial.

    Raises:
        NotFound: no such study or trial.
        Conflict: no trial is complete, or the name is taken by a study of something else.
    """
    try:
        return client.train_final(study, wanted)
    except Conflict as error:
        if error.field != "name":
            raise
        earlier = client.get(wanted.name or f"{study[:57]}-final")
        before = earlier.spec.cross_validated
        if before is None or before.study != study or wanted.trial not in {None, before.trial}:
            raise
        return earlier


def wait_for_model(
    client: StudyClient, name: str, console: Console, *, tend: Callable[[], None] = lambda: None
) -> TrainedModel:
    """Follow the study until its model is in the catalogue.

    Raises:
        FoldwiseError: the training failed or was stopped.
    """
    study = watch(client, name, console, tend=tend)
    trial = next(iter(client.trials(name)), None)
    if study.state != StudyState.COMPLETE or trial is None or trial.state != TrialState.COMPLETE:
        reason = study.reason or (trial.end_reason if trial else None) or f"it is {study.state}"
        raise FoldwiseError(f"study {name} has trained no model: {reason}")
    model = client.fold(name, trial.number, 0).result.model
    if model is None:
        raise NotFound(f"study {name} has trained no model to keep", field="name")
    return model
