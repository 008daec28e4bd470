"""The page of a trial, and pictures of the clips that it found hard."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path as Folder
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from coordinator.access.gate import require
from coordinator.pages import clips, trial_view
from coordinator.pages.answers import page
from coordinator.pages.studies import Name
from coordinator.routes.transactions import Settings, Transaction
from coordinator.store import views
from coordinator.store.studies import get_study
from coordinator.store.tables import StudyRow
from coordinator.store.trial_results import fold_outcomes
from services import scores
from services.clip_cache import ClipCache
from services.contracts import TokenScope
from services.errors import CacheMismatch, NotFound

router = APIRouter(
    prefix="/studies/{name}", include_in_schema=False, dependencies=[Depends(require(TokenScope.READ))]
)

HARDEST = 12
"""Clips shown."""

KEPT_SECONDS = 86_400
"""A clip of a cache never changes, and the browser's own memory of it is as private as the page."""


@router.get("/trials/{number}")
def trial(
    name: Name,
    number: Annotated[int, Path(ge=0, lt=2**31)],
    request: Request,
    session: Transaction,
    settings: Settings,
) -> Response:
    """One trial."""
    study = get_study(session, name)
    row = views.get_trial(session, study, number)
    view = views.trial_views(session, study, [row])[0]
    outcomes = fold_outcomes(session, study, row)
    counts = trial_view.confusion(study.classes, outcomes)
    cache = _cache(settings.cache_root, study)
    subject_of = {} if cache is None else {record.clip_id: record.subject for record in cache.records}
    return page(
        request,
        "trial.html",
        study=study,
        trial=view,
        matrices=trial_view.matrices(counts) if view.clips else (),
        uar=scores.unweighted_average_recall(counts),
        uf1=scores.unweighted_f1(counts),
        lines=trial_view.fold_lines(outcomes, subject_of),
        hardest=trial_view.hardest_clips(study.classes, outcomes, HARDEST),
        places={} if cache is None else clips.places(cache),
        chance=1 / len(study.classes),
    )


@router.get("/clips/{place}")
def clip(
    name: Name,
    place: Annotated[int, Path(ge=0, lt=2**31)],
    request: Request,
    session: Transaction,
    settings: Settings,
    still: bool = False,
) -> Response:
    """A clip of the study's cache by its place there, moving or `still`."""
    study = get_study(session, name)
    # The place alone decides what is shown.
    tag = f'"{hashlib.sha256(f"{study.fingerprint} {place} {still}".encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={KEPT_SECONDS}"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    cache = clips.opened(settings.cache_root, study.dataset, study.fingerprint)
    if place >= len(cache.records):
        raise NotFound(f"the clip cache has {len(cache.records)} clips, none at {place}", field="place")
    return Response(clips.picture(cache, place, still=still), media_type="image/webp", headers=headers)


def _cache(root: Folder, study: StudyRow) -> ClipCache | None:
    try:
        return clips.opened(root, study.dataset, study.fingerprint)
    except CacheMismatch:
        # The numbers stand without it, as in an imported study.
        return None
