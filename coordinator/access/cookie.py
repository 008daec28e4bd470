"""The session cookie, and the protection against requests from other sites.

The browser sends the cookie only with requests from this site (SameSite=Strict), and no script can read it
(HttpOnly). Each form carries a token derived from the session's secret, which no other site can know. A request
that the browser marks as coming from another site is rejected.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from coordinator.access.browser_sessions import PLAIN_COOKIE, SECURE_COOKIE, SESSION_SECONDS

FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field


def session_secret(headers: Headers) -> str | None:
    """The session secret in a request's cookies."""
    cookies = cookie_parser(headers.get("cookie", ""))
    return cookies.get(SECURE_COOKIE) or cookies.get(PLAIN_COOKIE)


def set_session(request: Request, response: Response, secret: str) -> None:
    """Store a session in the browser."""
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
    """Delete the session from the browser."""
    response.delete_cookie(PLAIN_COOKIE, httponly=True, samesite="strict")
    response.delete_cookie(SECURE_COOKIE, httponly=True, samesite="strict", secure=True)


def form_token(secret: str) -> str:
    """The token in this session's forms; the session's secret cannot be derived from it."""
    return hmac.digest(secret.encode(), b"form", hashlib.sha256).hex()


def form_token_matches(given: str, secret: str) -> bool:
    """Whether a form token belongs to this session; compares in constant time."""
    return hmac.compare_digest(given.encode(), form_token(secret).encode())


def is_cross_site(headers: Headers) -> bool:
    """Whether the browser marks the request as sent by a page of another site."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in {"same-origin", "none"}
    # Browsers send Sec-Fetch-Site only to trusted hosts, but Origin with every form.
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _over_https(request: Request) -> bool:
    # The header needs no trusted proxy: a false value can only make the cookie stricter.
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
