"""A study's life: it is created from a spec and a clip cache, started, paused, resumed, extended, stopped.

Each function runs inside its caller's transaction and commits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import JSON, func, select, type_coerce, update
from sqlalchemy.orm import Session

from coordinator.events import publish
from coordinator.pruning.curves import curves_of
from coordinator.store.conditions import seconds
from coordinator.store.studies import get_study, parsed_spec, read_stored_spec
from coordinator.store.tables import EnqueuedRow, InheritedTrialRow, StudyFoldRow, StudyRow, TrialRow
from services.clip_cache import CacheManifest, cache_folder, find_cache, open_cache
from services.contracts import ANY_CLASS, Clone, EventKind, StudySpec, StudyState, TrialState
from services.errors import CacheMismatch, Conflict, InvalidInput, NotFound
from services.folds import split_hash
from services.model_catalogue import check_other_dataset, find_model
from services.search_space import ParameterValue, first_problem
from services.trainable import check_trainable
from services.validation import folds_of_study

log = structlog.get_logger()


def create(session: Session, spec: StudySpec, cache_root: Path, models_root: Path | None = None) -> StudyRow:
    """Create a study: find its cache, split the clips, and start it unless `spec.start` is false.

    Args:
        session: the caller's open transaction.
        spec: the study.
        cache_root: folder of the clip caches.
        models_root: folder of the model catalogue; None where the coordinator has none.

    Raises:
        Conflict: the name is taken.
        CacheMismatch: no such cache, or its clips do not have the size that the training settings name.
        InvalidInput: the spec does not fit the cache: too few subjects, classes or clips, unknown classes, or a
            pretrained model that was trained on it; or the warm start maximises something else, or none of its
            trials fits the space.
        NotFound: no such pretrained model, or no such study for the warm start.
    """
    if session.scalar(select(StudyRow.id).where(StudyRow.name == spec.name)) is not None:
        raise Conflict(f"a study {spec.name!r} exists already; choose another name", field="name")
    manifest = find_cache(cache_root, spec.cache)
    check_cache(spec, manifest)
    _check_model(spec.training.pretrained, manifest, models_root)
    # Only the index is read here; the worker hashes the arrays that it trains on.
    cache = open_cache(cache_folder(cache_root, manifest.dataset, manifest.fingerprint), verify=False)
    clips = cache.clips()
    folds = folds_of_study(clips, spec)
    check_trainable(clips, folds, spec.protocol, manifest.classes)
    label_of = {clip.clip_id: clip.label for clip in clips}
    study = StudyRow(
        name=spec.name,
        state=StudyState.RUNNING if spec.start else StudyState.DRAFT,
        spec=spec.model_dump(mode="json"),
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        classes=list(manifest.classes),
        clips=sum(len(fold.test_clips) for fold in folds),
        fold_count=len(folds),
        split_hash=split_hash(folds),
        priority=spec.priority,
    )
    session.add(study)
    session.flush()
    if spec.start:
        _record_start(session, study)
    session.add_all(
        StudyFoldRow(
            study_id=study.id,
            fold=fold.index,
            name=fold.name,
            clip_ids=list(fold.test_clips),
            labels=[label_of[clip_id] for clip_id in fold.test_clips],
            validation_clip_ids=list(fold.validation_clips),
            validation_labels=[label_of[clip_id] for clip_id in fold.validation_clips],
        )
        for fold in folds
    )
    _inherit(session, study, spec)
    session.flush()
    publish(session, study.id, EventKind.STUDY_MOVED, state=study.state, reason=None)
    log.info("study_created", study=spec.name, cache=spec.cache, folds=len(folds), trials=spec.trials)
    return study


def start(session: Session, name: str) -> StudyRow:
    """draft -> running."""
    return _move(session, name, {StudyState.DRAFT}, StudyState.RUNNING)


def pause(session: Session, name: str) -> StudyRow:
    """running -> paused; folds that workers hold finish and count."""
    return _move(session, name, {StudyState.RUNNING}, StudyState.PAUSED)


def resume(session: Session, name: str) -> StudyRow:
    """paused -> running."""
    return _move(session, name, {StudyState.PAUSED}, StudyState.RUNNING)


def stop(session: Session, name: str, reason: str) -> StudyRow:
    """End a study for good. Finished folds stay; the leader cancels the open trials."""
    allowed = {StudyState.DRAFT, StudyState.RUNNING, StudyState.PAUSED}
    return _move(session, name, allowed, StudyState.STOPPED, reason)


def set_budget(session: Session, name: str, trials: int) -> StudyRow:
    """Set the number of trials that a study runs in all; a complete study runs again if it gets more.

    Raises:
        Conflict: the study was stopped.
        InvalidInput: it already has more trials, or its grid has fewer configurations.
    """
    study = get_study(session, name, lock=True)
    if study.state == StudyState.STOPPED:
        raise Conflict(f"study {name} is {study.state}; clone it to continue the search", field="state")
    taken = _numbers_taken(session, study)
    if trials < taken:
        raise InvalidInput(
            f"trials is {trials}, study {name} has {taken} trials made or enqueued; give {taken} or more",
            field="trials",
        )
    study.spec = _checked({**study.spec, "trials": trials}, field="trials").model_dump(mode="json")
    publish(session, study.id, EventKind.STUDY_CHANGED, trials=trials)
    if study.state == StudyState.COMPLETE and trials > taken:
        _set_state(session, study, StudyState.RUNNING, None)
        _record_start(session, study)
    log.info("study_budget", study=name, trials=trials)
    return study


def set_workers(session: Session, name: str, workers: int | None) -> StudyRow:
    """Set the number of a study's worker pods in Kubernetes; None means the chart's number.

    Raises:
        Conflict: the study is over.
    """
    study = get_study(session, name, lock=True)
    if StudyState(study.state).over:
        raise Conflict(f"study {name} is {study.state}; it needs no workers", field="state")
    study.spec = {**study.spec, "workers": workers}
    publish(session, study.id, EventKind.STUDY_CHANGED, workers=workers)
    log.info("study_workers", study=name, workers=workers)
    return study


def enqueue(
    session: Session, name: str, configurations: Sequence[Mapping[str, ParameterValue]]
) -> tuple[int, ...]:
    """Run these configurations next, after the trials that exist; returns the numbers of their trials.

    Raises:
        Conflict: the study is over.
        InvalidInput: a configuration does not fit the space, or there are more than remaining trials.
    """
    study = get_study(session, name, lock=True)
    if StudyState(study.state).over:
        raise Conflict(
            f"study {name} is {study.state}; a complete one needs a larger budget first", field="state"
        )
    spec = parsed_spec(study)
    taken = _numbers_taken(session, study)
    remaining = spec.trials - taken
    if len(configurations) > remaining:
        raise InvalidInput(
            f"{len(configurations)} configurations are more than the {remaining} remaining trials of study "
            f"{name}; give it a larger budget or enqueue fewer",
            field="configurations",
        )
    for index, parameters in enumerate(configurations):
        try:
            canonical = spec.space.canonicalize(spec.complete(parameters))
        except InvalidInput as error:
            field = f"configurations.{index}"
            raise InvalidInput(f"{field}: {error.message}", field=field) from error
        session.add(EnqueuedRow(study_id=study.id, number=taken + index, parameters=canonical))
    publish(session, study.id, EventKind.STUDY_CHANGED, enqueued=len(configurations))
    log.info("study_enqueued", study=name, configurations=len(configurations), first=taken)
    return tuple(range(taken, taken + len(configurations)))


def cloned_spec(session: Session, name: str, clone: Clone) -> StudySpec:
    """The spec of a study with another name and changes, on the same clip cache unless a change names another.

    Raises:
        InvalidInput: the changed spec is not valid.
    """
    study = get_study(session, name)
    cache = f"{study.dataset}/{study.fingerprint}"
    changed = _patched({**study.spec, "cache": cache}, clone.changes)
    return _checked({**changed, "name": clone.name})


def check_cache(spec: StudySpec, manifest: CacheManifest) -> None:
    """Reject a cache on which a study cannot run.

    Raises:
        CacheMismatch: its clips have another size than the training settings name.
        InvalidInput: the study augments a class that the cache does not have.
    """
    for field, cached in (("frames", manifest.frames), ("frame_size", manifest.frame_size)):
        wanted = getattr(spec.training, field)
        if wanted != cached:
            raise CacheMismatch(
                f"training.{field} is {wanted}, the cache {manifest.dataset}/{manifest.fingerprint[:12]} has "
                f"{cached}; preprocess with {wanted} or change the study",
                field=f"training.{field}",
            )
    unknown = set(spec.training.augmentation.counts) - set(manifest.classes) - {ANY_CLASS}
    if unknown:
        raise InvalidInput(
            f"training.augmentation.counts names the class {min(unknown)!r}; "
            f"the cache has {', '.join(manifest.classes)}",
            field="training.augmentation.counts",
        )


def overdue_studies(session: Session) -> Sequence[tuple[int, str, str]]:
    """Running studies that are past their `study_seconds`: id, name and the reason to stop them.

    The time of a study counts from its start and includes pauses; a larger budget starts it again.
    """
    limit = type_coerce(StudyRow.spec, JSON)["study_seconds"].as_float()
    overdue = session.execute(
        select(StudyRow.id, StudyRow.name, limit).where(
            StudyRow.state == StudyState.RUNNING,
            limit.is_not(None),
            StudyRow.started_at < func.clock_timestamp() - seconds(limit),
        )
    )
    return [
        (study_id, name, f"study_seconds: {allowed:g} s since its start") for study_id, name, allowed in overdue
    ]


def _check_model(model_id: str | None, manifest: CacheManifest, models_root: Path | None) -> None:
    if model_id is None:
        return
    if models_root is None:
        raise NotFound(
            "this coordinator has no model catalogue; start it with --models", field="training.pretrained"
        )
    check_other_dataset(find_model(models_root, model_id), manifest.dataset)


def _inherit(session: Session, study: StudyRow, spec: StudySpec) -> None:
    """Copy the trials of the warm start, so that later changes of their study change nothing here."""
    warm = spec.warm_start
    if warm is None:
        return
    try:
        source = get_study(session, warm.study)
    except NotFound as error:
        raise NotFound(f"warm_start.study: {error.message}", field="warm_start.study") from error
    _check_same_score(parsed_spec(source), spec)
    states = [TrialState.COMPLETE] + ([TrialState.PRUNED] if warm.trials == "all" else [])
    of_states = select(TrialRow).where(TrialRow.study_id == source.id, TrialRow.state.in_(states))
    if warm.best is None:
        ended = session.scalars(of_states.order_by(TrialRow.number)).all()
    else:
        ended = session.scalars(of_states.order_by(TrialRow.value.desc(), TrialRow.number)).all()
    fitting = [
        (trial, canonical) for trial in ended if (canonical := _fitting(spec, trial.parameters)) is not None
    ]
    if not fitting:
        raise InvalidInput(
            f"warm_start: study {warm.study} has no ended trial that fits the space; leave out warm_start",
            field="warm_start",
        )
    fitting = fitting[: warm.best]
    curves = curves_of(session, source, [trial for trial, _ in fitting])
    session.add_all(
        InheritedTrialRow(
            study_id=study.id,
            place=place,
            parameters=canonical,
            state=trial.state,
            value=trial.value,
            curve=curves[trial.id],
        )
        for place, (trial, canonical) in enumerate(fitting)
    )
    log.info("study_inherited", study=study.name, source=warm.study, trials=len(fitting))


def _check_same_score(source: StudySpec, spec: StudySpec) -> None:
    theirs, ours = ((one.objective, one.counted_epoch) for one in (source, spec))
    if theirs != ours:
        raise InvalidInput(
            f"warm_start.study: {source.name} maximises {' with epoch_choice '.join(theirs)}, this study "
            f"{' with epoch_choice '.join(ours)}; their values cannot be compared: leave out warm_start, or "
            "take the same objective and epoch_choice",
            field="warm_start.study",
        )


def _fitting(spec: StudySpec, parameters: Mapping[str, Any]) -> dict[str, ParameterValue] | None:
    try:
        return spec.space.canonicalize(parameters)
    except InvalidInput:
        return None


def _move(
    session: Session, name: str, allowed: set[StudyState], state: StudyState, reason: str | None = None
) -> StudyRow:
    study = get_study(session, name, lock=True)
    if StudyState(study.state) == state:
        return study
    if StudyState(study.state) not in allowed:
        raise Conflict(f"study {name} is {study.state}; it cannot become {state.value}", field="state")
    _set_state(session, study, state, reason)
    return study


def _set_state(session: Session, study: StudyRow, state: StudyState, reason: str | None) -> None:
    if study.state == StudyState.DRAFT:
        _record_start(session, study)
    study.state = state
    study.reason = reason
    publish(session, study.id, EventKind.STUDY_MOVED, state=state.value, reason=reason)
    log.info("study_moved", study=study.name, state=state.value)


def _record_start(session: Session, study: StudyRow) -> None:
    session.flush()
    session.execute(update(StudyRow).where(StudyRow.id == study.id).values(started_at=func.clock_timestamp()))


def _numbers_taken(session: Session, study: StudyRow) -> int:
    """The number of the next trial that can be enqueued."""
    made = select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id)
    last = select(func.max(EnqueuedRow.number)).where(EnqueuedRow.study_id == study.id)
    last_number = session.scalar(last)
    return max(
        session.scalar(made) or 0,
        len(study.spec.get("enqueue", ())),
        0 if last_number is None else last_number + 1,
    )


def _checked(spec: Mapping[str, Any], *, field: str | None = None) -> StudySpec:
    try:
        return read_stored_spec(spec)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field=field) from error


def _patched(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396, except that a mapping with a `kind` replaces the old one: another kind has other fields."""
    patched = dict(spec)
    for key, value in changes.items():
        old = patched.get(key)
        if value is None:
            patched.pop(key, None)
        elif isinstance(value, Mapping) and "kind" not in value:
            patched[key] = _patched(old if isinstance(old, Mapping) else {}, value)
        else:
            patched[key] = value
    return patched
