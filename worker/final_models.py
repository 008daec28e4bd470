"""A model that a worker has trained: beside the catalogue until its result is counted, then in it.

Beside a staged model lies a receipt: the lease and the result. To hand a result in again gives the stored
verdict, so whoever finds a receipt can finish what its worker could not, and a model is published exactly where
its result counts.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from pydantic import ValidationError
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import Contract, FoldAssignment, FoldResult, Lease, Verdict
from services.errors import InvalidInput, LeaseSuperseded, NotFound, ResultConflict, TokenRefused
from services.model_card import describe
from services.model_catalogue import StagedModel, model_id, stage_model, staged_models
from worker.coordinator_client import CoordinatorClient
from worker.training.pretrained import pack

log = structlog.get_logger()

REFUSALS = (LeaseSuperseded, NotFound, ResultConflict, InvalidInput, TokenRefused)
"""Answers to a result that stay the same however often it is handed in."""


class Receipt(Contract):
    """What decides about a staged model."""

    lease: Lease
    result: FoldResult


def can_keep_models(root: Path | None) -> bool:
    """Whether there is a catalogue, or a place for one, that this process may write to."""
    if root is None:
        return False
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return os.access(existing, os.W_OK)


def stage(
    root: Path, assignment: FoldAssignment, cache: ClipCache, result: FoldResult, state: dict[str, Tensor]
) -> tuple[FoldResult, StagedModel]:
    """The result with its model's id, and the model beside the catalogue with its receipt.

    Raises:
        OSError: the disk refused.
    """
    weights = pack(state)
    label_of = {clip.clip_id: clip.label for clip in cache.clips()}
    labels = tuple(label_of[clip_id] for clip_id in assignment.test_clips)
    result = result.model_copy(update={"model": model_id(assignment.study, weights)})
    staged = stage_model(root, assignment.study, weights, describe(assignment, cache.manifest, labels, result))
    try:
        staged.write_receipt(Receipt(lease=assignment.lease, result=result).model_dump_json().encode())
    except BaseException:
        staged.discard()
        raise
    return result, staged


def hand_in(
    client: CoordinatorClient, lease: Lease, result: FoldResult, staged: StagedModel | None, *, more: bool
) -> Verdict:
    """Report a result, and publish its model if it has one and counts.

    A model whose result is refused is removed; where nobody answers it stays, with its receipt.

    Raises:
        LeaseSuperseded, NotFound, ResultConflict, InvalidInput, TokenRefused: the result is refused.
        Unavailable: the coordinator does not answer.
    """
    try:
        verdict = client.report(lease, result, more=more)
    except REFUSALS:
        if staged is not None:
            staged.discard()
        raise
    if staged is not None:
        staged.publish()
        log.info("model_kept", model=staged.card.id)
    return verdict


def finish_staged(client: CoordinatorClient, root: Path) -> None:
    """Hand in what workers that died have left beside the catalogue.

    Raises:
        Unavailable: the coordinator does not answer.
    """
    for staged in staged_models(root):
        try:
            receipt = Receipt.model_validate_json(staged.receipt())
            hand_in(client, receipt.lease, receipt.result, staged, more=False)
        except FileNotFoundError:
            # Another worker has decided on it meanwhile.
            continue
        except ValidationError as error:
            log.warning("receipt_not_readable", model=staged.card.id, error=str(error).splitlines()[0])
        except REFUSALS as refused:
            log.info("model_not_kept", model=staged.card.id, reason=refused.message)
