"""Who a request is from: its token, looked up once and remembered for a few seconds, and how often it may ask.

A token is one of those given at the start, one of the database, or a service account's that Kubernetes
vouches for; a browser shows a session that stands for one. Nobody waits for the database on the way: what is
known is asked again only after `token_seconds`, and when a token was used is written down by another thread.
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

from coordinator.access import sessions, tokens
from coordinator.access.rate_limit import RateLimit
from coordinator.settings import CoordinatorSettings
from k8s.token_review import TokenReviewer
from services.contracts import TokenScope
from services.errors import TokenRefused, TooManyRequests, Unavailable

log = structlog.get_logger()

REVIEW_SECONDS = 60.0
"""A service account's token is reviewed again after so long; one review asks the whole cluster's API server."""

REMEMBERED = 10_000
"""So many tokens are remembered; beyond that those longest not looked up are forgotten."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whom a request is from."""

    name: str
    scope: TokenScope
    token_id: str | None = None
    """Of the database; None for the tokens given at the start and for service accounts."""

    pod_uid: str | None = None


class Callers:
    """Finds callers by their tokens. One event loop uses it."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        settings: CoordinatorSettings,
        reviewer: TokenReviewer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells seconds and never goes back; `reviewer` is asked about tokens that are not ours."""
        self._sessions = sessions
        self._settings = settings
        self._reviewer = reviewer
        self._clock = clock
        given = (
            (TokenScope.ADMIN, settings.admin_token),
            (TokenScope.WORKER, settings.worker_token),
            (TokenScope.READ, settings.read_token),
        )
        self._given = [
            (_sha256(token), Caller(name=f"the {scope.value} token given at the start", scope=scope))
            for scope, token in given
            if token is not None
        ]
        self._found: LRUCache[bytes, tuple[Caller, float]] = LRUCache(REMEMBERED)
        self._requests = RateLimit(
            rate=settings.requests_per_second, burst=2 * settings.requests_per_second, clock=clock
        )
        self._guesses = RateLimit(
            rate=settings.guesses_per_minute / 60, burst=settings.guesses_per_minute, clock=clock
        )
        self._use_noted: TTLCache[str, None] = TTLCache(REMEMBERED, tokens.USE_NOTED_SECONDS, timer=clock)
        self._notes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-use")

    async def identify(self, authorization: str, address: str) -> Caller:
        """The caller of a request with this `Authorization` header from this client address.

        Raises:
            TokenRefused: there is no token, or it is unknown or revoked.
            TooManyRequests: this caller asks too often, or too many unknown tokens came from the address.
            Unavailable: whoever knows about the token does not answer now.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise TokenRefused("no token was given; send the header `Authorization: Bearer TOKEN`")
        digest = _sha256(token)
        caller = self._given_at_start(digest) or self._remembered(digest)
        if caller is None:
            caller = await self._look_up(token, digest, address, self._find)
        return self._admitted(caller, address)

    async def identify_session(self, secret: str, address: str) -> Caller:
        """The caller whose token a session stands for.

        Raises:
            TokenRefused: the session is unknown, over or ended, or its token counts no more.
            TooManyRequests, Unavailable: as `identify`.
        """
        digest = _of_session(secret)
        caller = self._remembered(digest)
        if caller is None:
            caller = await self._look_up(secret, digest, address, self._find_by_session)
        return self._admitted(caller, address)

    def forget(self, secret: str) -> None:
        """Ask about a session again the next time it is shown; others notice within `token_seconds`."""
        self._found.pop(_of_session(secret), None)

    def _admitted(self, caller: Caller, address: str) -> Caller:
        if caller.token_id is not None:
            self._note_use(caller.token_id)
        # Workers may share a token; one that runs wild should not stop the others.
        wait = self._requests.take((caller, address))
        if wait:
            raise TooManyRequests(
                f"this token is used more than {self._settings.requests_per_second:g} times a second from "
                f"{address}; send fewer requests, or start the coordinator with a higher --requests-per-second",
                retry_after=wait,
            )
        return caller

    def close(self) -> None:
        """Finish the notes under way."""
        self._notes.shutdown()

    def _given_at_start(self, digest: bytes) -> Caller | None:
        matching = [caller for known, caller in self._given if compare_digest(known, digest)]
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
                f"too many unknown tokens came from {address}; correct the token, then try again",
                retry_after=wait,
            )
        # A revocation after this moment is not in what is found.
        asked = self._clock()
        try:
            caller = await run_in_threadpool(find, secret)
        except SQLAlchemyError as error:
            raise Unavailable("the database does not answer; try again") from error
        if caller is None:
            self._found.pop(digest, None)
            raise TokenRefused("the token was refused: it is unknown or was revoked")
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
        # Kubernetes' tokens are JSON web tokens: three parts between dots. Nothing else is sent to it.
        if self._reviewer is None or token.count(".") != 2:
            return None
        account = self._reviewer.review(token)
        if account is None:
            return None
        return Caller(name=account.name, scope=TokenScope.WORKER, pod_uid=account.pod_uid)

    def _find_by_session(self, secret: str) -> Caller | None:
        with self._sessions() as session:
            sha256 = sessions.token_sha256(session, secret)
            if sha256 is None:
                return None
            given = self._given_at_start(bytes.fromhex(sha256))
            known = None if given is not None else tokens.find_by_sha256(session, sha256)
        if known is not None:
            return Caller(name=known.name, scope=known.scope, token_id=known.id)
        return given

    def _note_use(self, token_id: str) -> None:
        if token_id not in self._use_noted:
            self._use_noted[token_id] = None
            self._notes.submit(self._write_use, token_id)

    def _write_use(self, token_id: str) -> None:
        try:
            with self._sessions.begin() as session:
                tokens.note_use(session, token_id)
        except SQLAlchemyError as error:
            # Only a note for people; the next use is noted again.
            log.warning("token_use_not_noted", token=token_id, error=str(error).splitlines()[0])


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _of_session(secret: str) -> bytes:
    # Remembered under another name than a token: neither may be shown in the place of the other.
    return _sha256(f"session {secret}")
