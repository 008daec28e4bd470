"""Imports a study file into the tables, in one transaction, and checks whatever can be checked.

Every result is hashed, and scored again from its predictions and the labels of the split. Results are marked
as imported and name no lease: a lease is one coordinator's promise to one worker and fences nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy import bindparam, select, text, update
from sqlalchemy.orm import Session

from coordinator.events import publish
from coordinator.pruning.curves import curves_of
from coordinator.scheduling.judging import count_again
from coordinator.scheduling.results import imported_result
from coordinator.store.appends import outbox_row
from coordinator.store.copy_rows import copy_rows
from coordinator.store.folds import fold_task, next_task, pooled_confusions
from coordinator.store.tables import (
    EnqueuedRow,
    FoldRow,
    InheritedTrialRow,
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
)
from coordinator.studies.study_lines import check_study_line, check_trial_line, must
from services import scores
from services.clip_cache import find_cache
from services.contracts import EventKind, StudySpec, StudyState, TrialState
from services.errors import CacheMismatch, Conflict, InvalidInput
from services.search_space import first_problem
from services.seeds import sha256_of
from services.study_file import MAX_LINE_BYTES, ResultLine, ReusedLine, StudyLine, TrialLine

log = structlog.get_logger()
Line = TypeVar("Line", bound=BaseModel)

_RESULT = (
    "trial_id",
    "fold",
    "imported",
    "sha256",
    "payload",
    "best_epoch",
    "correct",
    "clips",
    "confusion",
    "verdict",
    "received_at",
)
"""Columns of a result that an import gives."""

_REUSED = """
    FROM unnest(
        CAST(:trial_ids AS bigint[]), CAST(:folds AS integer[]), CAST(:origins AS integer[]),
        CAST(:received_ats AS timestamptz[])
    ) AS reused (trial_id, fold, origin, received_at)
    JOIN foldwise.trials ON trials.id = reused.trial_id
    {join} (
        foldwise.trials AS ran
        JOIN foldwise.results ON results.trial_id = ran.id AND results.reused_from IS NULL
    ) ON ran.study_id = :study_id AND ran.number = reused.origin
        AND ran.parameters_hash = trials.parameters_hash AND results.fold = reused.fold
"""
"""Folds that count another trial's result, and that result."""

_STORE_REUSED = text(
    "INSERT INTO foldwise.results (trial_id, fold, reused_from, sha256, payload, best_epoch, correct, clips,"
    " confusion, verdict, received_at)"
    " SELECT reused.trial_id, reused.fold, ran.id, sha256, payload, best_epoch, correct, clips, confusion,"
    " '{}', reused.received_at" + _REUSED.format(join="JOIN")
)

_REUSED_OF_NOTHING = text(
    "SELECT trials.number, reused.fold, reused.origin"
    + _REUSED.format(join="LEFT JOIN")
    + "WHERE ran.id IS NULL ORDER BY trials.number, reused.fold LIMIT 1"
)


class _Reused(NamedTuple):
    """A fold to count from another trial, once all trials are stored."""

    trial_id: int
    fold: int
    origin: int
    """Number of the trial that ran it."""

    received_at: datetime


TRIALS_AT_ONCE = 200
"""Trials whose results are in memory together."""


def import_study(
    session: Session, lines: Iterable[bytes], cache_root: Path, name: str | None = None
) -> StudyRow:
    """Store a study as its file describes it; a study that was running is paused.

    Args:
        session: the caller's open transaction; the import is one transaction, all or nothing.
        lines: of a study file.
        cache_root: folder of the clip caches, needed for a study that is not over.
        name: the study's new name; None keeps the one in the file.

    Raises:
        Conflict: the name is taken.
        InvalidInput: a line is not valid; the message names the line and the reason.
        CacheMismatch: the study is not over and its clip cache is not here.
    """
    numbered = enumerate(lines, start=1)
    with _at(1):
        line = _parse(StudyLine, _next(numbered, "the file is empty; give what `foldwise study export` wrote"))
        spec = line.spec if name is None else line.spec.model_copy(update={"name": name})
        check_study_line(line, spec)
        if not line.state.over:
            _check_cache(line, cache_root)
    if session.scalar(select(StudyRow.id).where(StudyRow.name == spec.name)) is not None:
        raise Conflict(f"a study {spec.name!r} exists already; import it under another name", field="name")
    study, splits = _store_study(session, line, spec)
    reused: list[_Reused] = []
    beyond: list[tuple[int, int]] = []
    last, completed = None, 0
    for number in range(line.trials):
        with _at(number + 2):
            cut_off = f"the file ends after {number} of {line.trials} trials; export the study again"
            trial_line = _parse(TrialLine, _next(numbered, cut_off))
            check_trial_line(trial_line, number, spec, study)
            completed += trial_line.state == TrialState.COMPLETE
            last = _store_trial(session, study, spec, splits, trial_line, completed)
            reused += _reused_folds(last, trial_line)
            beyond += [(last, fold) for fold in trial_line.beyond_verdict]
    if next(numbered, None) is not None:
        raise InvalidInput(
            f"the file has more lines after {line.trials} trials; export the study again", field="trials"
        )
    _store_reused(session, study, reused)
    _mark_beyond_verdict(session, beyond)
    _score_trials(session, study)
    if last is not None:
        # One is enough: the leader projects every trial that Optuna does not have.
        session.execute(outbox_row(last))
    publish(session, study.id, EventKind.STUDY_MOVED, state=study.state, reason=study.reason, imported=True)
    log.info("study_imported", study=study.name, trials=line.trials)
    return study


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of an open file, one at a time.

    Raises:
        InvalidInput: a line is longer than `MAX_LINE_BYTES`.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise InvalidInput(f"a line is longer than {MAX_LINE_BYTES} bytes; this is not a study file")
        yield line


def _check_cache(line: StudyLine, cache_root: Path) -> None:
    cache = f"{line.dataset}/{line.fingerprint}"
    try:
        find_cache(cache_root, cache)
    except CacheMismatch as error:
        raise CacheMismatch(
            f"the study is {line.state.value} and needs the clip cache {cache[:40]}: {error.message}",
            field="fingerprint",
        ) from error


def _store_study(session: Session, line: StudyLine, spec: StudySpec) -> tuple[StudyRow, list[StudyFoldRow]]:
    study = StudyRow(
        name=spec.name,
        # Two coordinators must not both continue the study unless somebody resumes it.
        state=StudyState.PAUSED if line.state == StudyState.RUNNING else line.state,
        reason=line.reason,
        spec=spec.model_dump(mode="json"),
        dataset=line.dataset,
        fingerprint=line.fingerprint,
        classes=list(line.classes),
        clips=sum(len(fold.clip_ids) for fold in line.folds),
        fold_count=len(line.folds),
        split_hash=line.split_hash,
        fold_order=None if line.fold_order is None else list(line.fold_order),
        plan=None if line.plan is None else line.plan.model_dump(mode="json"),
        priority=spec.priority,
        created_at=line.created_at,
        started_at=line.started_at,
    )
    session.add(study)
    session.flush()
    splits = [
        StudyFoldRow(
            study_id=study.id,
            fold=index,
            name=fold.name,
            clip_ids=list(fold.clip_ids),
            labels=list(fold.labels),
            validation_clip_ids=list(fold.validation_clip_ids),
            validation_labels=list(fold.validation_labels),
        )
        for index, fold in enumerate(line.folds)
    ]
    session.add_all(splits)
    session.add_all(
        EnqueuedRow(study_id=study.id, number=enqueued.number, parameters=enqueued.parameters)
        for enqueued in line.enqueued
    )
    session.add_all(
        InheritedTrialRow(
            study_id=study.id,
            place=place,
            parameters=trial.parameters,
            state=trial.state,
            value=trial.value,
            curve=list(trial.curve),
        )
        for place, trial in enumerate(line.inherited)
    )
    session.flush()
    return study, splits


def _store_trial(
    session: Session,
    study: StudyRow,
    spec: StudySpec,
    splits: list[StudyFoldRow],
    line: TrialLine,
    completed: int,
) -> int:
    """Store a trial with its folds and the results that it ran itself, and return its id."""
    trial = TrialRow(
        study_id=study.id,
        number=line.number,
        parameters=line.parameters,
        parameters_hash=sha256_of(line.parameters),
        state=line.state,
        learnt_order=line.learnt_order,
        value=line.value,
        completed=completed if line.state == TrialState.COMPLETE else None,
        pruned=None if line.pruned is None else line.pruned.model_dump(mode="json"),
        end_reason=line.end_reason,
        created_at=line.created_at,
        ended_at=line.ended_at,
    )
    session.add(trial)
    session.flush()
    folds = ((trial.id, index, fold.state.value, 0) for index, fold in enumerate(line.folds))
    copy_rows(session, FoldRow, ("trial_id", "fold", "state", "term"), folds)
    results = _results(study, spec, splits, trial, line)
    copy_rows(session, ResultRow, _RESULT, (attrgetter(*_RESULT)(row) for row in results))
    session.expunge(trial)
    return trial.id


def _results(
    study: StudyRow, spec: StudySpec, splits: list[StudyFoldRow], trial: TrialRow, line: TrialLine
) -> Iterator[ResultRow]:
    """The results that the trial ran itself, as unsaved rows, each checked and scored again."""
    task = None
    for split, fold in zip(splits, line.folds, strict=True):
        if not isinstance(fold.result, ResultLine):
            continue
        task = fold_task(study, spec, trial, split) if task is None else next_task(task, study, trial, split)
        where = f"folds.{split.fold}.result"
        try:
            row = imported_result(study, spec, trial, split, task, fold.result.payload)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message}", field=where) from error
        # Where one epoch is chosen for all folds, a fold alone does not say at which it counts.
        scored = () if spec.counted_epoch == "best_common" else ("best_epoch", "correct", "confusion")
        for name in ("sha256", *scored):
            stated = getattr(fold.result, name)
            stated = [list(counts) for counts in stated] if name == "confusion" else stated
            must(stated == getattr(row, name), f"{where}.{name}", "is not that of its payload")
        row.received_at = fold.result.received_at
        yield row


def _reused_folds(trial_id: int, line: TrialLine) -> Iterator[_Reused]:
    for index, fold in enumerate(line.folds):
        if isinstance(fold.result, ReusedLine):
            yield _Reused(trial_id, index, fold.result.reused_from, fold.result.received_at)


def _store_reused(session: Session, study: StudyRow, reused: list[_Reused]) -> None:
    """Count the results of other trials in one statement; each must have been run with equal parameters."""
    given = {f"{name}s": [getattr(fold, name) for fold in reused] for name in _Reused._fields}
    session.execute(_STORE_REUSED, {**given, "study_id": study.id})
    missing = session.execute(_REUSED_OF_NOTHING, {**given, "study_id": study.id}).first()
    if missing is not None:
        where = f"folds.{missing.fold}.result.reused_from"
        raise InvalidInput(
            f"line {missing.number + 2}: {where}: trial {missing.origin} did not run it with equal parameters",
            field=where,
        )


def _mark_beyond_verdict(session: Session, folds: list[tuple[int, int]]) -> None:
    if folds:
        of_fold = (ResultRow.trial_id == bindparam("of_trial"), ResultRow.fold == bindparam("of_fold"))
        session.connection().execute(
            update(ResultRow).where(*of_fold).values(beyond_verdict=True),
            [{"of_trial": trial_id, "of_fold": fold} for trial_id, fold in folds],
        )


def _score_trials(session: Session, study: StudyRow) -> None:
    """Keep the scores of ended trials, and check the value of each complete one."""
    wanted = select(TrialRow).where(TrialRow.study_id == study.id).order_by(TrialRow.number)
    for trials in session.scalars(wanted).partitions(TRIALS_AT_ONCE):
        count_again(session, study, trials)
        curves = curves_of(session, study, trials)
        pooled = pooled_confusions(session, [trial.id for trial in trials])
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                with _at(trial.number + 2):
                    must(trial.value == curves[trial.id][-1], "value", "is not the score of its folds")
            if trial.state in {TrialState.COMPLETE, TrialState.PRUNED} and trial.id in pooled:
                trial.uar = scores.unweighted_average_recall(pooled[trial.id])
                trial.uf1 = scores.unweighted_f1(pooled[trial.id])
        session.flush()
        for trial in trials:
            session.expunge(trial)


@contextmanager
def _at(line: int) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"line {line}: {error.message}", field=error.field) from error


def _next(numbered: Iterator[tuple[int, bytes]], missing: str) -> bytes:
    found = next(numbered, None)
    if found is None:
        raise InvalidInput(missing)
    return found[1]


def _parse(kind: type[Line], line: bytes) -> Line:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field=_field(error)) from error


def _field(error: ValidationError) -> str | None:
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or None
