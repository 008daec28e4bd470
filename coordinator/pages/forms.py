"""Reads forms, and accepts them only from this site and from the session that they were rendered for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from coordinator.access.cookie import FORM_TOKEN, form_token_matches, is_cross_site
from services.errors import InvalidInput, ScopeMissing

MAX_FORM_BYTES = 64 * 2**10
MAX_FIELDS = 100


async def _form_fields(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        InvalidInput: the body is not a form.
        ScopeMissing: a page of another site sent it.
    """
    if is_cross_site(request.headers):
        raise ScopeMissing(
            "a page of another site sent this form, so nothing was done; use the form on this page"
        )
    try:
        body = (await request.body()).decode("ascii")
        return dict(
            parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MAX_FIELDS)
        )
    except ValueError as error:
        raise InvalidInput("the body is not a form; use the form on the page") from error


async def _session_fields(
    request: Request, fields: Annotated[dict[str, str], Depends(_form_fields)]
) -> dict[str, str]:
    """The fields of a form that belongs to the request's session; a request with a token needs no form.

    Raises:
        ScopeMissing: the form belongs to another session, or to none.
    """
    given = fields.pop(FORM_TOKEN, "")
    session: str | None = getattr(request.state, "session", None)
    if session is not None and not form_token_matches(given, session):
        raise ScopeMissing(
            "the form belongs to another session, so nothing was done; reload the page and submit again"
        )
    return fields


FormFields = Annotated[dict[str, str], Depends(_form_fields)]
SessionFields = Annotated[dict[str, str], Depends(_session_fields)]


def whole_number(fields: Mapping[str, str], name: str, *, low: int, high: int) -> int:
    """The value of a field that holds a whole number from `low` to `high`.

    Raises:
        InvalidInput: the field is missing, or holds anything else.
    """
    text = fields.get(name, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not low <= number <= high:
        raise InvalidInput(f"{name} = {text!r}; give a whole number from {low} to {high}", field=name)
    return number
