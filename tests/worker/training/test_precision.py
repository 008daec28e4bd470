"""Compute plans: what runs, what is refused, what is done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from services.clip_cache import ClipCache
from services.contracts import ComputePlan, FoldTask, MemoryFormat
from services.errors import PlanNotSound
from services.search_space import Hyperparameters
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from tests.harness.networks import build_network
from worker.training import fit, training_device
from worker.training.device import keep_freed_memory
from worker.training.precision import Soundness, check_soundness, possible_plans
from worker.training.training_device import TrainingDevice

BF16 = ComputePlan(precision="bf16")
COMPILED = ComputePlan(compiled=True)
SHORT = TINY.model_copy(update={"epochs": 2})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return write_cache(tmp_path_factory.mktemp("caches"), subjects=4, clips_of_class=4, size=16)


def planned(cache: ClipCache, plan: ComputePlan, **hyperparameters: Any) -> FoldTask:
    return assign(cache, SHORT, **hyperparameters).model_copy(update={"compute": plan})


def needs(plan: ComputePlan) -> pytest.MarkDecorator:
    return pytest.mark.skipif(plan not in possible_plans(CPU), reason=f"this machine has no means for {plan}")


def test_a_cpu_runs_fp32_and_no_tf32() -> None:
    plans = possible_plans(CPU)
    assert ComputePlan() in plans
    assert not [plan for plan in plans if plan.precision == "tf32"]


def test_a_plan_without_means_is_refused_by_name(cache: ClipCache) -> None:
    with pytest.raises(PlanNotSound, match=r"cpu does not support tf32; use another device"):
        run(planned(cache, ComputePlan(precision="tf32")), cache)


@needs(BF16)
def test_a_bf16_fold_learns_repeats_and_says_so(cache: ClipCache) -> None:
    task = assign(cache).model_copy(update={"compute": BF16})
    with capture_logs() as lines:
        result = run(task, cache)
    again = run(task, cache)
    assert result.epochs == again.epochs
    assert result.provenance.compute == BF16
    assert result.provenance.redone_steps == 0
    losses = [epoch.loss for epoch in result.epochs if epoch.loss is not None]
    assert losses[-1] < losses[0] / 2
    (checked,) = [line for line in lines if line["event"] == "plan_checked"]
    assert checked["sound"]
    assert 0 < checked["gradient_error"] < 0.3


@needs(BF16)
def test_steps_done_again_in_fp32_are_counted_and_exact(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run(planned(cache, ComputePlan(), dropout=0.0), cache)
    monkeypatch.setattr(fit, "gradients_finite", lambda _: False)
    redone = run(planned(cache, BF16, dropout=0.0), cache)
    assert redone.epochs == exact.epochs
    assert redone.provenance.redone_steps == SHORT.epochs * 9  # 72 clips in batches of 8


@needs(BF16)
def test_an_unsound_plan_is_refused_and_not_offered_again(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsound(*_: object) -> Soundness:
        return Soundness(logits_error=0.1, gradient_error=1.4, not_finite=0.5, sound=False)

    monkeypatch.setattr(training_device, "check_soundness", unsound)
    device = TrainingDevice(CPU)
    assert BF16 in device.plans
    with pytest.raises(PlanNotSound, match=r"does not run bf16 soundly.*gradients by 1.4, 50% of batches"):
        run(planned(cache, BF16), cache, device=device)
    assert BF16 not in device.plans
    assert ComputePlan() in device.plans


class Wrong(nn.Module):
    """A network as a broken library would run it."""

    def __init__(self, model: nn.Module, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.spoil = model, spoil

    def forward(self, clips: Tensor) -> Tensor:
        return self.spoil(self.model(clips))


def not_finite(logits: Tensor) -> Tensor:
    return logits * torch.tensor(float("inf"))


@pytest.mark.parametrize(
    ("spoil", "sound"),
    [
        (lambda logits: logits, True),
        (lambda logits: logits * 1.0005, True),
        (lambda logits: logits * 1.5, False),
        (lambda logits: logits.flip(0), False),
        (not_finite, False),
    ],
)
def test_the_check_finds_wrong_results(spoil: Callable[[Tensor], Tensor], sound: bool) -> None:
    torch.manual_seed(0)
    model = build_network(Hyperparameters(), width=2, classes=3, frames=4, frame_size=16, bn_momentum=0.1)
    batches = [(torch.rand(6, 1, 4, 16, 16), torch.arange(6) % 3) for _ in range(4)]
    found = check_soundness(model, Wrong(model, spoil), batches, "fp32")
    assert found.sound == sound


def test_the_faster_memory_format_is_measured_once_and_kept(
    cache: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_device, "MIN_STEPS_TO_MEASURE", 1)
    file = tmp_path / "deeper" / "measurements.json"
    device = TrainingDevice(CPU, measurements=file)
    with capture_logs() as lines:
        first = run(planned(cache, ComputePlan()), cache, device=device)
        run(planned(cache, ComputePlan()), cache, device=device)
        again = run(planned(cache, ComputePlan()), cache, device=TrainingDevice(CPU, measurements=file))
    (chosen,) = [line for line in lines if line["event"] == "memory_format_chosen"]
    assert chosen["gain"] >= 1
    assert list(json.loads(file.read_text()).values()) == [chosen["memory_format"]]
    assert first.provenance.memory_format == again.provenance.memory_format == chosen["memory_format"]
    assert first.epochs == again.epochs


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "diagonal"}'])
def test_a_broken_file_of_measurements_is_no_trouble(cache: ClipCache, tmp_path: Path, content: str) -> None:
    file = tmp_path / "measurements.json"
    file.write_text(content)
    run(planned(cache, ComputePlan()), cache, device=TrainingDevice(CPU, measurements=file))


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_memory_format_that_is_asked_for_is_used(cache: ClipCache, memory_format: MemoryFormat) -> None:
    task = planned(cache, ComputePlan())
    result = fit.run_fold(
        task, cache, TrainingDevice(CPU), revision=None, on_step=lambda _: None, memory_format=memory_format
    )
    assert result.provenance.memory_format == memory_format


@pytest.mark.long
@needs(COMPILED)
def test_a_compiled_fold_is_sound_and_repeats(cache: ClipCache) -> None:
    device = TrainingDevice(CPU)
    task = planned(cache, COMPILED)
    with capture_logs() as lines:
        result = run(task, cache, device=device)
        after_another_fold = [
            run(each, cache, device=device) for each in (task.model_copy(update={"seed": 5}), task)
        ][1]
    in_another_engine = run(task, cache)
    assert [line["sound"] for line in lines if line["event"] == "plan_checked"] == [True]
    assert result.epochs == after_another_fold.epochs == in_another_engine.epochs
    eager = run(planned(cache, ComputePlan()), cache)
    assert result.epochs[0].loss == pytest.approx(eager.epochs[0].loss, rel=1e-3)


@needs(COMPILED)
def test_a_compiler_that_fails_is_the_devices_fault(cache: ClipCache) -> None:
    device = TrainingDevice(CPU)
    broken = {"cpp.cxx": "/bin/false", "force_disable_caches": True}
    with (
        inductor_config.patch(broken),
        pytest.raises(PlanNotSound, match=r"fp32, compiled soundly: torch.comp"),
    ):
        run(planned(cache, COMPILED, temporal_size=1), cache, device=device)
    assert COMPILED not in device.plans


def test_freed_memory_is_kept_on_glibc() -> None:
    assert keep_freed_memory()
