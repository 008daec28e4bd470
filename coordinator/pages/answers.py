"""Templates, and errors as pages."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request

from coordinator.access.cookie import form_token
from coordinator.pages import words
from services.contracts import Problem, TokenScope

_templates = Environment(
    loader=PackageLoader("coordinator.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    percent=words.percent, duration=words.duration, ago=words.ago, value=words.value, title=words.title_of
)


def page(request: Request, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """A template, with who is signed in, filled with `values`."""
    caller = getattr(request.state, "caller", None)
    session = getattr(request.state, "session", None)
    text = _templates.get_template(template).render(
        caller=caller,
        may_write=caller is not None and TokenScope.WRITE in caller.scope.includes,
        form_token=None if session is None else form_token(session),
        **values,
    )
    return HTMLResponse(text, status_code=status)


def problem_page(request: Request, problem: Problem) -> HTMLResponse:
    """An error for a person."""
    return page(request, "problem.html", status=problem.status, problem=problem)
