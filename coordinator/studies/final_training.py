"""The study that trains a configuration of a search on all clips, to get a model."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.studies import get_study, parsed_spec
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from coordinator.store.views import best_trial, confusion_view, get_trial
from services.contracts import CrossValidated, RandomSampler, StudySpec, TrainFinal, TrialState, configure
from services.errors import Conflict
from services.final_epochs import final_epochs
from services.folds import AllClips, HeldOut
from services.search_space import SearchSpace


def final_spec(session: Session, name: str, wanted: TrainFinal) -> StudySpec:
    """The spec of a study with one trial of one fold, all clips, and the parameters of a complete trial.

    It trains for the epochs that `services.final_epochs` says, unless a number is wanted. Everything else is as
    in the study.

    Raises:
        NotFound: no such study or trial.
        Conflict: the named trial is not complete, no trial is complete, or the study does not cross-validate.
    """
    study = get_study(session, name)
    spec = parsed_spec(study)
    if isinstance(spec.protocol, AllClips):
        raise Conflict(f"study {name} already trains on all clips; name the one it was made from", field="name")
    if isinstance(spec.protocol, HeldOut):
        raise Conflict(
            f"study {name} only measures a configuration on held-out clips; name the study that selected it",
            field="name",
        )
    trial = _trial(session, study, wanted.trial)
    before = _cross_validated(session, study, spec, trial)
    trained = configure(trial.parameters, spec.training)[1].epochs
    epochs = wanted.epochs or final_epochs(spec.counted_epoch, before.best_epochs, trained)
    parameters = {**trial.parameters, **({"epochs": epochs} if "epochs" in trial.parameters else {})}
    return spec.model_copy(
        update={
            "name": wanted.name or f"{name[:57]}-final",
            "cache": f"{study.dataset}/{study.fingerprint}",
            "protocol": AllClips(),
            "space": SearchSpace.model_validate({each: [value] for each, value in parameters.items()}),
            "trials": 1,
            "sampler": RandomSampler(),
            "pruning": (),
            "fold_order": "fixed",
            "training": spec.training.model_copy(update={"epochs": epochs}),
            "workers_per_trial": 1,
            "enqueue": (),
            "warm_start": None,
            "cross_validated": before,
            "trial_seconds": None,
            "study_seconds": None,
            "workers": None if spec.workers is None else 1,
            "start": True,
        }
    )


def _trial(session: Session, study: StudyRow, number: int | None) -> TrialRow:
    if number is None:
        best = best_trial(session, study)
        if best is None or best.value is None:
            raise Conflict(
                f"no trial of study {study.name} is complete, so none is the best; let it continue, or clone "
                "it without pruning",
                field="trial",
            )
        number = best.number
    trial = get_trial(session, study, number)
    if trial.state != TrialState.COMPLETE:
        raise Conflict(f"trial {number} of study {study.name} is {trial.state}, not complete", field="trial")
    return trial


def _cross_validated(session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow) -> CrossValidated:
    scores = confusion_view(session, study, trial)
    best_epochs = session.scalars(
        select(ResultRow.best_epoch).where(ResultRow.trial_id == trial.id).order_by(ResultRow.fold)
    ).all()
    ended = select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id)
    correct = sum(row[label] for label, row in enumerate(scores.counts))
    return CrossValidated(
        study=study.name,
        trial=trial.number,
        trials=session.scalar(ended.where(TrialRow.ended_at.is_not(None))) or 0,
        protocol=spec.protocol,
        folds=study.fold_count,
        split_hash=study.split_hash,
        seed=spec.seed,
        clips=study.clips,
        correct=correct,
        accuracy=scores.accuracy,
        uar=scores.uar,
        uf1=scores.uf1,
        objective=spec.objective,
        epoch_choice=spec.counted_epoch,
        best_epochs=tuple(epoch + 1 for epoch in best_epochs),
        epochs=configure(trial.parameters, spec.training)[1].epochs,
    )
