"""Sessions: what a browser holds in place of the token that somebody signed in with.

A session is worth what its token is worth at the moment: it ends with it. Each function runs inside its
caller's transaction and commits nothing.
"""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import seconds
from coordinator.store.tables import SessionRow

PLAIN_COOKIE = "foldwise-session"
SECURE_COOKIE = "__Host-foldwise-session"
"""A browser takes this name only over HTTPS, from this very host."""

SESSION_SECONDS = 12 * 3600.0
"""A working day; then one signs in again."""


def start(session: Session, token: str) -> str:
    """Begin a session that stands for a token, which the caller has checked; its secret."""
    secret = secrets.token_urlsafe(32)
    lasts = seconds(SESSION_SECONDS)
    session.execute(delete(SessionRow).where(SessionRow.expires_at < func.clock_timestamp()))
    session.add(
        SessionRow(
            sha256=_sha256(secret), token_sha256=_sha256(token), expires_at=func.clock_timestamp() + lasts
        )
    )
    return secret


def token_sha256(session: Session, secret: str) -> str | None:
    """SHA-256 in hex of the token that a session stands for; None when it is unknown, over or ended."""
    return session.scalar(
        select(SessionRow.token_sha256).where(
            SessionRow.sha256 == _sha256(secret), SessionRow.expires_at > func.clock_timestamp()
        )
    )


def end(session: Session, secret: str) -> None:
    """Let a session count no more; to end it again changes nothing."""
    session.execute(delete(SessionRow).where(SessionRow.sha256 == _sha256(secret)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
