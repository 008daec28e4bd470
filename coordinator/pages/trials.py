"""The page of a trial, and pictures of its hardest clips."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path as Folder
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from coordinator.access.authorization import require
from coordinator.pages import clips, trial_view
from coordinator.pages.rendering import render_page
from coordinator.pages.studies import Name
from coordinator.routes.transactions import Settings, Transaction
from coordinator.store import views
from coordinator.store.folds import confusion_counts
from coordinator.store.studies import get_study
from coordinator.store.tables import StudyRow
from coordinator.store.trial_results import fold_outcomes, readings_view
from services.clip_cache import ClipCache
from services.contracts import TokenScope
from services.errors import CacheMismatch, NotFound
from services.score_names import READING_NAMES

router = APIRouter(
    prefix="/studies/{name}", include_in_schema=False, dependencies=[Depends(require(TokenScope.READ))]
)

HARDEST_CLIPS = 12
"""Number of hardest clips on the page."""

PICTURE_MAX_AGE_SECONDS = 86_400
"""Seconds a browser may cache a picture; a clip of a cache never changes."""


@router.get("/trials/{number}")
def trial(
    name: Name,
    number: Annotated[int, Path(ge=0, lt=2**31)],
    request: Request,
    session: Transaction,
    settings: Settings,
) -> Response:
    """The page of a trial."""
    study = get_study(session, name)
    row = views.get_trial(session, study, number)
    view = views.trial_views(session, study, [row])[0]
    outcomes = fold_outcomes(session, study, row)
    counts = confusion_counts(session, study, row)
    cache = _cache(settings.cache_root, study)
    records = () if cache is None else cache.records
    subject_of = {record.clip_id: record.subject for record in records if record.subject}
    return render_page(
        request,
        "trial.html",
        study=study,
        trial=view,
        matrices=trial_view.matrices(counts) if view.clips else (),
        readings=readings_view(study, row, outcomes, subject_of),
        reading_names=READING_NAMES,
        lines=trial_view.fold_lines(outcomes, subject_of),
        hardest=trial_view.hardest_clips(study.classes, outcomes, HARDEST_CLIPS),
        clip_indices={} if cache is None else clips.clip_indices(cache),
        chance=1 / len(study.classes),
    )


@router.get("/clips/{index}")
def clip(
    name: Name,
    index: Annotated[int, Path(ge=0, lt=2**31)],
    request: Request,
    session: Transaction,
    settings: Settings,
    still: bool = False,
) -> Response:
    """A clip of the study's cache by its index there, as an animation or as a `still` picture."""
    study = get_study(session, name)
    # These three determine the picture.
    tag = f'"{hashlib.sha256(f"{study.fingerprint} {index} {still}".encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={PICTURE_MAX_AGE_SECONDS}"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    cache = clips.load_cache(settings.cache_root, study.dataset, study.fingerprint)
    if index >= len(cache.records):
        raise NotFound(
            f"there is no clip {index}; the clip cache has {len(cache.records)} clips", field="index"
        )
    return Response(clips.clip_picture(cache, index, still=still), media_type="image/webp", headers=headers)


def _cache(root: Folder, study: StudyRow) -> ClipCache | None:
    try:
        return clips.load_cache(root, study.dataset, study.fingerprint)
    except CacheMismatch:
        # The page works without the cache, for example for an imported study.
        return None
