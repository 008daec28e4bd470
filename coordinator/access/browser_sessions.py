"""Browser sessions: after sign-in, a browser keeps a session instead of the token.

A session has the current scope of its token and ends when the token is revoked. Each function runs inside its
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
"""Browsers accept a cookie with this prefix only over HTTPS and only from this host."""

SESSION_SECONDS = 12 * 3600.0
"""A working day; after that, the user signs in again."""


def start(session: Session, token: str) -> str:
    """Start a session for a token that the caller has checked, and return the session's secret."""
    secret = secrets.token_urlsafe(32)
    lifetime = seconds(SESSION_SECONDS)
    session.execute(delete(SessionRow).where(SessionRow.expires_at < func.clock_timestamp()))
    session.add(
        SessionRow(
            sha256=_sha256(secret),
            token_sha256=_sha256(token),
            expires_at=func.clock_timestamp() + lifetime,
        )
    )
    return secret


def token_sha256(session: Session, secret: str) -> str | None:
    """SHA-256 in hex of the session's token; None if the session is unknown, expired or ended."""
    return session.scalar(
        select(SessionRow.token_sha256).where(
            SessionRow.sha256 == _sha256(secret), SessionRow.expires_at > func.clock_timestamp()
        )
    )


def end(session: Session, secret: str) -> None:
    """End a session; ending it again changes nothing."""
    session.execute(delete(SessionRow).where(SessionRow.sha256 == _sha256(secret)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
