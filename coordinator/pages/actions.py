"""Actions on a study's page: forms that do the same as the REST calls."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from fastapi.responses import RedirectResponse

from coordinator.access.authorization import require
from coordinator.pages.forms import MAX_FORM_BYTES, SessionFields, whole_number
from coordinator.routes import studies as rest
from coordinator.routes.transactions import Transaction, WakeLeader
from coordinator.runtime import CurrentRuntime
from coordinator.store.studies import get_study, parsed_spec
from coordinator.studies import life
from services.contracts import WORKERS_ALLOWED, StudyName, TokenScope
from services.errors import InvalidInput
from services.search_space import ParameterValue, Range, SearchSpace

router = APIRouter(
    prefix="/studies/{name}", include_in_schema=False, dependencies=[Depends(require(TokenScope.WRITE))]
)

Name = Annotated[StudyName, Path()]


@router.post("/start", max_body_size=MAX_FORM_BYTES)
def start(
    name: Name, _fields: SessionFields, session: Transaction, wake_leader: WakeLeader
) -> RedirectResponse:
    """Start a draft study."""
    rest.start(name, session, wake_leader)
    return _back_to(name)


@router.post("/pause", max_body_size=MAX_FORM_BYTES)
def pause(name: Name, fields: SessionFields, runtime: CurrentRuntime) -> RedirectResponse:
    """Pause a study; with the field `now`, its running folds are abandoned."""
    rest.pause(name, runtime, now="now" in fields)
    return _back_to(name)


@router.post("/resume", max_body_size=MAX_FORM_BYTES)
def resume(name: Name, _fields: SessionFields, runtime: CurrentRuntime) -> RedirectResponse:
    """Resume a paused study."""
    rest.resume(name, runtime)
    return _back_to(name)


@router.post("/stop", max_body_size=MAX_FORM_BYTES)
def stop(name: Name, _fields: SessionFields, session: Transaction, wake_leader: WakeLeader) -> RedirectResponse:
    """Stop a study permanently."""
    rest.stop(name, session, wake_leader)
    return _back_to(name)


@router.post("/workers", max_body_size=MAX_FORM_BYTES)
def workers(
    name: Name, fields: SessionFields, session: Transaction, wake_leader: WakeLeader
) -> RedirectResponse:
    """Set the study's number of worker pods."""
    life.set_workers(session, name, whole_number(fields, "workers", low=0, high=WORKERS_ALLOWED))
    wake_leader()
    return _back_to(name)


@router.post("/enqueue", max_body_size=MAX_FORM_BYTES)
def enqueue(
    name: Name, fields: SessionFields, session: Transaction, wake_leader: WakeLeader
) -> RedirectResponse:
    """Enqueue the form's configuration."""
    space = parsed_spec(get_study(session, name)).space
    life.enqueue(session, name, [_configuration(space, fields)])
    wake_leader()
    return _back_to(name)


def _configuration(space: SearchSpace, fields: dict[str, str]) -> dict[str, ParameterValue]:
    """Parse the form: a parameter with options sends the option's index, one with a range sends the number."""
    return {
        parameter: _number(fields, parameter)
        if isinstance(domain, Range)
        else domain[whole_number(fields, parameter, low=0, high=len(domain) - 1)]
        for parameter, domain in space.items()
    }


def _number(fields: dict[str, str], parameter: str) -> float:
    text = fields.get(parameter, "")
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"{parameter} = {text!r}; give a number", field=parameter) from error


def _back_to(name: str) -> RedirectResponse:
    return RedirectResponse(f"/studies/{name}", HTTPStatus.SEE_OTHER)
