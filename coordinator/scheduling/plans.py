"""The compute plan of a study: frozen with its first lease, and followed by every worker that gets a fold."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from cachetools import LRUCache
from sqlalchemy import JSON, ColumnElement, Select, and_, false, func, or_, select, true, type_coerce
from sqlalchemy.orm import Session

from coordinator.store.folds import plan_of
from coordinator.store.studies import lock_study
from coordinator.store.tables import LeaseRow, ResultRow, StudyFoldRow, StudyRow, TrialRow
from services.compute_plans import choose_plan
from services.contracts import ComputePlan, ComputeSettings, StudyPlan, StudySpec
from services.contracts.protocol import PROTOCOL, VALIDATION_CLIPS
from services.errors import PlanNotSound
from services.folds import GivenFolds, Holdout

log = structlog.get_logger()

SETTLED_KEPT = 10_000
"""Studies with a result that are kept in memory, so that their claims need not look for one."""

# Threads share it, under this lock.
_lock = threading.Lock()
_settled: LRUCache[tuple[int, datetime], bool] = LRUCache(SETTLED_KEPT)


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """How a worker can compute."""

    plans: Sequence[ComputePlan]
    """What its device runs soundly, the preferred plan first."""

    device: str
    """`cpu`, or the name of a GPU."""

    threads: int | None
    """CPU threads with which it would train, 0 on a GPU; None for an older worker, which chooses threads
    and memory format itself and ignores those of its task."""

    protocol: int = PROTOCOL
    """Version of the protocol that it speaks."""

    def can_follow(self, plan: StudyPlan) -> bool:
        """Whether the worker computes as this plan says."""
        return plan.compute in self.plans and (self.threads is not None or plan.memory_format is None)


def can_serve(worker: Abilities) -> ColumnElement[bool]:
    """Condition on `StudyRow`: the worker can follow its plan, or one that its settings allow may be frozen.

    A worker of an older protocol serves only studies that it understands.
    """
    plan, settings = type_coerce(StudyRow.plan, JSON), type_coerce(StudyRow.spec, JSON)["compute"]
    is_frozen = StudyRow.plan.is_not(None)
    followed = and_(is_frozen, _offers(worker, plan))
    allowed = _offers(worker, settings)
    if worker.threads is None:
        followed = and_(followed, plan["memory_format"].as_string().is_(None))
        fixed = (settings[name].as_string() for name in ("memory_format", "threads"))
        allowed = and_(allowed, *(value.is_(None) for value in fixed))
    served = or_(followed, and_(allowed, or_(~is_frozen, ~_binds())))
    return served if worker.protocol >= VALIDATION_CLIPS else and_(served, ~needs_validation_protocol())


def needs_validation_protocol() -> ColumnElement[bool]:
    """Whether the study in the surrounding query needs workers of the version `VALIDATION_CLIPS`.

    It does if a fold has validation clips, or if the dataset's own split is used, by it or by the study that
    cross-validated its model: older workers cannot read such a cache.
    """
    spec = type_coerce(StudyRow.spec, JSON)
    own, cross_validated = spec["protocol", "kind"], spec["cross_validated", "protocol", "kind"]
    length = func.json_array_length(StudyFoldRow.validation_clip_ids)
    of_study = select(StudyFoldRow.fold).where(StudyFoldRow.study_id == StudyRow.id).correlate(StudyRow)
    given = (GivenFolds().kind, Holdout().kind)
    of_given = (func.coalesce(kind.as_string().in_(given), false()) for kind in (own, cross_validated))
    return or_(*of_given, of_study.where(length > 0).exists())


def agree_on_plan(session: Session, study: StudyRow, spec: StudySpec, worker: Abilities) -> bool:
    """Freeze the study's plan if no fold binds it yet; to be called before a fold is leased.

    The first plan that the worker offers and the settings allow is frozen. A worker whose device vetoes it
    stops offering it; until a fold is done or leased, the next claim then freezes another.

    Returns:
        Whether the worker can follow the frozen plan. If not, the study's row is locked all the same.
    """
    # A result binds the plan for good. Before there is one, claims of the study wait for each other.
    if _is_settled(session, study):
        return worker.can_follow(plan_of(study, spec))
    study = lock_study(session, study.id)
    if session.scalar(select(_binds()).where(StudyRow.id == study.id)):
        # An older coordinator leases without freezing, and older files have no plan.
        plan = plan_of(study, spec)
    elif study.plan is not None and worker.can_follow(plan_of(study, spec)):
        return True
    else:
        chosen = _chosen(spec.compute, worker)
        if chosen is None:
            return False
        plan = chosen
    if study.plan != plan.model_dump(mode="json"):
        study.plan = plan.model_dump(mode="json")
        log.info("plan_frozen", study=study.name, device=worker.device, **study.plan)
    return worker.can_follow(plan)


def check_plan(session: Session, study: StudyRow, spec: StudySpec, worker: Abilities) -> None:
    """Refuse a worker that asks for this study and can never compute as it must.

    A plan that only leases bind may still change, so a worker that cannot follow it waits.

    Raises:
        PlanNotSound: the message says what the study needs.
    """
    offered = "; ".join(map(str, worker.plans)) or "nothing"
    if _is_settled(session, study):
        plan = plan_of(study, spec)
        if not worker.can_follow(plan):
            raise PlanNotSound(
                f"the folds of study {study.name} are computed in {plan}, which this worker on {worker.device} "
                f"cannot follow (it offers {offered}); use another device, or clone the study",
                field="plans",
            )
        return
    if _chosen(spec.compute, worker) is not None:
        return
    if not any(spec.compute.allow(plan) for plan in worker.plans):
        raise PlanNotSound(
            f"study {study.name} has compute {spec.compute}, and this worker on {worker.device} runs only "
            f"{offered}; use another device, or a study with compute=auto",
            field="plans",
        )
    raise PlanNotSound(
        f"study {study.name} fixes memory format or threads ({spec.compute}), which this worker is too old to "
        "follow; run workers of the coordinator's version",
        field="plans",
    )


def _is_settled(session: Session, study: StudyRow) -> bool:
    """Whether the study has a plan and a result; if so, its row here has that plan."""
    # In another database, the study with this id was created at another time.
    key = (study.id, study.created_at)
    with _lock:
        is_known = key in _settled
    looked_for = true() if is_known else _has_result()
    plan, has_result = session.execute(select(StudyRow.plan, looked_for).where(StudyRow.id == study.id)).one()
    if plan != study.plan:
        session.refresh(study)
    if plan is None or not has_result:
        return False
    with _lock:
        _settled[key] = True
    return True


def _chosen(settings: ComputeSettings, worker: Abilities) -> StudyPlan | None:
    if worker.threads is not None:
        return choose_plan(settings, worker.plans, on_gpu=worker.device != "cpu", threads=worker.threads)
    if (settings.memory_format, settings.threads) != ("auto", "auto"):
        return None
    # What an older worker does beyond precision and compilation, nobody can tell it.
    plan = choose_plan(settings, worker.plans, on_gpu=True, threads=0)
    return None if plan is None else plan.model_copy(update={"memory_format": None})


def _binds() -> ColumnElement[bool]:
    """Whether a fold of the study in the surrounding query is leased or done."""
    leased = _trials().join(LeaseRow, LeaseRow.trial_id == TrialRow.id).where(LeaseRow.outcome.is_(None))
    return or_(leased.exists(), _has_result())


def _has_result() -> ColumnElement[bool]:
    return _trials().join(ResultRow, ResultRow.trial_id == TrialRow.id).exists()


def _trials() -> Select[int]:
    """Ids of the trials of the study in the surrounding query."""
    return select(TrialRow.id).where(TrialRow.study_id == StudyRow.id).correlate(StudyRow)


def _offers(worker: Abilities, wanted: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the worker offers the precision and compilation of a JSON object; what it lacks is open."""
    precision, compiled = wanted["precision"].as_string(), wanted["compiled"].as_string()
    return or_(
        false(),
        *(
            and_(
                or_(precision.is_(None), precision == plan.precision),
                or_(compiled.is_(None), compiled == str(plan.compiled).lower()),
            )
            for plan in worker.plans
        ),
    )
