"""A door before a web application that has no login: it opens to whom a coordinator lets read.

That is whoever shows a token, or is signed in to the study page under the same host name: a browser sends its
cookie to every port of a host.
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

REMEMBERED_SECONDS = 5.0
"""A token that was let in is asked about again after so long: a revocation counts by then."""

REMEMBERED = 1000
"""So many tokens are remembered."""


class TokenDoor:
    """WSGI middleware. A browser's password prompt takes the token; programs send it as bearer token."""

    def __init__(
        self,
        application: WSGIApplication,
        coordinator_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells seconds and never goes back."""
        self._application = application
        self._http = httpx.Client(base_url=coordinator_url, trust_env=False, timeout=5.0)
        self._clock = clock
        self._known: dict[bytes, float] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        status = self._status(_shown(environ))
        if status == HTTPStatus.OK:
            # The application has no use for them.
            environ.pop("HTTP_AUTHORIZATION", None)
            environ.pop("HTTP_COOKIE", None)
            return self._application(environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append(
                ("WWW-Authenticate", 'Basic realm="foldwise: a token of the scope read as password"')
            )
        start_response(f"{status.value} {status.phrase}", headers)
        return [f"{_SENTENCES[status]}\n".encode()]

    def close(self) -> None:
        """End its connections to the coordinator."""
        self._http.close()

    def _status(self, shown: tuple[str, str] | None) -> HTTPStatus:
        if shown is None or not shown[1].isascii() or not shown[1].isprintable():
            return HTTPStatus.UNAUTHORIZED
        digest = hashlib.sha256(" ".join(shown).encode()).digest()
        if self._clock() < self._known.get(digest, 0.0):
            return HTTPStatus.OK
        asked = self._clock()
        try:
            answer = self._http.get("/session", headers=dict([shown]))
        except httpx.HTTPError:
            return HTTPStatus.SERVICE_UNAVAILABLE
        if answer.status_code == HTTPStatus.NO_CONTENT:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = asked + REMEMBERED_SECONDS
            return HTTPStatus.OK
        self._known.pop(digest, None)
        known = {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED}
        return HTTPStatus(answer.status_code) if answer.status_code in known else HTTPStatus.SERVICE_UNAVAILABLE


_SENTENCES = {
    HTTPStatus.UNAUTHORIZED: "give a token of the scope read as password; any name will do",
    HTTPStatus.FORBIDDEN: "this token may not read; use one of the scope read, write or admin",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests, or too many wrong tokens; try again in a minute",
    HTTPStatus.SERVICE_UNAVAILABLE: "the coordinator does not answer, so no token can be checked; try again",
}


def _shown(environ: WSGIEnvironment) -> tuple[str, str] | None:
    """The header that shows the coordinator who this is."""
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
