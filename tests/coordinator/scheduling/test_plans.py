"""The compute plan of a study: frozen with its first lease, then followed by every worker."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from coordinator.scheduling import failures, reports
from services.contracts import ComputePlan, ComputeSettings, Failure, FoldAssignment, StudyPlan
from services.errors import InvalidInput, PlanNotSound
from tests.harness.coordinator_harness import Harness, key_of
from tests.harness.simulated_results import make_result

FP32 = ComputePlan()
BF16 = ComputePlan(precision="bf16")
TF32 = ComputePlan(precision="tf32")
BF16_COMPILED = ComputePlan(precision="bf16", compiled=True)

H200: dict[str, Any] = {"device": "NVIDIA H200", "threads": 0, "plans": (BF16_COMPILED, BF16, TF32, FP32)}
T4: dict[str, Any] = {"device": "Tesla T4", "threads": 0, "plans": (FP32,)}
CPU: dict[str, Any] = {"device": "cpu", "threads": 4, "plans": (FP32, BF16)}
OLDER: dict[str, Any] = {"device": "NVIDIA H200", "threads": None, "plans": (FP32, BF16)}


def followed(assignment: FoldAssignment) -> tuple[object, ...]:
    return assignment.compute, assignment.memory_format, assignment.threads


def claim_at_once(harness: Harness, workers: list[dict[str, Any]]) -> list[FoldAssignment | None]:
    """What these workers get that claim at the same moment, each in its own thread."""
    ready = threading.Barrier(len(workers))

    def claim(number: int) -> FoldAssignment | None:
        ready.wait()
        return harness.claim(f"w{number}", **workers[number])

    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(claim, range(len(workers))))


@pytest.mark.parametrize(
    ("worker", "plan"),
    [
        (H200, (BF16_COMPILED, "channels_last", None)),
        (T4, (FP32, "channels_last", None)),
        (CPU, (FP32, "contiguous", 4)),
        (OLDER, (FP32, None, None)),
    ],
)
def test_the_first_lease_freezes_what_its_device_prefers(
    harness: Harness, worker: dict[str, Any], plan: tuple[object, ...]
) -> None:
    harness.create()
    assert harness.study().plan is None
    first = harness.must_claim(**worker)
    assert followed(first) == plan
    frozen = harness.study().plan
    assert frozen is not None
    assert (frozen.compute, frozen.memory_format, frozen.threads) == plan
    following = harness.report(first).next
    assert following is not None
    assert followed(following) == plan


def test_a_worker_that_cannot_follow_a_frozen_plan_takes_nothing_and_is_told(harness: Harness) -> None:
    harness.create(trials=3)
    held = harness.must_claim("fast", **H200)
    assert harness.claim("slow", **T4) is None
    assert harness.claim("slow", study="s", **T4) is None, "what only leases bind may still change"
    harness.report(held)
    assert harness.claim("slow", **T4) is None
    with pytest.raises(
        PlanNotSound, match=r"are computed in bf16, compiled, which this worker on Tesla T4 cannot"
    ):
        harness.claim("slow", study="s", **T4)
    harness.create(name="other")
    assert harness.must_claim("slow", **T4).study == "other"


def test_another_device_follows_the_first_ones_plan(harness: Harness) -> None:
    harness.create(workers_per_trial=2)
    first = harness.must_claim("cpu", **CPU)
    assert followed(harness.must_claim("gpu", **H200)) == followed(first)
    assert followed(harness.must_claim("cpu-1", **{**CPU, "threads": 1})) == followed(first)


def test_a_plan_that_its_device_vetoes_gives_way_to_the_next(harness: Harness) -> None:
    harness.create(workers_per_trial=2)
    first = harness.must_claim("w1", **H200)
    # Another waits while the first one checks the plan.
    assert harness.claim("w2", **T4) is None
    veto = Failure(kind="environment", message="does not run bf16, compiled soundly")
    with harness.sessions.begin() as session:
        failures.fail(session, key_of(first.lease), veto)
    second = harness.must_claim("w1", **{**H200, "plans": (BF16, TF32, FP32)})
    assert followed(second) == (BF16, "channels_last", None)
    harness.report(second)
    assert harness.claim("w3", **T4) is None, "a result binds the plan"
    assert harness.study().plan == StudyPlan(precision="bf16", memory_format="channels_last")


@pytest.mark.parametrize(
    ("settings", "worker", "plan"),
    [
        ({"precision": "fp32"}, H200, (FP32, "channels_last", None)),
        ({"precision": "bf16", "compiled": False}, H200, (BF16, "channels_last", None)),
        ({"precision": "bf16"}, CPU, (BF16, "contiguous", 4)),
        ({"memory_format": "channels_last", "threads": 2}, CPU, (FP32, "channels_last", 2)),
        ("auto", CPU, (FP32, "contiguous", 4)),
    ],
)
def test_what_the_settings_say_is_not_left_to_the_device(
    harness: Harness, settings: Any, worker: dict[str, Any], plan: tuple[object, ...]
) -> None:
    harness.create(compute=settings)
    assert followed(harness.must_claim(**worker)) == plan


def test_a_number_of_threads_holds_for_cpus_that_join_a_gpu_s_study(harness: Harness) -> None:
    harness.create(compute={"precision": "fp32", "threads": 2}, workers_per_trial=2)
    assert followed(harness.must_claim("gpu", **H200)) == (FP32, "channels_last", 2)
    assert followed(harness.must_claim("cpu", **CPU)) == (FP32, "channels_last", 2)


@pytest.mark.parametrize(
    ("settings", "worker"),
    [
        ({"precision": "bf16"}, T4),
        ({"precision": "tf32"}, CPU),
        ({"compiled": True}, CPU),
        ({"memory_format": "contiguous"}, OLDER),
        ({"threads": 2}, OLDER),
        ("auto", {**CPU, "plans": ()}),
    ],
)
def test_a_worker_that_the_settings_exclude_takes_nothing(
    harness: Harness, settings: Any, worker: dict[str, Any]
) -> None:
    harness.create(compute=settings)
    assert harness.claim(**worker) is None
    told = "this worker is too old" if worker is OLDER else rf"this worker on {worker['device']} runs only"
    with pytest.raises(PlanNotSound, match=told):
        harness.claim(study="s", **worker)
    assert harness.study().plan is None


def test_workers_that_claim_at_once_get_one_plan(harness: Harness) -> None:
    harness.create(trials=16, workers_per_trial=1)
    got = claim_at_once(harness, [CPU if number % 2 else H200 for number in range(8)])
    plans = {followed(each) for each in got if each is not None}
    assert len(plans) == 1


def test_an_older_worker_gets_folds_of_studies_without_a_fixed_format_only(harness: Harness) -> None:
    harness.create()
    harness.report(harness.must_claim("new", **CPU), more=False)
    assert harness.claim("old", **OLDER) is None
    with pytest.raises(PlanNotSound, match="cannot follow"):
        harness.claim("old", study="s", **OLDER)
    harness.create(name="other")
    assert followed(harness.must_claim("old", **OLDER)) == (FP32, None, None)
    assert followed(harness.must_claim("new", study="other", **CPU)) == (FP32, None, None)


@pytest.mark.parametrize(("field", "value"), [("memory_format", "channels_last"), ("threads", 3)])
def test_a_result_computed_in_another_way_is_refused(harness: Harness, field: str, value: object) -> None:
    harness.create()
    assignment = harness.must_claim(**CPU)
    sent = make_result(assignment, (0,) * len(assignment.test_clips), **{field: value})
    expected = rf"provenance\.{field} is {value!r}, the fold was leased with"
    with harness.sessions.begin() as session, pytest.raises(InvalidInput, match=expected):
        reports.report(session, key_of(assignment.lease), sent, harness.settings)
    harness.report(assignment)


@pytest.mark.parametrize("bound_by", ["lease", "result"])
def test_what_was_computed_without_a_plan_goes_on_as_it_began(harness: Harness, bound_by: str) -> None:
    """As an older coordinator leases, and as a study is that was imported from an older file."""
    harness.create(compute={"precision": "bf16"}, trials=3, workers_per_trial=2)
    held = harness.must_claim("old", **OLDER)
    if bound_by == "result":
        harness.report(held, more=False)
    with harness.sessions.begin() as session:
        session.execute(text("UPDATE foldwise.studies SET plan = NULL"))
    assert followed(harness.must_claim("new", **H200)) == (BF16, None, None)
    assert harness.study().plan == StudyPlan(precision="bf16")


def test_a_plan_that_nothing_binds_cannot_change_under_a_worker(harness: Harness) -> None:
    """Two claims at once, of workers that cannot follow each other's plan."""
    harness.create(trials=16)
    for _ in range(5):
        with harness.sessions.begin() as session:
            frozen = StudyPlan(precision="bf16", memory_format="channels_last").model_dump_json()
            session.execute(text("UPDATE foldwise.studies SET plan = CAST(:plan AS json)"), {"plan": frozen})
            session.execute(
                text("UPDATE foldwise.leases SET outcome = 'released', ended_at = clock_timestamp()")
            )
            session.execute(text("UPDATE foldwise.folds SET state = 'pending'"))
        got = claim_at_once(harness, [{**H200, "plans": (BF16,)}, {**T4, "threads": 1}])
        plans = {followed(each) for each in got if each is not None}
        assert len(plans) == 1


def test_settings_are_stored_and_sent_as_older_programs_read_them(harness: Harness) -> None:
    harness.create()
    with harness.sessions.begin() as session:
        stored = session.execute(text("SELECT spec->'compute' FROM foldwise.studies")).scalar_one()
    assert stored == {}
    assert harness.study().spec.model_dump(mode="json")["compute"] == {}
    assert harness.study().spec.compute == ComputeSettings()
