"""Errors a person can act on.

Each class carries the HTTP status the coordinator answers with and the exit code a process ends with.
The message is one sentence that names the field and its value, and says what to do next.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PERMANENT = 64
EXIT_UNAVAILABLE_HERE = 69
EXIT_TRY_AGAIN = 75


class FoldwiseError(Exception):
    """An error that no input caused: status 500, exit code 1."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = EXIT_FAILURE

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """`field` is the dotted name of the input at fault, such as `training.batch_size`."""
        super().__init__(message)
        self.message = message
        self.field = field

    @property
    def code(self) -> str:
        """The class name in kebab case: the stable name of this error in JSON and logs."""
        name = type(self).__name__
        return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


class InvalidInput(FoldwiseError):
    """A given value cannot be used."""

    status = 422
    exit_code = EXIT_USAGE


class NotFound(FoldwiseError):
    """Something that was named does not exist."""

    status = 404
    exit_code = EXIT_USAGE


class Conflict(FoldwiseError):
    """The request is not possible in the current state."""

    status = 409


class LeaseSuperseded(Conflict):
    """The lease is no longer valid: another one of the fold was granted, or the fold or its trial has ended."""


class StudyOver(FoldwiseError):
    """The study has ended; a worker that serves it is done."""

    status = 410
    exit_code = EXIT_DONE


class WorkerDrained(Conflict):
    """The worker is drained: it must end, and another worker may replace it."""

    exit_code = EXIT_TRY_AGAIN


class WorkerTooOld(FoldwiseError):
    """The worker's protocol is older than the coordinator supports; only another worker image helps."""

    status = 409
    exit_code = EXIT_PERMANENT


class WorkerTooNew(FoldwiseError):
    """The worker's protocol is newer than the coordinator's; it helps to upgrade the coordinator."""

    status = 409
    exit_code = EXIT_PERMANENT


class ResultConflict(FoldwiseError):
    """Two different results were sent for the same lease."""

    status = 422


class CacheMismatch(FoldwiseError):
    """The clip cache is missing, damaged or not the requested one."""

    status = 422
    exit_code = EXIT_PERMANENT


class CacheUnreadable(CacheMismatch):
    """This machine cannot read the folder of the clip caches, or the files of one; another machine may."""

    exit_code = EXIT_UNAVAILABLE_HERE


class MachineUnusable(FoldwiseError):
    """This machine cannot do the work, for example because it has no usable GPU; another machine may."""

    exit_code = EXIT_UNAVAILABLE_HERE


class PlanNotSound(FoldwiseError):
    """The worker's device does not compute correctly with the study's compute plan (precision, compilation)."""

    status = 422
    exit_code = EXIT_UNAVAILABLE_HERE


class TokenRefused(FoldwiseError):
    """The token is missing, unknown, revoked or that of another lease."""

    status = 401
    exit_code = EXIT_PERMANENT


class ScopeMissing(FoldwiseError):
    """The token is valid, but does not permit this request."""

    status = 403
    exit_code = EXIT_PERMANENT


class TooManyRequests(FoldwiseError):
    """This caller exceeds its request rate; trying again later helps."""

    status = 429
    exit_code = EXIT_TRY_AGAIN

    def __init__(self, message: str, *, field: str | None = None, retry_after: float = 1.0) -> None:
        """`retry_after`: seconds until the next request is accepted."""
        super().__init__(message, field=field)
        self.retry_after = retry_after


class Unavailable(FoldwiseError):
    """Something that is needed does not answer; trying again later can help."""

    status = 503
    exit_code = EXIT_TRY_AGAIN
