"""Models that a worker trained: staged beside the catalogue, published once the coordinator records the result.

Each staged model has a receipt with its lease and result. A result that is reported again gets the stored
verdict, so any worker that finds a receipt can finish the work of one that died. A model is published only if
its result is recorded.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from pydantic import ValidationError
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import Contract, FoldAssignment, FoldResult, Lease, Verdict
from services.errors import FoldwiseError, Unavailable
from services.model_card import describe
from services.model_catalogue import StagedModel, model_id, stage_model, staged_models
from worker.coordinator_client import FINAL_REJECTIONS, CoordinatorClient
from worker.training.pretrained import pack

log = structlog.get_logger()


class Receipt(Contract):
    """The lease and the result that decide whether a staged model is published."""

    lease: Lease
    result: FoldResult


def can_keep_models(root: Path | None) -> bool:
    """Whether this process can write to the catalogue, or create it."""
    if root is None:
        return False
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return os.access(existing, os.W_OK)


def stage(
    root: Path, assignment: FoldAssignment, cache: ClipCache, result: FoldResult, state: dict[str, Tensor]
) -> tuple[FoldResult, StagedModel]:
    """Write a model and its receipt beside the catalogue.

    Args:
        root: folder of the catalogue.
        assignment: the fold that trained the model.
        cache: its clip cache.
        result: of the fold, without a model.
        state: the network's state after the last epoch.

    Returns:
        The result with the model's id, and the staged model.

    Raises:
        OSError: the disk cannot be written.
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


def report_result(
    client: CoordinatorClient, lease: Lease, result: FoldResult, staged: StagedModel | None, *, more: bool
) -> Verdict:
    """Report a result and, once it is recorded, publish its model if it has one.

    If the coordinator rejects the result for good, the staged model is removed. If it does not answer, or
    refuses for another reason, such as the worker's token, the model stays with its receipt.

    Raises:
        LeaseSuperseded, NotFound, ResultConflict, InvalidInput, StudyOver: the result is rejected for good.
        Unavailable: the coordinator does not answer.
        FoldwiseError: another refusal.
    """
    try:
        verdict = client.report(lease, result, more=more)
    except FINAL_REJECTIONS:
        if staged is not None:
            staged.discard()
        raise
    if staged is not None:
        staged.publish()
        log.info("model_kept", model=staged.card.id)
    return verdict


def report_staged(client: CoordinatorClient, root: Path) -> None:
    """Report the results of models that dead workers left beside the catalogue.

    Raises:
        Unavailable: the coordinator does not answer.
    """
    for staged in staged_models(root):
        try:
            # A newer worker may have written more.
            receipt = Receipt.model_validate_json(staged.receipt(), extra="ignore")
            report_result(client, receipt.lease, receipt.result, staged, more=False)
        except FileNotFoundError:
            # Another worker has published or removed it.
            continue
        except ValidationError as error:
            log.warning("receipt_not_readable", model=staged.card.id, error=str(error).splitlines()[0])
        except FINAL_REJECTIONS as rejection:
            log.info("model_not_kept", model=staged.card.id, reason=rejection.message)
        except Unavailable:
            raise
        except FoldwiseError as error:
            # Such as a token that is refused; then the worker's own claim says so.
            log.warning("model_not_reported", model=staged.card.id, reason=error.message)
