"""Authentication for a web application that has no login: requests need a coordinator's permission to read.

A request shows a token, or the cookie of somebody who is signed in to the study page under the same host name:
a browser sends a cookie to every port of a host.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import httpx

from coordinator.access.browser_sessions import PLAIN_COOKIE, SECURE_COOKIE

TOKEN_CACHE_SECONDS = 5.0
"""Seconds for which the coordinator's permission is cached; a revocation takes effect after this time."""

TOKEN_CACHE_SIZE = 1000
"""Maximum number of cached tokens."""


class TokenAuthMiddleware:
    """WSGI middleware. In a browser, the token is the password; programs send it as bearer token."""

    def __init__(
        self,
        application: WSGIApplication,
        coordinator_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap an application.

        Args:
            application: receives the requests that are allowed, without their credentials.
            coordinator_url: URL of the coordinator that checks tokens.
            clock: a monotonic clock in seconds.
        """
        self._application = application
        self._http = httpx.Client(base_url=coordinator_url, trust_env=False, timeout=5.0)
        self._clock = clock
        self._valid_until: dict[bytes, float] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Handle a request as PEP 3333 specifies."""
        status = self._status(_credentials(environ))
        if status == HTTPStatus.OK:
            # The application does not need the credentials.
            environ.pop("HTTP_AUTHORIZATION", None)
            environ.pop("HTTP_COOKIE", None)
            return self._application(environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append(
                ("WWW-Authenticate", 'Basic realm="foldwise: password is a token of the scope read"')
            )
        start_response(f"{status.value} {status.phrase}", headers)
        return [f"{_MESSAGES[status]}\n".encode()]

    def close(self) -> None:
        """Close the connections to the coordinator."""
        self._http.close()

    def _status(self, credentials: tuple[str, str] | None) -> HTTPStatus:
        if credentials is None or not credentials[1].isascii() or not credentials[1].isprintable():
            return HTTPStatus.UNAUTHORIZED
        digest = hashlib.sha256(" ".join(credentials).encode()).digest()
        if self._clock() < self._valid_until.get(digest, 0.0):
            return HTTPStatus.OK
        checked_at = self._clock()
        try:
            answer = self._http.get("/session", headers=dict([credentials]))
        except httpx.HTTPError:
            return HTTPStatus.SERVICE_UNAVAILABLE
        if answer.status_code == HTTPStatus.NO_CONTENT:
            if len(self._valid_until) >= TOKEN_CACHE_SIZE:
                self._valid_until.clear()
            self._valid_until[digest] = checked_at + TOKEN_CACHE_SECONDS
            return HTTPStatus.OK
        self._valid_until.pop(digest, None)
        known = {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED}
        return HTTPStatus(answer.status_code) if answer.status_code in known else HTTPStatus.SERVICE_UNAVAILABLE


_MESSAGES = {
    HTTPStatus.UNAUTHORIZED: "enter any name, and a token of the scope read as password",
    HTTPStatus.FORBIDDEN: "this token has no permission to read; use one of the scope read, write or admin",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests, or too many unknown tokens; try again in a minute",
    HTTPStatus.SERVICE_UNAVAILABLE: "the coordinator does not answer, so it cannot check the token; try again",
}


def _credentials(environ: WSGIEnvironment) -> tuple[str, str] | None:
    """Name and value of the header that identifies the caller to the coordinator, or None."""
    if authorization := environ.get("HTTP_AUTHORIZATION", ""):
        token = _token(authorization)
        return None if token is None else ("Authorization", f"Bearer {token}")
    try:
        cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
    except CookieError:
        return None
    found = cookies.get(SECURE_COOKIE) or cookies.get(PLAIN_COOKIE)
    return None if found is None else ("Cookie", f"{found.key}={found.value}")


def _token(authorization: str) -> str | None:
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value or None
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None
