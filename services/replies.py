"""Reading a coordinator's replies: a newer coordinator may send more than this program knows.

Requests are strict: an unknown field is a mistake of the sender, and is refused. In a reply the reader ignores
it, at every level, so that a coordinator can be upgraded before its clients and workers.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationInfo

Reply = TypeVar("Reply", bound=BaseModel)

_READING_A_REPLY = object()


def read_reply(contract: type[Reply], content: Any) -> Reply:
    """Validate the decoded JSON of a reply.

    Raises:
        ValidationError: a known field is missing or does not fit.
    """
    return contract.model_validate(content, extra="ignore", context=_READING_A_REPLY)


def read_reply_json(contract: type[Reply], content: bytes) -> Reply:
    """Validate the JSON of a reply.

    Raises:
        ValidationError: as for `read_reply`, or it is not JSON.
    """
    return contract.model_validate_json(content, extra="ignore", context=_READING_A_REPLY)


def is_reply(info: ValidationInfo) -> bool:
    """Whether a validator runs on a reply."""
    return info.context is _READING_A_REPLY


def extra_fields(info: ValidationInfo) -> Literal["ignore", "forbid"]:
    """What a validator that validates a part by itself does with its unknown fields."""
    return "ignore" if is_reply(info) else "forbid"
