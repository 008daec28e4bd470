"""Tokens and their scopes, and errors as problem documents (RFC 9457)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
)

from services.contracts.base import Contract


class TokenScope(StrEnum):
    """What a token is good for: admin includes write and worker, write includes read."""

    WORKER = "worker"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    @property
    def includes(self) -> frozenset[TokenScope]:
        """The scopes whose routes a token of this scope opens, its own among them."""
        match self:
            case TokenScope.ADMIN:
                return frozenset(TokenScope)
            case TokenScope.WRITE:
                return frozenset({TokenScope.WRITE, TokenScope.READ})
            case _:
                return frozenset({self})


TokenId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class TokenSpec(Contract):
    """`POST /tokens`: a token that is wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "nightly report", "scope": "read"}]})

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$",
        description="who or what it is for; no two tokens in use have the same",
    )
    scope: TokenScope


class TokenView(Contract):
    """A token for reading; nobody can read its secret again."""

    id: TokenId
    name: str
    scope: TokenScope
    created_at: AwareDatetime
    last_used: AwareDatetime | None = Field(description="to the minute; null before its first use")
    revoked_at: AwareDatetime | None = Field(description="null while it is good")


class NewToken(TokenView):
    """A token that was just made, with what its holder sends; this is the only time it is told."""

    token: str


class Problem(Contract):
    """An error as JSON (RFC 9457): what happened, which field, what to do next is in the detail."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
