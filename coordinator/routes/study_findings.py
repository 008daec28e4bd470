"""Data for a study's report besides its trials and folds: split, costs, parameter importance."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from coordinator.access.authorization import require_by_method
from coordinator.access.problems import problems
from coordinator.optimizer import importances, trial_record
from coordinator.routes.transactions import Settings, Transaction
from coordinator.store import views
from coordinator.store.digests import study_digest
from coordinator.store.split_view import split_view
from coordinator.store.studies import get_study, parsed_spec
from coordinator.store.tables import StudyRow
from coordinator.store.trial_results import fold_outcomes, readings_view
from services.clip_cache import cache_folder, open_cache
from services.contracts import ImportanceView, ReadingsView, SplitView, StudyDigest, StudyName, TrialCost
from services.errors import CacheMismatch

router = APIRouter(
    prefix="/api/v1/studies",
    tags=["studies"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 422, 429, 503),
)

Name = Annotated[StudyName, Path()]


@router.get("/{name}/split")
def split(name: Name, session: Transaction, settings: Settings) -> SplitView:
    """List the test and validation clips of each fold, with their true classes and their subjects."""
    study = get_study(session, name)
    return split_view(session, study, _subjects(study, settings.cache_root))


@router.get("/{name}/trials/{number}/readings")
def trial_readings(
    name: Name, number: Annotated[int, Path(ge=0, lt=2**31)], session: Transaction, settings: Settings
) -> ReadingsView:
    """Get the scores of a trial under every choice of the epoch that counts, from its finished folds."""
    study = get_study(session, name)
    trial = views.get_trial(session, study, number)
    outcomes = fold_outcomes(session, study, trial)
    return readings_view(study, trial, outcomes, _subjects(study, settings.cache_root))


@router.get("/{name}/costs")
def costs(
    name: Name,
    session: Transaction,
    after: Annotated[int, Query(ge=-1, lt=2**31, description="only trials after this one")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[TrialCost]:
    """List the costs of each trial, by number; for the next page, set `after` to the last number received."""
    return views.trial_costs(session, get_study(session, name), after=after, limit=limit)


@router.get("/{name}/digest")
def digest(name: Name, session: Transaction) -> StudyDigest:
    """Get the digest of a study: equal for two runs that chose, trained and pruned the same."""
    return study_digest(session, get_study(session, name))


@router.get("/{name}/importance")
def importance(name: Name, session: Transaction) -> ImportanceView:
    """Get the importance of each parameter among the complete trials (PED-ANOVA)."""
    study = get_study(session, name)
    complete = views.complete_trials(session, study)
    history = [trial_record(trial) for trial in complete]
    return ImportanceView(
        method="PED-ANOVA",
        trials=len(history),
        importance=importances(parsed_spec(study).space, history),
    )


def _subjects(study: StudyRow, cache_root: FilePath) -> dict[str, str]:
    try:
        cache = open_cache(cache_folder(cache_root, study.dataset, study.fingerprint), verify=False)
    except CacheMismatch:
        # An imported study can be read without its clip cache.
        return {}
    return {clip.clip_id: clip.subject for clip in cache.clips() if clip.has_subject}
