"""Creates a study that runs another one again."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert, literal, select
from sqlalchemy.orm import Session

from coordinator.store.studies import get_study, parsed_spec
from coordinator.store.tables import EnqueuedRow, InheritedTrialRow, StudyRow
from coordinator.studies import life
from services.contracts import ComputeSettings, ReplayStudy, StudySpec, replay_name
from services.errors import InvalidInput


def create_replay(
    session: Session, name: str, wanted: ReplayStudy, cache_root: Path, models_root: Path | None = None
) -> StudyRow:
    """Create and start a study with everything that decided another one.

    Beside spec and clips these are its frozen compute plan, the configurations that were enqueued while it ran,
    and the trials that its sampler inherited.

    Args:
        session: the caller's open transaction.
        name: of the study to run again.
        wanted: how to name the new one.
        cache_root: folder of the clip caches.
        models_root: folder of the model catalogue; None where the coordinator has none.

    Raises:
        NotFound: there is no such study.
        Conflict: the new name is taken.
        CacheMismatch, InvalidInput: as when a study is created.
    """
    origin = get_study(session, name)
    spec = parsed_spec(origin).model_copy(
        update={
            "name": wanted.name or replay_name(name),
            "cache": f"{origin.dataset}/{origin.fingerprint}",
            "start": True,
            # Otherwise the first worker could agree on another plan.
            "compute": _settings(origin, parsed_spec(origin)),
            # Its trials are copied below as they were.
            "warm_start": None,
        }
    )
    study = life.create(session, spec, cache_root, models_root)
    if study.split_hash != origin.split_hash:
        raise InvalidInput(
            f"this version splits the clips of study {name} into other folds; it cannot run them again",
            field="protocol",
        )
    session.flush()
    for kind in (EnqueuedRow, InheritedTrialRow):
        columns = [column for column in kind.__table__.c if column.name != "study_id"]
        copied = select(literal(study.id), *columns).where(kind.study_id == origin.id)
        session.execute(insert(kind).from_select(["study_id", *(c.name for c in columns)], copied))
    return study


def _settings(study: StudyRow, spec: StudySpec) -> ComputeSettings:
    """Settings that allow only the plan of a study, if it has one."""
    if study.plan is None:
        return spec.compute
    frozen = {name: value for name, value in study.plan.items() if value is not None}
    return ComputeSettings.model_validate(frozen)
