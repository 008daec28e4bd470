"""Tokens in the database: create, list, revoke, and find the token that a request sends.

Each function runs inside its caller's transaction and commits nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from hmac import compare_digest

import structlog
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from coordinator.store.conditions import seconds
from coordinator.store.tables import TokenRow
from services.contracts import NewToken, TokenScope, TokenSpec, TokenView
from services.errors import Conflict, NotFound

log = structlog.get_logger()

LAST_USE_INTERVAL_SECONDS = 60.0
"""Minimum seconds between two writes of a token's last use."""

_TOKEN = re.compile(r"fw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
"""Prefix, id, 32 random bytes: the id finds the row, and the prefix helps to search for leaked tokens."""


def create(session: Session, wanted: TokenSpec) -> NewToken:
    """Create a token. Only the returned object contains its secret.

    Raises:
        Conflict: a token that is not revoked has this name.
    """
    same = select(TokenRow.id).where(TokenRow.name == wanted.name, TokenRow.revoked_at.is_(None))
    if (existing_id := session.scalar(same)) is not None:
        raise Conflict(
            f"a token {wanted.name!r} already exists (id {existing_id}); revoke it or choose another name",
            field="name",
        )
    token_id = secrets.token_hex(6)
    token = f"fw_{token_id}_{secrets.token_urlsafe(32)}"
    row = TokenRow(id=token_id, name=wanted.name, scope=wanted.scope, sha256=_sha256(token))
    session.add(row)
    session.flush()
    session.refresh(row)
    log.info("token_created", id=token_id, name=wanted.name, scope=wanted.scope.value)
    return NewToken(**dict(_view(row)), token=token)


def list_all(session: Session) -> list[TokenView]:
    """All tokens, oldest first, including revoked ones."""
    rows = session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))
    return [_view(row) for row in rows]


def revoke(session: Session, token_id: str) -> None:
    """Revoke a token; revoking it again changes nothing.

    Raises:
        NotFound: there is no such token.
    """
    row = session.get(TokenRow, token_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no token {token_id}; `foldwise token list` lists all", field="token_id")
    if row.revoked_at is None:
        row.revoked_at = session.scalar(select(func.clock_timestamp()))
        log.info("token_revoked", id=token_id, name=row.name)


def find(session: Session, token: str) -> TokenView | None:
    """The stored token, or None if it is unknown or revoked."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    # The lookup uses the id, which is no secret, so its duration reveals nothing about the secret part.
    row = session.get(TokenRow, match.group(1))
    if row is None or row.revoked_at is not None or not compare_digest(row.sha256, _sha256(token)):
        return None
    return _view(row)


def find_by_sha256(session: Session, sha256: str) -> TokenView | None:
    """The token with this hash, as stored at sign-in; None if it was revoked."""
    row = session.scalar(select(TokenRow).where(TokenRow.sha256 == sha256, TokenRow.revoked_at.is_(None)))
    return None if row is None else _view(row)


def record_use(session: Session, token_id: str) -> None:
    """Set a token's last use to now, unless it was set within `LAST_USE_INTERVAL_SECONDS`."""
    since = func.clock_timestamp() - seconds(LAST_USE_INTERVAL_SECONDS)
    session.execute(
        update(TokenRow)
        .where(TokenRow.id == token_id, or_(TokenRow.last_used.is_(None), TokenRow.last_used < since))
        .values(last_used=func.clock_timestamp())
    )


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _view(row: TokenRow) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        scope=TokenScope(row.scope),
        created_at=row.created_at,
        last_used=row.last_used,
        revoked_at=row.revoked_at,
    )
