"""Renders templates, and problems as pages."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request

from coordinator.access.cookie import form_token
from coordinator.pages import formats
from services.contracts import Problem, TokenScope

_templates = Environment(
    loader=PackageLoader("coordinator.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    percent=formats.percent,
    duration=formats.duration,
    ago=formats.ago,
    value=formats.value,
    title=formats.title_of,
)


def render_page(request: Request, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """Render a template with `values` and the signed-in caller."""
    caller = getattr(request.state, "caller", None)
    session = getattr(request.state, "session", None)
    text = _templates.get_template(template).render(
        caller=caller,
        may_write=caller is not None and TokenScope.WRITE in caller.scope.includes,
        form_token=None if session is None else form_token(session),
        **values,
    )
    return HTMLResponse(text, status_code=status)


def render_problem(request: Request, problem: Problem) -> HTMLResponse:
    """Render a problem as a page."""
    return render_page(request, "problem.html", status=problem.status, problem=problem)
