"""What a form sends, and whether it may: it must have been made for the session that sends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from coordinator.access.cookie import FORM_TOKEN, comes_from_elsewhere, is_form_token
from services.errors import InvalidInput, ScopeMissing

FORM_BYTES_ALLOWED = 64 * 2**10
FIELDS_ALLOWED = 100


async def _sent_fields(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        InvalidInput: the body is no form.
        ScopeMissing: a page of another site sent it.
    """
    if comes_from_elsewhere(request.headers):
        raise ScopeMissing("this was sent by a page of another site, and nothing was done; use the form here")
    try:
        body = (await request.body()).decode("ascii")
        return dict(
            parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body), max_num_fields=FIELDS_ALLOWED)
        )
    except ValueError as error:
        raise InvalidInput("the body is no form; send one from the page") from error


async def _own_fields(
    request: Request, fields: Annotated[dict[str, str], Depends(_sent_fields)]
) -> dict[str, str]:
    """The fields of a form that was made for this session; a caller with a token of its own needs no form.

    Raises:
        ScopeMissing: it was made for another session, or by somebody else.
    """
    given = fields.pop(FORM_TOKEN, "")
    session: str | None = getattr(request.state, "session", None)
    if session is not None and not is_form_token(given, session):
        raise ScopeMissing(
            "the form is not of this session, and nothing was done; load the page again and repeat"
        )
    return fields


SentFields = Annotated[dict[str, str], Depends(_sent_fields)]
OwnFields = Annotated[dict[str, str], Depends(_own_fields)]


def whole_number(fields: Mapping[str, str], name: str, *, low: int, high: int) -> int:
    """A field that holds a whole number.

    Raises:
        InvalidInput: it does not.
    """
    text = fields.get(name, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not low <= number <= high:
        raise InvalidInput(f"{name} = {text!r}; give a whole number from {low} to {high}", field=name)
    return number
