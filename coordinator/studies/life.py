"""A study's life: created from a spec and a clip cache, started, paused, resumed, extended, stopped.

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
from coordinator.pruning.fold_order import order_of
from coordinator.store.conditions import seconds
from coordinator.store.folds import finished_prefix, fold_counts
from coordinator.store.studies import get_study, parsed_spec
from coordinator.store.tables import EnqueuedRow, InheritedTrialRow, StudyFoldRow, StudyRow, TrialRow
from services.clip_cache import CacheManifest, cache_folder, find_cache, open_cache
from services.contracts import ANY_CLASS, Clone, EventKind, StudySpec, StudyState, TrialState
from services.errors import CacheMismatch, Conflict, InvalidInput, NotFound
from services.folds import make_folds, split_hash
from services.model_catalogue import check_other_dataset, find_model
from services.pruning.rule import running_accuracy
from services.search_space import ParameterValue, first_problem

log = structlog.get_logger()


def create(session: Session, spec: StudySpec, cache_root: Path, models_root: Path | None = None) -> StudyRow:
    """Create a study: find its cache, split the clips, and start it unless the spec says not to.

    Raises:
        Conflict: the name is taken.
        CacheMismatch: no such cache, or its clips are not of the size the training settings say.
        InvalidInput: the spec does not fit the cache: too few subjects, unknown classes, a model to start from
            that was trained on it; or no trial to start warm from fits the space.
        NotFound: no such model, or no such study to start warm from.
    """
    if session.scalar(select(StudyRow.id).where(StudyRow.name == spec.name)) is not None:
        raise Conflict(f"a study {spec.name!r} exists already; choose another name", field="name")
    manifest = find_cache(cache_root, spec.cache)
    check_cache(spec, manifest)
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
        clips=sum(len(fold.test_clips) for fold in folds),
        fold_count=len(folds),
        split_hash=split_hash(folds),
        priority=spec.priority,
    )
    session.add(study)
    session.flush()
    if spec.start:
        _note_start(session, study)
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
    _inherit(session, study, spec)
    session.flush()
    publish(session, study.id, EventKind.STUDY_MOVED, state=study.state, reason=None)
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
    allowed = {StudyState.DRAFT, StudyState.RUNNING, StudyState.PAUSED}
    return _move(session, name, allowed, StudyState.STOPPED, reason)


def set_budget(session: Session, name: str, trials: int) -> StudyRow:
    """Set how many trials a study runs in all; a complete one runs again when it is given more.

    Raises:
        Conflict: the study was stopped.
        InvalidInput: it has more trials already, or its grid has not so many configurations.
    """
    study = get_study(session, name, lock=True)
    if study.state == StudyState.STOPPED:
        raise Conflict(f"study {name} is {study.state}; clone it to search on", field="state")
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
        _note_start(session, study)
    log.info("study_budget", study=name, trials=trials)
    return study


def set_workers(session: Session, name: str, workers: int | None) -> StudyRow:
    """Set how many pods of workers a study has in Kubernetes; None is what the chart says."""
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
    """Run these configurations next, after the trials that are made already; the numbers they will have.

    Raises:
        Conflict: the study is over.
        InvalidInput: a configuration does not fit the space, or there are more than trials left.
    """
    study = get_study(session, name, lock=True)
    if StudyState(study.state).over:
        raise Conflict(
            f"study {name} is {study.state}; give a complete one a larger budget first", field="state"
        )
    spec = parsed_spec(study)
    taken = _numbers_taken(session, study)
    left = spec.trials - taken
    if len(configurations) > left:
        raise InvalidInput(
            f"{len(configurations)} configurations are more than the {left} trials that study {name} has left; "
            "give it a larger budget or enqueue fewer",
            field="configurations",
        )
    for place, parameters in enumerate(configurations):
        try:
            tidied = spec.space.canonicalize(parameters)
        except InvalidInput as error:
            field = f"configurations.{place}"
            raise InvalidInput(f"{field}: {error.message}", field=field) from error
        session.add(EnqueuedRow(study_id=study.id, number=taken + place, parameters=tidied))
    publish(session, study.id, EventKind.STUDY_CHANGED, enqueued=len(configurations))
    log.info("study_enqueued", study=name, configurations=len(configurations), first=taken)
    return tuple(range(taken, taken + len(configurations)))


def cloned_spec(session: Session, name: str, clone: Clone) -> StudySpec:
    """The spec of a study with another name and some changes, on the same clip cache unless that is changed.

    Raises:
        InvalidInput: what comes out is no spec.
    """
    study = get_study(session, name)
    cache = f"{study.dataset}/{study.fingerprint}"
    changed = _patched({**study.spec, "cache": cache}, clone.changes)
    return _checked({**changed, "name": clone.name})


def check_cache(spec: StudySpec, manifest: CacheManifest) -> None:
    """Refuse a cache that a study cannot be run on.

    Raises:
        CacheMismatch: its clips are of another size than the training settings say.
        InvalidInput: the study augments a class that the cache has not.
    """
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


def overdue_studies(session: Session) -> Sequence[tuple[str, str]]:
    """Names of the running studies that are past their `study_seconds`, and the reason to stop them.

    The time of a study runs from its start, through pauses too; it starts again with a larger budget.
    """
    limit = type_coerce(StudyRow.spec, JSON)["study_seconds"].as_float()
    overdue = session.execute(
        select(StudyRow.name, limit).where(
            StudyRow.state == StudyState.RUNNING,
            limit.is_not(None),
            StudyRow.started_at < func.clock_timestamp() - seconds(limit),
        )
    )
    return [(name, f"study_seconds: {allowed:g} s since its start") for name, allowed in overdue]


def _numbers_taken(session: Session, study: StudyRow) -> int:
    """Up to which number trials are made or enqueued."""
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
        return StudySpec.model_validate(spec)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field=field) from error


def _patched(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396, except that a mapping with a kind replaces the whole: another kind has other fields."""
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


def _inherit(session: Session, study: StudyRow, spec: StudySpec) -> None:
    """Copy the trials that a warm start means: what becomes of their study later changes nothing here."""
    warm = spec.warm_start
    if warm is None:
        return
    try:
        source = get_study(session, warm.study)
    except NotFound as error:
        raise NotFound(f"warm_start.study: {error.message}", field="warm_start.study") from error
    states = [TrialState.COMPLETE] + ([TrialState.PRUNED] if warm.trials == "all" else [])
    of_states = select(TrialRow).where(TrialRow.study_id == source.id, TrialRow.state.in_(states))
    if warm.best is None:
        ended = session.scalars(of_states.order_by(TrialRow.number)).all()
    else:
        ended = session.scalars(of_states.order_by(TrialRow.value.desc(), TrialRow.number)).all()
    fitting = [(trial, tidied) for trial in ended if (tidied := _fitting(spec, trial.parameters)) is not None]
    if not fitting:
        raise InvalidInput(
            f"warm_start: study {warm.study} has no ended trial that fits the space; leave warm_start out",
            field="warm_start",
        )
    fitting = fitting[: warm.best]
    counts = fold_counts(session, [trial.id for trial, _ in fitting])
    session.add_all(
        InheritedTrialRow(
            study_id=study.id,
            place=place,
            parameters=tidied,
            state=trial.state,
            value=trial.value,
            curve=running_accuracy(finished_prefix(counts[trial.id], order_of(session, source, trial))),
        )
        for place, (trial, tidied) in enumerate(fitting)
    )
    log.info("study_inherited", study=study.name, source=warm.study, trials=len(fitting))


def _fitting(spec: StudySpec, parameters: Mapping[str, Any]) -> dict[str, ParameterValue] | None:
    try:
        return spec.space.canonicalize(parameters)
    except InvalidInput:
        return None


def _note_start(session: Session, study: StudyRow) -> None:
    session.flush()
    session.execute(update(StudyRow).where(StudyRow.id == study.id).values(started_at=func.clock_timestamp()))


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
        _note_start(session, study)
    study.state = state
    study.reason = reason
    publish(session, study.id, EventKind.STUDY_MOVED, state=state.value, reason=reason)
    log.info("study_moved", study=study.name, state=state.value)


def _check_model(model_id: str | None, manifest: CacheManifest, models_root: Path | None) -> None:
    if model_id is None:
        return
    if models_root is None:
        raise NotFound(
            "this coordinator has no model catalogue; start it with --models", field="training.pretrained"
        )
    check_other_dataset(find_model(models_root, model_id), manifest.dataset)
