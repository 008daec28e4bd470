"""The workers' protocol: claim, result, heartbeat, release, fail."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from sqlalchemy.orm import Session

from coordinator.access.authorization import CallerOfRequest, require
from coordinator.access.problems import problems
from coordinator.access.waiting_claims import LOOK_SECONDS
from coordinator.routes import body_limits
from coordinator.routes.transactions import Transaction, WakeLeader, in_transaction
from coordinator.routes.typed_bodies import typed_route
from coordinator.runtime import CurrentRuntime
from coordinator.scheduling import claims, failures, leases, reports
from services.contracts import (
    PRINTABLE,
    ClaimRequest,
    Failure,
    FoldAssignment,
    FoldResult,
    Heartbeat,
    HeartbeatReply,
    TokenScope,
    Verdict,
)
from services.contracts.protocol import BEFORE_VERSIONS, check_worker_version, supports

router = APIRouter(
    prefix="/api/v1",
    tags=["workers"],
    dependencies=[Depends(require(TokenScope.WORKER))],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

results = APIRouter(route_class=typed_route(FoldResult))


async def _lease_key(
    lease_id: Annotated[str, Path(max_length=64, pattern=PRINTABLE)],
    lease_term: Annotated[int, Header(ge=1, lt=2**31)],
    lease_secret: Annotated[str, Header(max_length=100)],
) -> leases.LeaseKey:
    return leases.LeaseKey(id=lease_id, term=lease_term, secret=lease_secret)


Key = Annotated[leases.LeaseKey, Depends(_lease_key)]

WorkerVersion = Annotated[
    int, Header(ge=0, lt=2**31, description="version of the protocol that the worker speaks")
]


WorkerThreads = Annotated[
    int | None,
    Header(
        ge=0,
        le=1024,
        description="CPU threads with which the worker would train, 0 on a GPU; a worker that sends this "
        "header follows the memory format and the threads of its task",
    ),
]


@router.post("/claims", responses={204: {"description": "no fold is available; claim again"}, **problems(410)})
async def claim(
    request: Request,
    runtime: CurrentRuntime,
    caller: CallerOfRequest,
    wanted: ClaimRequest,
    idempotency_key: Annotated[str, Header(min_length=16, max_length=100)],
    foldwise_protocol: WorkerVersion = BEFORE_VERSIONS,
    foldwise_threads: WorkerThreads = None,
) -> FoldAssignment:
    """Lease a fold; wait up to `wait_seconds` until one is available."""
    check_worker_version(foldwise_protocol)

    def attempt(session: Session) -> FoldAssignment | None:
        return claims.claim(
            session,
            wanted,
            idempotency_key,
            runtime.settings,
            threads=foldwise_threads,
            protocol=foldwise_protocol,
            pod_uid=caller.pod_uid,
        )

    deadline = time.monotonic() + wanted.wait_seconds
    kind = (
        wanted.study,
        wanted.caches,
        wanted.plans,
        wanted.keeps_models,
        foldwise_threads,
        foldwise_protocol,
    )
    assignment = await in_transaction(runtime, attempt)
    waits = runtime.waiting_claims.joined(caller.name, kind) if assignment is None else nullcontext()
    with waits:
        while assignment is None:
            # A client that has disconnected must not get a fold, because it would never run it; a server that
            # shuts down does not wait for the deadline.
            over = time.monotonic() >= deadline or runtime.ending() or await request.is_disconnected()
            if over:
                await in_transaction(
                    runtime, lambda session: claims.answer_without_fold(session, idempotency_key)
                )
                return Response(status_code=204)  # type: ignore[return-value]
            await asyncio.sleep(LOOK_SECONDS)
            if runtime.waiting_claims.may_look(caller.name, kind):
                assignment = await in_transaction(runtime, attempt)
    runtime.leader.wake()
    return assignment


@results.put("/leases/{lease_id}/result", max_body_size=body_limits.RESULT_BYTES)
async def report(
    key: Key,
    result: FoldResult,
    runtime: CurrentRuntime,
    more: bool = True,
    foldwise_protocol: WorkerVersion = BEFORE_VERSIONS,
) -> Verdict:
    """Report the result of a fold; the reply contains the decision about the trial, and the next fold."""
    # A finished fold counts in any case; the worker learns at its next claim why it gets no other one.
    more = more and supports(foldwise_protocol)
    verdict = await in_transaction(
        runtime, lambda session: reports.report(session, key, result, runtime.settings, more=more)
    )
    if verdict.decision != "continue":
        # A trial has ended, so the leader must create another. The projection of running trials can wait.
        runtime.leader.wake()
    return verdict


router.include_router(results)


@router.post("/leases/{lease_id}/heartbeat")
async def heartbeat(key: Key, beat: Heartbeat, runtime: CurrentRuntime) -> HeartbeatReply:
    """Renew a lease; the reply says whether to continue with the fold."""
    return await in_transaction(runtime, lambda session: leases.heartbeat(session, key, beat, runtime.settings))


@router.post("/leases/{lease_id}/release", status_code=204)
def release(key: Key, session: Transaction) -> None:
    """Give a fold back without counting a failure."""
    leases.release(session, key)


@router.post("/leases/{lease_id}/fail", status_code=204)
def fail(key: Key, failure: Failure, session: Transaction, wake_leader: WakeLeader) -> None:
    """Report that a fold could not be run, and whether the environment or the trial is the cause."""
    failures.fail(session, key, failure)
    wake_leader()
