"""The compute plan of a study: frozen with its first lease, and followed by every worker that gets a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import JSON, ColumnElement, and_, false, literal, or_, select, type_coerce
from sqlalchemy.orm import Session

from coordinator.store.folds import plan_of
from coordinator.store.studies import lock_study
from coordinator.store.tables import LeaseRow, ResultRow, StudyRow, TrialRow
from services.compute_plans import choose_plan
from services.contracts import ComputePlan, ComputeSettings, StudyPlan, StudySpec
from services.errors import PlanNotSound

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """How a worker can compute."""

    plans: Sequence[ComputePlan]
    """What its device runs soundly, the preferred plan first."""

    device: str
    """`cpu`, or the name of a GPU."""

    threads: int | None
    """CPU threads with which it would train, 0 on a GPU; None for an older worker, which trains with a number
    and a memory format of its own whatever its task says."""

    def can_follow(self, plan: StudyPlan) -> bool:
        """Whether the worker computes as this plan says."""
        return plan.compute in self.plans and (self.threads is not None or plan.memory_format is None)


def can_serve(worker: Abilities) -> ColumnElement[bool]:
    """Condition on `StudyRow`: the worker can follow its plan, or one that its settings allow may be frozen."""
    plan = type_coerce(StudyRow.plan, JSON)
    settings = type_coerce(StudyRow.spec, JSON)
    frozen = _is_one_of(worker.plans, plan["precision"].as_string(), plan["compiled"].as_string())
    allowed = or_(
        false(),
        *(
            and_(
                _is(settings["compute", "precision"].as_string(), offered.precision),
                _is(settings["compute", "compiled"].as_string(), str(offered.compiled).lower()),
            )
            for offered in worker.plans
        ),
    )
    if worker.threads is None:
        frozen = and_(frozen, plan["memory_format"].as_string().is_(None))
        for name in ("memory_format", "threads"):
            value = settings["compute", name].as_string()
            allowed = and_(allowed, or_(value.is_(None), value == "auto"))
    return or_(frozen, and_(allowed, or_(StudyRow.plan.is_(None), ~_binds())))


def agree_on_plan(session: Session, study: StudyRow, spec: StudySpec, worker: Abilities) -> bool:
    """Freeze the study's plan if no fold binds it yet.

    The first plan that the worker offers and the settings allow is frozen. A worker whose device vetoes it
    offers it no more; until a fold is done or leased, the next claim then freezes another.

    Returns:
        Whether the worker can follow the frozen plan. If not, the study's row is locked all the same.
    """
    if study.plan is not None and worker.can_follow(plan_of(study, spec)):
        return True
    study = lock_study(session, study.id)
    bound = study.plan is not None and session.scalar(select(_binds()).where(StudyRow.id == study.id))
    if not bound:
        plan = _chosen(spec.compute, worker)
        if plan is None:
            return False
        study.plan = plan.model_dump(mode="json")
        log.info("plan_frozen", study=study.name, device=worker.device, **study.plan)
    return worker.can_follow(plan_of(study, spec))


def check_plan(session: Session, study: StudyRow, spec: StudySpec, worker: Abilities) -> None:
    """Refuse a worker that asks for this study and cannot compute as it must.

    Raises:
        PlanNotSound: the message says what the study needs.
    """
    if session.scalar(select(StudyRow.id).where(StudyRow.id == study.id, can_serve(worker))) is not None:
        return
    offered = "; ".join(map(str, worker.plans)) or "nothing"
    if study.plan is not None:
        plan = plan_of(study, spec)
        raise PlanNotSound(
            f"the folds of study {study.name} are computed in {plan}, which this worker on {worker.device} "
            f"cannot follow (it offers {offered}); use another device, or clone the study",
            field="plans",
        )
    raise PlanNotSound(
        f"study {study.name} asks for compute.precision={spec.compute.precision} and "
        f"compute.compiled={str(spec.compute.compiled).lower()}, of which this worker on {worker.device} runs "
        f"nothing soundly (it offers {offered}); use another device, or a study with compute=auto",
        field="plans",
    )


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
    trials = select(TrialRow.id).where(TrialRow.study_id == StudyRow.id).correlate(StudyRow)
    leased = trials.join(LeaseRow, LeaseRow.trial_id == TrialRow.id).where(LeaseRow.outcome.is_(None))
    done = trials.join(ResultRow, ResultRow.trial_id == TrialRow.id)
    return or_(leased.exists(), done.exists())


def _is_one_of(
    plans: Sequence[ComputePlan], precision: ColumnElement[str], compiled: ColumnElement[str]
) -> ColumnElement[bool]:
    return or_(
        false(),
        *(and_(precision == plan.precision, compiled == literal(str(plan.compiled).lower())) for plan in plans),
    )


def _is(setting: ColumnElement[str], value: str) -> ColumnElement[bool]:
    return or_(setting == "auto", setting == value)
