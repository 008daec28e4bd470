"""What people do with a study from its page: the same as through REST, sent by a form."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from fastapi.responses import RedirectResponse

from coordinator.access.gate import require
from coordinator.pages.forms import FORM_BYTES_ALLOWED, OwnFields, whole_number
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


@router.post("/start", max_body_size=FORM_BYTES_ALLOWED)
def start(name: Name, _fields: OwnFields, session: Transaction, wake_leader: WakeLeader) -> RedirectResponse:
    """Start a draft."""
    rest.start(name, session, wake_leader)
    return _back_to(name)


@router.post("/pause", max_body_size=FORM_BYTES_ALLOWED)
def pause(name: Name, fields: OwnFields, runtime: CurrentRuntime) -> RedirectResponse:
    """Pause; with the field `now` folds under way are abandoned."""
    rest.pause(name, runtime, now="now" in fields)
    return _back_to(name)


@router.post("/resume", max_body_size=FORM_BYTES_ALLOWED)
def resume(name: Name, _fields: OwnFields, runtime: CurrentRuntime) -> RedirectResponse:
    """Go on with a paused study."""
    rest.resume(name, runtime)
    return _back_to(name)


@router.post("/stop", max_body_size=FORM_BYTES_ALLOWED)
def stop(name: Name, _fields: OwnFields, session: Transaction, wake_leader: WakeLeader) -> RedirectResponse:
    """End a study for good."""
    rest.stop(name, session, wake_leader)
    return _back_to(name)


@router.post("/workers", max_body_size=FORM_BYTES_ALLOWED)
def workers(name: Name, fields: OwnFields, session: Transaction, wake_leader: WakeLeader) -> RedirectResponse:
    """Set how many pods of workers the study has."""
    life.set_workers(session, name, whole_number(fields, "workers", low=0, high=WORKERS_ALLOWED))
    wake_leader()
    return _back_to(name)


@router.post("/enqueue", max_body_size=FORM_BYTES_ALLOWED)
def enqueue(name: Name, fields: OwnFields, session: Transaction, wake_leader: WakeLeader) -> RedirectResponse:
    """Run the configuration of the form next."""
    space = parsed_spec(get_study(session, name)).space
    life.enqueue(session, name, [_configuration(space, fields)])
    wake_leader()
    return _back_to(name)


def _configuration(space: SearchSpace, fields: dict[str, str]) -> dict[str, ParameterValue]:
    """Of a list of options the form sends the place, of a range the number."""
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
        raise InvalidInput(f"{parameter} = {text!r} is no number", field=parameter) from error


def _back_to(name: str) -> RedirectResponse:
    return RedirectResponse(f"/studies/{name}", HTTPStatus.SEE_OTHER)
