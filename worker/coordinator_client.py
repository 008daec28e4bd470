"""The worker's calls to the coordinator: claim, report, heartbeat, release, fail."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from client.connection import LONG_POLL_SECONDS, Connection, parse
from services.contracts import (
    ClaimRequest,
    ComputePlan,
    Failure,
    FoldAssignment,
    FoldResult,
    Heartbeat,
    HeartbeatReply,
    Lease,
    Verdict,
    WorkerInfo,
)
from services.contracts.protocol import PROTOCOL, PROTOCOL_HEADER, THREADS_HEADER
from services.errors import InvalidInput, LeaseSuperseded, NotFound, ResultConflict, StudyOver

FINAL_REJECTIONS = (LeaseSuperseded, NotFound, ResultConflict, InvalidInput, StudyOver)
"""Answers to a result that stay the same when it is reported again."""

RELEASE_TIMEOUT_SECONDS = 5.0
"""Maximum seconds that a stopping worker waits for the answer to a release."""

# In a header, because a coordinator from before versions refuses unknown fields of a body.
_VERSION = {PROTOCOL_HEADER: str(PROTOCOL)}


class CoordinatorClient:
    """A worker's calls, each with the worker's identity or the key of a lease."""

    def __init__(self, connection: Connection, worker: WorkerInfo) -> None:
        self._connection = connection
        self._worker = worker

    def claim(
        self,
        *,
        study: str | None,
        caches: Sequence[str],
        plans: Sequence[ComputePlan],
        threads: int,
        keeps_models: bool = False,
    ) -> FoldAssignment | None:
        """Ask for a fold and wait up to `LONG_POLL_SECONDS` for one.

        Args:
            study: claim only folds of this study; None: of any.
            caches: fingerprints of the clip caches that this worker can read.
            plans: compute plans that its device runs soundly, the preferred one first.
            threads: CPU threads with which it would train; 0 on a GPU.
            keeps_models: whether it can write to the model catalogue.

        Returns:
            The fold and its lease, or None if there is no work now.

        Raises:
            StudyOver, NotFound: the named study has ended or does not exist.
            CacheMismatch, PlanNotSound: this worker's caches or device cannot serve the named study.
            WorkerDrained, WorkerTooOld, TokenRefused: the worker must stop.
            WorkerTooNew: the coordinator must be upgraded first.
            Unavailable: the coordinator did not answer for too long.
            LeaseSuperseded: the lease expired before the answer arrived; claim again.
        """
        request = ClaimRequest(
            worker=self._worker,
            study=study,
            caches=tuple(caches),
            plans=tuple(plans),
            keeps_models=keeps_models,
            wait_seconds=LONG_POLL_SECONDS,
        )
        headers = {"Idempotency-Key": str(uuid.uuid4()), THREADS_HEADER: str(threads), **_VERSION}
        answer = self._connection.call("POST", "/claims", body=request, headers=headers)
        return None if answer is None else parse(FoldAssignment, answer)

    def report(self, lease: Lease, result: FoldResult, *, more: bool) -> Verdict:
        """Report a fold's result; retried until the coordinator answers.

        Args:
            lease: of the fold.
            result: of the fold.
            more: whether the verdict should bring the worker's next fold.

        Raises:
            LeaseSuperseded, ResultConflict, InvalidInput, TokenRefused, Unavailable
        """
        answer = self._connection.call(
            "PUT",
            f"/leases/{lease.id}/result",
            body=result,
            params={"more": more},
            headers={**_lease_headers(lease), **_VERSION},
        )
        return parse(Verdict, answer)

    def heartbeat(self, lease: Lease, beat: Heartbeat) -> HeartbeatReply:
        """Renew a lease. Not retried: the next heartbeat follows soon.

        Raises:
            Unavailable, NotFound, TokenRefused
        """
        answer = self._connection.call(
            "POST",
            f"/leases/{lease.id}/heartbeat",
            body=beat,
            headers=_lease_headers(lease),
            give_up_after=0,
            timeout=lease.heartbeat_seconds,
        )
        return parse(HeartbeatReply, answer)

    def release(self, lease: Lease) -> None:
        """Release a fold. Not retried: without it the lease expires.

        Raises:
            NotFound, TokenRefused, Unavailable
        """
        self._connection.call(
            "POST",
            f"/leases/{lease.id}/release",
            headers=_lease_headers(lease),
            give_up_after=0,
            timeout=RELEASE_TIMEOUT_SECONDS,
        )

    def fail(self, lease: Lease, failure: Failure) -> None:
        """Report that a fold could not be run; retried until the coordinator answers.

        Raises:
            LeaseSuperseded, NotFound, TokenRefused, Unavailable
        """
        self._connection.call("POST", f"/leases/{lease.id}/fail", body=failure, headers=_lease_headers(lease))


def _lease_headers(lease: Lease) -> dict[str, str]:
    return {"Lease-Term": str(lease.term), "Lease-Secret": lease.secret}
