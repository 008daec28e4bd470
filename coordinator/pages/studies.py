"""The list of studies, the page of a study, and what the page's scripts load."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from sqlalchemy.orm import Session

from coordinator import events
from coordinator.access.authorization import require
from coordinator.pages import study_view
from coordinator.pages.heat_map import heat_map, rule_marks, running_cells
from coordinator.pages.parameters import parameter_panels
from coordinator.pages.rendering import render_page
from coordinator.routes.events import study_events
from coordinator.routes.transactions import Transaction
from coordinator.runtime import CurrentRuntime, Runtime
from coordinator.store import study_progress
from coordinator.store.fold_map import MappedTrial, fold_map
from coordinator.store.studies import get_study, parsed_spec
from coordinator.store.tables import StudyRow
from coordinator.store.troubles import study_troubles
from services.contracts import PodView, StudyName, StudyState, TokenScope, TrialState
from services.folds import protocol_words
from services.score_names import OBJECTIVE_NAMES, epoch_choice_words
from services.search_space import Range

router = APIRouter(include_in_schema=False, dependencies=[Depends(require(TokenScope.READ))])

Name = Annotated[StudyName, Path()]

WORKER_SILENCE_SECONDS = 900.0
"""Seconds without contact after which a worker is no longer shown."""

RECENT_FOLDS = 200
"""Last counted folds from which the forecast takes the pace."""

TABLE_ROWS = 8
"""Maximum rows of the tables of trials on a study's page."""

TRIALS_PER_PAGE = 200


STUDIES_PER_PAGE = 200


@router.get("/")
def studies(
    request: Request, session: Transaction, first: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> Response:
    """The list of studies, `STUDIES_PER_PAGE` at a time."""
    # One more than fits tells whether there is a next page.
    found = study_progress.listed_studies(session, first=first, limit=STUDIES_PER_PAGE + 1)
    return render_page(
        request,
        "studies.html",
        studies=found[:STUDIES_PER_PAGE],
        first=first,
        size=STUDIES_PER_PAGE,
        more=len(found) > STUDIES_PER_PAGE,
    )


@router.get("/studies/{name}")
def study(name: Name, request: Request, session: Transaction, runtime: CurrentRuntime) -> Response:
    """The page of a study."""
    row = get_study(session, name)
    # Read before the data, so that the stream sends everything that happens after it.
    after = events.newest_cursor(session)
    panels = _panels(runtime, session, row)
    best = panels["summary"].best
    space = [
        (parameter, domain, isinstance(domain, Range), None if best is None else best.parameters.get(parameter))
        for parameter, domain in parsed_spec(row).space.items()
    ]
    return render_page(
        request,
        "study.html",
        **panels,
        after=str(after),
        space=space,
        dashboard_url=runtime.settings.dashboard_url,
        workers_wanted=parsed_spec(row).workers,
        marks=rule_marks(),
        starts_workers=runtime.worker_jobs is not None,
    )


@router.get("/studies/{name}/panels")
def panels(name: Name, request: Request, session: Transaction, runtime: CurrentRuntime) -> Response:
    """The panels of a study's page that change while it runs."""
    return render_page(request, "study_panels.html", **_panels(runtime, session, get_study(session, name)))


@router.get("/studies/{name}/heat-map")
def cells(name: Name, session: Transaction) -> JSONResponse:
    """All folds of all trials as JSON, see `heat_map`."""
    row = get_study(session, name)
    folds = study_progress.study_folds(session, row)
    return JSONResponse(
        heat_map(
            fold_map(session, row),
            [fold.name for fold in folds],
            [fold.clips for fold in folds],
            row.fold_order,
        )
    )


@router.get("/studies/{name}/parameters")
def parameters(name: Name, request: Request, session: Transaction) -> Response:
    """Importance of each parameter, and accuracy by its values."""
    row = get_study(session, name)
    spec = parsed_spec(row)
    values = parameter_panels(row.id, spec, fold_map(session, row))
    objective = OBJECTIVE_NAMES[spec.objective]
    return render_page(request, "parameters.html", study=row, objective=objective, **values)


@router.get("/studies/{name}/trials")
def trials(
    name: Name,
    request: Request,
    session: Transaction,
    order: Annotated[str, Query(pattern="^(number|value)$")] = "number",
    first: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Response:
    """All trials as a table, `TRIALS_PER_PAGE` at a time."""
    row = get_study(session, name)
    all_trials = fold_map(session, row)
    if order == "value":
        all_trials = _best_first(all_trials)
    return render_page(
        request,
        "trials.html",
        study=row,
        objective=OBJECTIVE_NAMES[parsed_spec(row).objective],
        order=order,
        first=first,
        size=TRIALS_PER_PAGE,
        total=len(all_trials),
        trials=all_trials[first : first + TRIALS_PER_PAGE],
    )


router.get("/studies/{name}/events", response_class=EventSourceResponse)(study_events)


def _panels(runtime: Runtime, session: Session, row: StudyRow) -> dict[str, Any]:
    spec, state = parsed_spec(row), StudyState(row.state)
    mapped = fold_map(session, row)
    counted_at = study_progress.last_folds(session, row, RECENT_FOLDS)
    summary = study_view.summarize(spec, state, row.fold_count, mapped, counted_at)
    jobs = runtime.worker_jobs
    pods: dict[str, PodView] = {} if jobs is None else {pod.name: pod for pod in jobs.pods()}
    return {
        "study": row,
        "state": state,
        "stalled": jobs.stalled(row.name) if jobs is not None and state == StudyState.RUNNING else None,
        "troubles": study_troubles(session, row),
        "protocol": protocol_words(spec.protocol, row.fold_count),
        "rules": [rule.describe() for rule in spec.pruning],
        "sampler": spec.sampler.kind,
        "objective": OBJECTIVE_NAMES[spec.objective],
        "epochs": epoch_choice_words(spec.counted_epoch),
        "chance": 1 / len(row.classes),
        "summary": summary,
        "progress": study_view.progress_bar(summary),
        "convergence": study_view.convergence(spec, mapped, 1 / len(row.classes)),
        "by_median": study_view.compares_with_median(spec),
        "trials_created": len(mapped),
        "running": running_cells(mapped),
        "latest": mapped[: -TABLE_ROWS - 1 : -1],
        "best": [trial for trial in _best_first(mapped)[:TABLE_ROWS] if trial.value is not None],
        "workers": study_progress.study_workers(session, row, seen_within=WORKER_SILENCE_SECONDS),
        "pods": pods,
    }


def _best_first(mapped: list[MappedTrial]) -> list[MappedTrial]:
    def rank(trial: MappedTrial) -> tuple[bool, float, int]:
        complete = trial.state == TrialState.COMPLETE
        return not complete, -(trial.value or 0.0), trial.number

    return sorted(mapped, key=rank)
