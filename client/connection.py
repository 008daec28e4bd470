"""HTTP to one coordinator with one token: retries with jitter, and errors as foldwise's classes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import IO, Any, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from services.contracts import Problem
from services.errors import (
    CacheMismatch,
    Conflict,
    FoldwiseError,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    PlanNotSound,
    ResultConflict,
    ScopeMissing,
    StudyOver,
    TokenRefused,
    TooManyRequests,
    Unavailable,
    WorkerDrained,
    WorkerTooNew,
    WorkerTooOld,
)
from services.replies import read_reply, read_reply_json

log = structlog.get_logger()

Answer = TypeVar("Answer", bound=BaseModel)

Token = str | Callable[[], str]
"""A token, or a function that reads it for every request: Kubernetes replaces a pod's token within the hour."""

LONG_POLL_SECONDS = 20.0
"""Maximum seconds that the coordinator keeps a claim open until there is a fold."""

CHUNK_BYTES = 2**16
"""Bytes of an uploaded file that are read and sent at a time."""

JSON_LINES = {"Content-Type": "application/jsonl"}

STREAM_TIMEOUT = httpx.Timeout(600, connect=5)
"""Seconds to wait for the next data of an upload or download, not for all of it."""

ANSWER_SECONDS_PER_MIB = 10.0
"""Seconds to wait for the answer to an upload for each of its MiB, if this is longer.

The coordinator checks and stores about 4 MiB of a study per second before it answers; here it may take 40 times
as long.
"""

_ERRORS: tuple[type[FoldwiseError], ...] = (
    CacheMismatch,
    Conflict,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    PlanNotSound,
    ResultConflict,
    ScopeMissing,
    StudyOver,
    TokenRefused,
    TooManyRequests,
    Unavailable,
    WorkerDrained,
    WorkerTooNew,
    WorkerTooOld,
)

_RETRIED_STATUSES = {429, 500, 502, 503, 504}

_MAX_SERVER_ERRORS = 5
"""Answers with status 500 to one call after which it is not retried again."""


class Connection:
    """One coordinator and one token: JSON in, JSON out, errors as foldwise's classes. Threads can share it."""

    def __init__(
        self, url: str, token: Token, *, give_up_after: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Open no connection yet.

        Args:
            url: address of the coordinator, without `/api`.
            token: sent with every request.
            give_up_after: seconds to retry a call while the coordinator does not answer.
            pause: waits a number of seconds between two attempts; an exception from it ends the call.

        Raises:
            InvalidInput: the URL is not an address.
            TokenRefused: the token has characters that cannot be sent.
        """
        self.url = url.rstrip("/")
        self._give_up_after = give_up_after
        self._pause = pause
        self._token = token
        self._authorization()
        try:
            self._http = httpx.Client(
                base_url=f"{self.url}/api/v1",
                # Ignore proxies from the environment: they do not belong between worker and coordinator.
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise self._bad_address() from error

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        give_up_after: float | None = None,
        timeout: float = LONG_POLL_SECONDS + 10,
    ) -> Any:
        """Send a request, and retry it while the coordinator does not answer.

        Pauses between attempts grow and have jitter. After a status 500 a call is retried only a few times; if
        the coordinator asks to wait, the call waits. A repeated `POST /studies` that succeeded before gives a
        Conflict; pass `give_up_after=0` for calls that must not be repeated, such as `enqueue`.

        Args:
            method: HTTP method.
            path: below `/api/v1`.
            body: sent as JSON.
            params: of the query.
            headers: in addition to the token and the content type.
            give_up_after: seconds to retry; None takes the connection's own.
            timeout: seconds to wait for one answer.

        Returns:
            The decoded JSON of the answer, or None if it has no body.

        Raises:
            Unavailable: no answer within `give_up_after` seconds.
            TooManyRequests: the coordinator asks to wait longer than that.
            InvalidInput: the URL is not an address.
            FoldwiseError: the class that the coordinator names in its problem.
        """
        limit = self._give_up_after if give_up_after is None else give_up_after
        deadline = time.monotonic() + limit
        content = None if body is None else body.model_dump_json()
        pause = 0.2
        failures = 0
        while True:
            wait = pause * random.uniform(0.5, 1.0)
            sent = {"Content-Type": "application/json", **self._authorization(), **(headers or {})}
            try:
                response = self._http.request(
                    method,
                    path,
                    content=content,
                    params=params,
                    headers=sent,
                    timeout=httpx.Timeout(timeout, connect=5),
                )
                failures += response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
                if response.status_code not in _RETRIED_STATUSES or failures >= _MAX_SERVER_ERRORS:
                    return _decode(response)
                if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                    wait += _retry_after(response)
                    if time.monotonic() + wait > deadline:
                        return _decode(response)
                trouble = f"status {response.status_code}"
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise self._bad_address() from error
            except httpx.TransportError as error:
                trouble = str(error) or type(error).__name__
            if time.monotonic() + wait > deadline:
                raise Unavailable(
                    f"the coordinator at {self.url} does not answer ({trouble}); "
                    "start it with `foldwise up` or `foldwise coordinator`, or correct --url"
                )
            if limit > 1:
                log.warning("coordinator_unreachable", url=self.url, trouble=trouble, again_in=round(wait, 1))
            self._pause(wait)
            pause = min(pause * 2, 10.0)

    def download(self, path: str, file: IO[bytes], *, params: Mapping[str, Any] | None = None) -> None:
        """Write the body of an answer to a file as it arrives. Not retried.

        Raises:
            Unavailable: the coordinator does not answer, or the connection breaks.
            InvalidInput: the URL is not an address.
            FoldwiseError: the class that the coordinator names in its problem.
        """
        with (
            self._without_retries(),
            self._http.stream(
                "GET", path, params=params, timeout=STREAM_TIMEOUT, headers=self._authorization()
            ) as response,
        ):
            if not response.is_success:
                response.read()
                _decode(response)
            for chunk in response.iter_bytes():
                file.write(chunk)
                file.flush()

    def upload(self, path: str, file: IO[bytes], *, params: Mapping[str, Any] | None = None) -> Any:
        """Send a file as the body of a POST, and decode the JSON of the answer. Not retried.

        The longer the file, the longer the answer may take.

        Raises:
            Unavailable, InvalidInput, FoldwiseError: as `download`.
        """
        chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
        with self._without_retries():
            return _decode(
                self._http.post(
                    path,
                    content=chunks,
                    params=params,
                    timeout=_upload_timeout(file),
                    headers={**JSON_LINES, **self._authorization()},
                )
            )

    @contextmanager
    def _without_retries(self) -> Iterator[None]:
        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise self._bad_address() from error
        except httpx.TransportError as error:
            trouble = str(error) or type(error).__name__
            raise Unavailable(
                f"the coordinator at {self.url} does not answer ({trouble}); try again"
            ) from error

    def _authorization(self) -> dict[str, str]:
        token = self._token if isinstance(self._token, str) else self._token()
        if not token.isascii():
            raise TokenRefused("the token has characters that no foldwise token has; check FOLDWISE_TOKEN")
        return {"Authorization": f"Bearer {token}"}

    def _bad_address(self) -> InvalidInput:
        return InvalidInput(
            f"{self.url!r} is not the address of a coordinator; write http://HOST:PORT", field="url"
        )


def _upload_timeout(file: IO[bytes]) -> httpx.Timeout:
    try:
        mib = os.fstat(file.fileno()).st_size / 2**20
    except OSError:
        # A file in memory.
        mib = 0.0
    timeout = STREAM_TIMEOUT.as_dict()
    return httpx.Timeout(**{**timeout, "read": max(timeout["read"] or 0.0, mib * ANSWER_SECONDS_PER_MIB)})


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the coordinator, or a proxy in front of it, asks to wait."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "1")))
    except ValueError:
        # Only proxies send a date instead of a number.
        return 1.0


def parse(contract: type[Answer], answer: Any) -> Answer:
    """Validate an answer against its contract; fields that this program does not know are ignored.

    Raises:
        FoldwiseError: the answer does not match.
    """
    try:
        return read_reply(contract, answer)
    except ValidationError as error:
        raise FoldwiseError(
            f"the coordinator's answer does not match {contract.__name__}; does it run the same version?"
        ) from error


def _decode(response: httpx.Response) -> Any:
    if response.is_success:
        try:
            return response.json() if response.content else None
        except ValueError:
            raise FoldwiseError(
                f"{response.request.url} did not answer JSON; is this a foldwise coordinator?"
            ) from None
    try:
        problem = read_reply_json(Problem, response.content)
    except ValidationError:
        raise FoldwiseError(
            f"{response.request.url} answered status {response.status_code}; is this a foldwise coordinator?"
        ) from None
    code = problem.type.rpartition(":")[2]
    known = {kind("").code: kind for kind in _ERRORS}
    raise known.get(code, FoldwiseError)(problem.detail, field=problem.field)
