"""Finished folds of trials with the counts from which scores follow."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from sqlalchemy import JSON, cast, func, literal, or_, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import Session

from coordinator.store.conditions import among
from coordinator.store.folds import fold_counts
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import ResultRow, StudyFoldRow, StudyRow
from services.contracts import StudySpec
from services.running_scores import FoldEpochs, at_every_epoch, correct_at_every_epoch
from services.scores import epochs_that_count

TRIALS_AT_ONCE = 50
"""Trials whose predictions are read together."""

_EPOCHS = ResultRow.payload["epochs"]
_PREDICTED = func.jsonb_path_query_array(cast(_EPOCHS, JSONB), cast("$[*].predicted", JSONPATH))
_FIRST_LOSS = _EPOCHS[0]["loss"].as_string()


def fold_epochs(
    session: Session, study: StudyRow, trial_ids: Collection[int], *, confusions: bool, beyond: bool = False
) -> dict[int, dict[int, FoldEpochs]]:
    """The finished folds of each trial that count, by its id and by fold.

    Args:
        session: only read from.
        study: of the trials.
        trial_ids: of the trials.
        confusions: whether confusion counts are needed; if not, they may be missing.
        beyond: whether finished folds beyond a verdict are there too, where one epoch is chosen for all folds.
    """
    if parsed_spec(study).counted_epoch == "best_common":
        return _of_all_epochs(session, study, trial_ids, confusions=confusions, beyond=beyond)
    if not confusions:
        return {
            trial_id: {count.fold: FoldEpochs(clips=count.clips, correct=(count.correct,)) for count in counts}
            for trial_id, counts in fold_counts(session, list(trial_ids)).items()
        }
    found: dict[int, dict[int, FoldEpochs]] = {trial_id: {} for trial_id in trial_ids}
    rows = session.execute(
        select(
            ResultRow.trial_id, ResultRow.fold, ResultRow.correct, ResultRow.clips, ResultRow.confusion
        ).where(among(ResultRow.trial_id, trial_ids), ~ResultRow.beyond_verdict)
    )
    for trial_id, fold, correct, clips, counts in rows:
        found[trial_id][fold] = FoldEpochs(
            clips=clips, correct=(correct,), confusions=(np.asarray(counts, dtype=np.int64),)
        )
    return found


def epochs_of_result(study: StudyRow, spec: StudySpec, split: StudyFoldRow, row: ResultRow) -> FoldEpochs:
    """The counts of a result that is not stored yet."""
    if spec.counted_epoch == "best_common":
        epochs, classes = row.payload["epochs"], len(study.classes)
        predicted = epochs_that_count(
            split.labels,
            [epoch["predicted"] for epoch in epochs],
            classes,
            trained=epochs[0]["loss"] is not None,
        )
        return at_every_epoch(split.labels, predicted, classes)
    counts = np.asarray(row.confusion, dtype=np.int64)
    return FoldEpochs(clips=row.clips, correct=(row.correct,), confusions=(counts,))


def _of_all_epochs(
    session: Session, study: StudyRow, trial_ids: Collection[int], *, confusions: bool, beyond: bool
) -> dict[int, dict[int, FoldEpochs]]:
    found: dict[int, dict[int, FoldEpochs]] = {trial_id: {} for trial_id in trial_ids}
    splits, classes = study_split(session, study), len(study.classes)
    ids = list(trial_ids)
    # A few at a time: the database ends a transaction that computes for long between two statements.
    for first in range(0, len(ids), TRIALS_AT_ONCE):
        rows = session.execute(
            select(ResultRow.trial_id, ResultRow.fold, type_coerce(_PREDICTED, JSON), _FIRST_LOSS).where(
                among(ResultRow.trial_id, ids[first : first + TRIALS_AT_ONCE]),
                or_(literal(beyond), ~ResultRow.beyond_verdict),
            )
        )
        for trial_id, fold, epochs, first_loss in rows:
            split = splits[fold]
            predicted = epochs_that_count(split.labels, epochs, classes, trained=first_loss is not None)
            found[trial_id][fold] = (
                at_every_epoch(split.labels, predicted, classes)
                if confusions
                else correct_at_every_epoch(split.labels, predicted)
            )
    return found
