"""Compute plans: what runs, what is refused, what is done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from services.clip_cache import ClipCache
from services.contracts import ComputePlan, FoldResult, FoldTask, MemoryFormat
from services.errors import PlanNotSound
from services.search_space import Hyperparameters
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from tests.harness.networks import build_network
from worker.training import fit, steps, training_device
from worker.training.device import keep_freed_memory
from worker.training.precision import Soundness, check_soundness, gradients_finite, possible_plans
from worker.training.steps import Steps
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
    monkeypatch.setattr(steps, "gradients_finite", lambda _: torch.tensor(False))
    redone = run(planned(cache, BF16, dropout=0.0), cache)
    assert redone.epochs == exact.epochs
    assert redone.provenance.redone_steps == SHORT.epochs * 9  # 72 clips in batches of 8


@needs(BF16)
@pytest.mark.parametrize("optimization", ["Adam", "Lookahead+Adam"])
def test_looking_at_ten_steps_at_once_is_looking_at_each(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch, optimization: str
) -> None:
    bad = {3, 4, 12, 17}

    def run_with_bad_gradients(interval: int) -> FoldResult:
        """A fold in which the bf16 gradients of these batches are infinite."""
        numbers: dict[tuple[int, ...], int] = {}
        current = [0]

        def numbered(take: Callable[..., None]) -> Callable[..., None]:
            def taken(self: Steps, rows: Tensor, *batch: Tensor) -> None:
                # A step that is taken again keeps its number.
                current[0] = numbers.setdefault(tuple(rows.tolist()), len(numbers))
                take(self, rows, *batch)

            return taken

        def spoiled(parameters: Sequence[Tensor]) -> Tensor:
            if current[0] in bad:
                for parameter in parameters:
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("inf"))
            return gradients_finite(parameters)

        with monkeypatch.context() as patched:
            patched.setattr(steps, "gradients_finite", spoiled)
            patched.setattr(Steps, "take", numbered(Steps.take))
            patched.setattr(Steps, "_take_exactly", numbered(Steps._take_exactly))
            patched.setattr(fit, "LOSS_INTERVAL_STEPS", interval)
            return run(planned(cache, BF16, optimization=optimization), cache)

    at_each, at_ten = run_with_bad_gradients(1), run_with_bad_gradients(10)
    assert at_ten.epochs == at_each.epochs
    assert at_ten.provenance.redone_steps == at_each.provenance.redone_steps == len(bad)
    assert at_ten.epochs != run(planned(cache, BF16, optimization=optimization), cache).epochs


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


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_memory_format_that_is_asked_for_is_used(cache: ClipCache, memory_format: MemoryFormat) -> None:
    task = planned(cache, ComputePlan()).model_copy(update={"memory_format": memory_format})
    assert run(task, cache).provenance.memory_format == memory_format


def test_without_a_memory_format_the_table_s_is_used(cache: ClipCache) -> None:
    assert run(planned(cache, ComputePlan()), cache).provenance.memory_format == "contiguous"


def test_a_fold_trains_with_the_threads_of_its_task(cache: ClipCache) -> None:
    before = torch.get_num_threads()
    task = planned(cache, ComputePlan())
    device = TrainingDevice(CPU, threads=1)
    try:
        two = run(task.model_copy(update={"threads": 2}), cache, device=device)
        own = run(task, cache, device=device)
    finally:
        torch.set_num_threads(before)
    assert (two.provenance.threads, own.provenance.threads) == (2, 1)


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


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces and counts in the same way with both; the code of Inductor takes up to a minute."""
    if request.param == "inductor":
        return
    real = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, **_: real(model, dynamic=False, fullgraph=True, backend=request.param),
    )


@needs(COMPILED)
@pytest.mark.usefixtures("backend")
def test_trials_that_differ_in_dropout_are_compiled_once(cache: ClipCache) -> None:
    device = TrainingDevice(CPU)
    one = SHORT.model_copy(update={"epochs": 1, "batch_size": 36, "width": 2})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    others: list[dict[str, Any]] = [
        {"initializer": "Xavier normal"},
        {"loss_weights": True},
        {"optimization": "Adam"},
        {"clahe": True},
        {"normalization": True},
    ]
    with capture_logs() as lines:
        for changed in [*({"dropout": 0.05 * number} for number in range(20)), *others]:
            task = assign(cache, one, temporal_size=1, **changed).model_copy(update={"compute": COMPILED})
            assert len(run(task, cache, device=device).epochs) == 1
    assert device.compilations == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert [line["compilations"] for line in lines if line["event"] == "network_compiled"] == [1]
    # The range of the pixels can decide whether a plan is sound.
    assert len([line for line in lines if line["event"] == "plan_checked"]) == 2


@needs(COMPILED)
@pytest.mark.usefixtures("backend")
def test_a_fold_on_a_reused_network_equals_that_on_a_new_one(cache: ClipCache) -> None:
    device = TrainingDevice(CPU)
    task = planned(cache, COMPILED, temporal_size=1, dropout=0.4, initializer="Xavier normal")
    other = planned(cache, COMPILED, temporal_size=1, dropout=0.1, initializer="Xavier uniform")
    alone = run(task, cache)
    after_another = [run(each, cache, device=device) for each in (other, task)][1]
    assert after_another.epochs == alone.epochs
    assert after_another.epochs != run(other, cache).epochs


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
