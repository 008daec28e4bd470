"""A study's life: created from a spec and a clip cache, started, paused, resumed, stopped.

Each function runs inside its caller's transaction and commits nothing.
"""

from __future__ import annotations

from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.queries import get_study
from coordinator.store.tables import StudyFoldRow, StudyRow
from services.clip_cache import CacheManifest, cache_folder, find_cache, open_cache
from services.contracts import ANY_CLASS, StudySpec, StudyState
from services.errors import CacheMismatch, Conflict, InvalidInput, NotFound
from services.folds import make_folds, split_hash
from services.model_catalogue import check_other_dataset, find_model

log = structlog.get_logger()


def create(session: Session, spec: StudySpec, cache_root: Path, models_root: Path | None = None) -> StudyRow:
    """Create a study: find its cache, split the clips, and start it unless the spec says not to.

    Raises:
        Conflict: the name is taken.
        CacheMismatch: no such cache, or its clips are not of the size the training settings say.
        InvalidInput: the spec does not fit the cache: too few subjects, unknown classes, a model to start from
            that was trained on it.
        NotFound: no such model.
    """
    if session.scalar(select(StudyRow.id).where(StudyRow.name == spec.name)) is not None:
        raise Conflict(f"a study {spec.name!r} exists already; choose another name", field="name")
    manifest = find_cache(cache_root, spec.cache)
    _check_cache(spec, manifest)
    _check_model(spec.training.pretrained, manifest, models_root)
    # The worker hashes the arrays it trains on; here only the index is read.
    cache = open_cache(cache_folder(cache_root, manifest.dataset, manifest.fingerprint), verify=False)
    clips = cache.clips()
    folds = make_folds(clips, spec.protocol)
    label_of = {clip.clip_id: clip.label for clip in clips}
    study = StudyRow(
        name=spec.name,
        state=StudyState.RUNNING if spec.start else StudyState.DRAFT,
        spec=spec.model_dump(mode="json"),
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        classes=list(manifest.classes),
        clips=len(clips),
        fold_count=len(folds),
        split_hash=split_hash(folds),
    )
    session.add(study)
    session.flush()
    session.add_all(
        StudyFoldRow(
            study_id=study.id,
            fold=fold.index,
            name=fold.name,
            clip_ids=list(fold.test_clips),
            labels=[label_of[clip_id] for clip_id in fold.test_clips],
        )
        for fold in folds
    )
    session.flush()
    log.info("study_created", study=spec.name, cache=spec.cache, folds=len(folds), trials=spec.trials)
    return study


def start(session: Session, name: str) -> StudyRow:
    """draft -> running."""
    return _move(session, name, {StudyState.DRAFT}, StudyState.RUNNING)


def pause(session: Session, name: str) -> StudyRow:
    """running -> paused; folds under way finish and count."""
    return _move(session, name, {StudyState.RUNNING}, StudyState.PAUSED)


def resume(session: Session, name: str) -> StudyRow:
    """paused -> running."""
    return _move(session, name, {StudyState.PAUSED}, StudyState.RUNNING)


def stop(session: Session, name: str, reason: str) -> StudyRow:
    """End a study for good. What is done stays; the leader cancels the trials under way."""
    study = _move(session, name, {StudyState.DRAFT, StudyState.RUNNING, StudyState.PAUSED}, StudyState.STOPPED)
    study.reason = study.reason or reason
    return study


def _move(session: Session, name: str, allowed: set[StudyState], state: StudyState) -> StudyRow:
    study = get_study(session, name, lock=True)
    if StudyState(study.state) == state:
        return study
    if StudyState(study.state) not in allowed:
        raise Conflict(f"study {name} is {study.state}; it cannot become {state.value}", field="state")
    study.state = state
    log.info("study_moved", study=name, state=state.value)
    return study


def _check_cache(spec: StudySpec, manifest: CacheManifest) -> None:
    for field, have in (("frames", manifest.frames), ("frame_size", manifest.frame_size)):
        wanted = getattr(spec.training, field)
        if wanted != have:
            raise CacheMismatch(
                f"training.{field} is {wanted}, the cache {manifest.dataset}/{manifest.fingerprint[:12]} has "
                f"{have}; preprocess with {wanted} or change the study",
                field=f"training.{field}",
            )
    unknown = set(spec.training.augmentation.counts) - set(manifest.classes) - {ANY_CLASS}
    if unknown:
        raise InvalidInput(
            f"training.augmentation.counts names the class {min(unknown)!r}; "
            f"the cache has {', '.join(manifest.classes)}",
            field="training.augmentation.counts",
        )


def _check_model(model_id: str | None, manifest: CacheManifest, models_root: Path | None) -> None:
    if model_id is None:
        return
    if models_root is None:
        raise NotFound(
            "this coordinator has no model catalogue; start it with --models", field="training.pretrained"
        )
    check_other_dataset(find_model(models_root, model_id), manifest.dataset)
