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
    """What a token may do: admin includes write and worker, write includes read."""

    WORKER = "worker"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    @property
    def includes(self) -> frozenset[TokenScope]:
        """The scopes whose routes a token of this scope may call, its own included."""
        match self:
            case TokenScope.ADMIN:
                return frozenset(TokenScope)
            case TokenScope.WRITE:
                return frozenset({TokenScope.WRITE, TokenScope.READ})
            case _:
                return frozenset({self})


TokenId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class TokenSpec(Contract):
    """`POST /tokens`: the token to create."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "nightly report", "scope": "read"}]})

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$",
        description="who or what uses it; unique among the tokens that are not revoked",
    )
    scope: TokenScope


class TokenView(Contract):
    """A token without its secret, which cannot be read again."""

    id: TokenId
    name: str
    scope: TokenScope
    created_at: AwareDatetime
    last_used: AwareDatetime | None = Field(description="last use, to the minute; null before the first use")
    revoked_at: AwareDatetime | None = Field(description="null while the token is valid")


class NewToken(TokenView):
    """A token that was just created, with the secret that its holder sends. The secret is shown only here."""

    token: str


class Problem(Contract):
    """An error as JSON (RFC 9457); `detail` says what happened and what to do."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
