"""Authentication: finds the caller of a request by its token, and limits the caller's request rate.

A token comes from the settings, from the database, or from a Kubernetes service account; a browser sends a
session that stands for a token. A caller is cached for `token_seconds`, so that most requests need no query.
Another thread writes when a token was last used.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hmac import compare_digest

import structlog
from cachetools import LRUCache, TTLCache
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from coordinator.access import browser_sessions, tokens
from coordinator.access.causes import cause_in_words, log_cause
from coordinator.access.rate_limit import RateLimit
from coordinator.settings import CoordinatorSettings
from k8s.token_review import TokenReviewer
from services.contracts import TokenScope
from services.errors import TokenRefused, TooManyRequests, Unavailable

log = structlog.get_logger()

REVIEW_SECONDS = 60.0
"""Seconds that a review of a service account's token stays valid; each review asks the cluster's API server."""

MAX_CACHED_TOKENS = 10_000
"""Maximum number of tokens whose callers are cached; the least recently used one is dropped first."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The sender of a request."""

    name: str
    scope: TokenScope
    token_id: str | None = None
    """Id in the database; None for the tokens of the settings and for service accounts."""

    pod_uid: str | None = None


class Callers:
    """Finds callers by their tokens. Not thread-safe: for one event loop."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        settings: CoordinatorSettings,
        reviewer: TokenReviewer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds and never goes backwards; `reviewer` checks tokens of service accounts."""
        self._sessions = sessions
        self._settings = settings
        self._reviewer = reviewer
        self._clock = clock
        configured = (
            (TokenScope.ADMIN, settings.admin_token),
            (TokenScope.WORKER, settings.worker_token),
            (TokenScope.READ, settings.read_token),
        )
        self._configured = [
            (_sha256(token), Caller(name=f"configured {scope.value} token", scope=scope))
            for scope, token in configured
            if token is not None
        ]
        self._found: LRUCache[bytes, tuple[Caller, float]] = LRUCache(MAX_CACHED_TOKENS)
        self._requests = RateLimit(
            rate=settings.requests_per_second, burst=2 * settings.requests_per_second, clock=clock
        )
        self._guesses = RateLimit(
            rate=settings.guesses_per_minute / 60, burst=settings.guesses_per_minute, clock=clock
        )
        self._recently_used: TTLCache[str, None] = TTLCache(
            MAX_CACHED_TOKENS, tokens.LAST_USE_INTERVAL_SECONDS, timer=clock
        )
        self._use_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-use")

    async def identify(self, authorization: str, address: str) -> Caller:
        """Find the caller of a request with this `Authorization` header from this client address.

        Raises:
            TokenRefused: there is no token, or it is unknown or revoked.
            TooManyRequests: the caller sends too many requests, or the address too many unknown tokens.
            Unavailable: the database, or Kubernetes for a service account's token, does not answer.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise TokenRefused("the request has no token; send the header `Authorization: Bearer TOKEN`")
        digest = _sha256(token)
        caller = self._configured_caller(digest) or self._remembered(digest)
        if caller is None:
            caller = await self._look_up(token, digest, address, self._find)
        return self._admit(caller, address)

    async def identify_session(self, secret: str, address: str) -> Caller:
        """Find the caller whose token a browser session stands for.

        Raises:
            TokenRefused: the session is unknown, expired or ended, or its token was revoked.
            TooManyRequests, Unavailable: as `identify`.
        """
        digest = _session_digest(secret)
        caller = self._remembered(digest)
        if caller is None:
            caller = await self._look_up(secret, digest, address, self._find_by_session)
        return self._admit(caller, address)

    def forget(self, secret: str) -> None:
        """Remove a session from the cache; other replicas notice its end within `token_seconds`."""
        self._found.pop(_session_digest(secret), None)

    def _admit(self, caller: Caller, address: str) -> Caller:
        if caller.token_id is not None:
            self._record_use(caller.token_id)
        # Workers may share a token; with a limit per address, one faulty worker does not block the others.
        wait = self._requests.take((caller, address))
        if wait:
            raise TooManyRequests(
                f"this token sends more than {self._settings.requests_per_second:g} requests per second from "
                f"{address}; send fewer requests, or start the coordinator with a higher --requests-per-second",
                retry_after=wait,
            )
        return caller

    def close(self) -> None:
        """Finish pending writes of last uses."""
        self._use_writer.shutdown()

    def _configured_caller(self, digest: bytes) -> Caller | None:
        matching = [caller for known, caller in self._configured if compare_digest(known, digest)]
        return matching[0] if matching else None

    def _remembered(self, digest: bytes) -> Caller | None:
        caller, until = self._found.get(digest, (None, 0.0))
        return caller if self._clock() < until else None

    async def _look_up(
        self, secret: str, digest: bytes, address: str, find: Callable[[str], Caller | None]
    ) -> Caller:
        # A token that was good before is not held up by somebody who guesses from the same address.
        unknown = digest not in self._found
        wait = self._guesses.take(address) if unknown else 0.0
        if wait:
            raise TooManyRequests(
                f"{address} sent too many unknown tokens; correct the token, then retry",
                retry_after=wait,
            )
        # A revocation after this moment is not in what is found.
        asked = self._clock()
        try:
            caller = await run_in_threadpool(find, secret)
        except SQLAlchemyError as error:
            log_cause(error)
            raise Unavailable(f"{cause_in_words(error)}; retry later") from error
        if caller is None:
            self._found.pop(digest, None)
            raise TokenRefused("the token is unknown or was revoked; use another one")
        if unknown:
            self._guesses.put_back(address)
        # Only service accounts are workers without a token of the database.
        account = caller.token_id is None and caller.scope == TokenScope.WORKER
        seconds = REVIEW_SECONDS if account else self._settings.token_seconds
        self._found[digest] = (caller, asked + seconds)
        return caller

    def _find(self, token: str) -> Caller | None:
        with self._sessions() as session:
            known = tokens.find(session, token)
        if known is not None:
            return Caller(name=known.name, scope=known.scope, token_id=known.id)
        # Tokens of Kubernetes are JSON web tokens: three parts between dots. No other token is sent to it.
        if self._reviewer is None or token.count(".") != 2:
            return None
        account = self._reviewer.review(token)
        if account is None:
            return None
        return Caller(name=account.name, scope=TokenScope.WORKER, pod_uid=account.pod_uid)

    def _find_by_session(self, secret: str) -> Caller | None:
        with self._sessions() as session:
            sha256 = browser_sessions.token_sha256(session, secret)
            if sha256 is None:
                return None
            configured = self._configured_caller(bytes.fromhex(sha256))
            known = None if configured is not None else tokens.find_by_sha256(session, sha256)
        if known is not None:
            return Caller(name=known.name, scope=known.scope, token_id=known.id)
        return configured

    def _record_use(self, token_id: str) -> None:
        if token_id not in self._recently_used:
            self._recently_used[token_id] = None
            self._use_writer.submit(self._write_use, token_id)

    def _write_use(self, token_id: str) -> None:
        try:
            with self._sessions.begin() as session:
                tokens.record_use(session, token_id)
        except SQLAlchemyError as error:
            # The last use is only information for people; the next use writes it again.
            log.warning("token_use_not_recorded", token=token_id, error=str(error).splitlines()[0])


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _session_digest(secret: str) -> bytes:
    # The prefix separates sessions from tokens in the cache: neither is accepted in place of the other.
    return _sha256(f"session {secret}")
