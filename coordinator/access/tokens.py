"""Tokens in the database: made, listed, revoked, and found again by what their holder sends.

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

USE_NOTED_SECONDS = 60.0
"""The last use of a token is noted no more often."""

_WRITTEN = re.compile(r"fw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
"""Prefix, id, 32 random bytes: a token names its own row, and a leaked one is easily searched for."""


def create(session: Session, wanted: TokenSpec) -> NewToken:
    """Make a token. Its secret is in the answer and nowhere else.

    Raises:
        Conflict: a token that is not revoked has this name.
    """
    same = select(TokenRow.id).where(TokenRow.name == wanted.name, TokenRow.revoked_at.is_(None))
    if (there := session.scalar(same)) is not None:
        raise Conflict(
            f"a token {wanted.name!r} exists already, with the id {there}; revoke it or choose another name",
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
    """All tokens, oldest first, the revoked ones too."""
    rows = session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))
    return [_view(row) for row in rows]


def revoke(session: Session, token_id: str) -> None:
    """Let a token count no more; to revoke it again changes nothing.

    Raises:
        NotFound: there is no such token.
    """
    row = session.get(TokenRow, token_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no token {token_id}; `foldwise token list` shows all", field="token_id")
    if row.revoked_at is None:
        row.revoked_at = session.scalar(select(func.clock_timestamp()))
        log.info("token_revoked", id=token_id, name=row.name)


def find(session: Session, token: str) -> TokenView | None:
    """The token as it is kept, or None when it is unknown or revoked."""
    written = _WRITTEN.fullmatch(token)
    if written is None:
        return None
    # By its id, which is no secret: how long the search takes tells nothing about the rest.
    row = session.get(TokenRow, written.group(1))
    if row is None or row.revoked_at is not None or not compare_digest(row.sha256, _sha256(token)):
        return None
    return _view(row)


def find_by_sha256(session: Session, sha256: str) -> TokenView | None:
    """The token of this hash, which was checked when it was shown; None when it was revoked since."""
    row = session.scalar(select(TokenRow).where(TokenRow.sha256 == sha256, TokenRow.revoked_at.is_(None)))
    return None if row is None else _view(row)


def note_use(session: Session, token_id: str) -> None:
    """Note that a token is used now, unless its last use was noted within `USE_NOTED_SECONDS`."""
    since = func.clock_timestamp() - seconds(USE_NOTED_SECONDS)
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
