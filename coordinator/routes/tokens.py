"""Create, list and revoke tokens; only for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from coordinator.access import tokens
from coordinator.access.authorization import require
from coordinator.access.problems import problems
from coordinator.routes.transactions import Transaction
from services.contracts import NewToken, TokenId, TokenScope, TokenSpec, TokenView

router = APIRouter(
    prefix="/api/v1/tokens",
    tags=["tokens"],
    dependencies=[Depends(require(TokenScope.ADMIN))],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)


@router.post("", status_code=201)
def create(wanted: TokenSpec, session: Transaction, response: Response) -> NewToken:
    """Create a token; only this response contains its secret."""
    response.headers["Cache-Control"] = "no-store"
    return tokens.create(session, wanted)


@router.get("")
def list_all(session: Transaction) -> list[TokenView]:
    """List all tokens, oldest first, including revoked ones."""
    return tokens.list_all(session)


@router.delete("/{token_id}", status_code=204)
def revoke(token_id: Annotated[TokenId, Path()], session: Transaction) -> None:
    """Revoke a token; every coordinator rejects it within five seconds."""
    tokens.revoke(session, token_id)
