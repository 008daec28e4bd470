"""The table of `compute: auto`."""

from __future__ import annotations

from typing import Any

import pytest

from services.compute_plans import (
    choose_plan,
    default_threads,
    memory_format,
    min_channels,
    preferred_plans,
)
from services.contracts import ComputePlan, ComputeSettings, StudyPlan, StudySpec


@pytest.mark.parametrize(
    ("capability", "compiler", "bf16", "first"),
    [
        ((9, 0), True, True, "bf16, compiled"),
        ((8, 0), False, True, "bf16"),
        ((12, 0), True, False, "bf16, compiled"),
        ((7, 5), True, True, "fp32, compiled"),
        ((7, 5), False, True, "fp32"),
        (None, True, True, "fp32"),
        (None, False, False, "fp32"),
    ],
)
def test_what_each_kind_of_device_runs_first(
    capability: tuple[int, int] | None, compiler: bool, bf16: bool, first: str
) -> None:
    plans = preferred_plans(capability, compiler=compiler, bf16=bf16)
    assert str(plans[0]) == first
    assert len(set(plans)) == len(plans)
    assert ComputePlan() in plans, "every device runs plain fp32, the last resort"
    assert compiler or not any(plan.compiled for plan in plans)


def test_no_device_is_offered_what_it_lacks() -> None:
    assert {plan.precision for plan in preferred_plans((7, 5), compiler=True, bf16=True)} == {"fp32"}
    assert {plan.precision for plan in preferred_plans(None, compiler=True, bf16=True)} == {"fp32", "bf16"}
    assert {plan.precision for plan in preferred_plans(None, compiler=True, bf16=False)} == {"fp32"}


def test_a_plan_fixes_all_that_decides_bits() -> None:
    gpu = preferred_plans((9, 0), compiler=True, bf16=True)
    assert choose_plan(ComputeSettings(), gpu, on_gpu=True, threads=0) == StudyPlan(
        precision="bf16", compiled=True, memory_format="channels_last"
    )
    cpu = preferred_plans(None, compiler=True, bf16=True)
    assert choose_plan(ComputeSettings(), cpu, on_gpu=False, threads=4) == StudyPlan(
        memory_format="contiguous", threads=4
    )
    assert choose_plan(ComputeSettings(precision="tf32"), cpu, on_gpu=False, threads=4) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("auto", "auto"),
        ({}, "auto"),
        ({"precision": "bf16"}, "precision=bf16"),
        ({"precision": "fp32", "compiled": False, "threads": 2}, "precision=fp32, compiled=false, threads=2"),
    ],
)
def test_settings_are_read_and_named(given: Any, words: str) -> None:
    spec = StudySpec.model_validate({"name": "s", "cache": "c", "compute": given})
    assert str(spec.compute) == words
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec


def test_one_worker_uses_few_threads_and_a_gpu_whole_words_of_channels() -> None:
    assert [default_threads(cores) for cores in (0, 1, 2, 4, 64)] == [1, 1, 2, 4, 4]
    bf16 = ComputePlan(precision="bf16")
    assert (min_channels(bf16, on_gpu=True), min_channels(bf16, on_gpu=False)) == (8, 1)
    assert memory_format(ComputePlan(), on_gpu=False) == "contiguous"
    assert memory_format(ComputePlan(compiled=True), on_gpu=False) == "channels_last"
