"""The session's cookie, and what keeps other sites from acting with it.

The cookie is sent to pages only from pages of this site (SameSite=Strict) and no script can read it (HttpOnly).
Each form carries a word that follows from the session's secret, which no other site can know; and a browser
that says where a request comes from is believed.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from coordinator.access.sessions import PLAIN_COOKIE, SECURE_COOKIE, SESSION_SECONDS

FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field


def session_of(headers: Headers) -> str | None:
    """The secret of the session that a request shows."""
    cookies = cookie_parser(headers.get("cookie", ""))
    return cookies.get(SECURE_COOKIE) or cookies.get(PLAIN_COOKIE)


def set_session(request: Request, response: Response, secret: str) -> None:
    """Let the browser show this session from now on."""
    secure = _over_https(request)
    response.set_cookie(
        SECURE_COOKIE if secure else PLAIN_COOKIE,
        secret,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=secure,
    )


def clear_session(response: Response) -> None:
    """Let the browser forget its session."""
    response.delete_cookie(PLAIN_COOKIE, httponly=True, samesite="strict")
    response.delete_cookie(SECURE_COOKIE, httponly=True, samesite="strict", secure=True)


def form_token(secret: str) -> str:
    """The word that forms of this session carry; the secret does not follow from it."""
    return hmac.digest(secret.encode(), b"form", hashlib.sha256).hex()


def is_form_token(given: str, secret: str) -> bool:
    """Whether a form was made for this session."""
    return hmac.compare_digest(given.encode(), form_token(secret).encode())


def comes_from_elsewhere(headers: Headers) -> bool:
    """Whether the browser says that a page of another site sent this."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in {"same-origin", "none"}
    # Browsers say it only to hosts they trust; all name the origin of a form.
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _over_https(request: Request) -> bool:
    # The proxy need not be one that is trusted: its word can only make the cookie stricter.
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
