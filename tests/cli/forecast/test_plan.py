"""What a study will cost: against the arithmetic of the paper's search, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.forecast.calibration import measure_device
from cli.forecast.costs import ConfigurationCost, StudyCosts, usual_configuration
from cli.forecast.dataset_shape import published_shape, shape_of
from cli.forecast.devices import DeviceForecast, MeasuredSpeed
from cli.forecast.forecast import Forecast, make_forecast, with_devices
from cli.forecast.gpus import GPUS, find_gpus, gpu_of_device
from cli.forecast.tables import configurations_table, devices_table
from cli.main import app
from services.contracts import ComputeSettings, StudySpec
from services.errors import CacheMismatch, InvalidInput, NotFound
from services.presets import get_preset
from services.search_space import SearchSpace
from tests.harness.fold_tasks import TINY, write_cache

ONE = SearchSpace.model_validate({"temporal_size": [3]})


@pytest.fixture(scope="module")
def loso() -> Forecast:
    """What `foldwise plan --preset ckplus-loso --json` prints, read again."""
    answer = CliRunner().invoke(app, ["plan", "--preset", "ckplus-loso", "--gpu", "H200", "--json"])
    said = json.loads(answer.stdout)
    return Forecast(
        **{
            **said,
            "enqueued": [],
            "configurations": [ConfigurationCost(**cost) for cost in said["configurations"]],
            "devices": [DeviceForecast(**device) for device in said["devices"]],
        }
    )


@pytest.fixture(scope="module")
def small() -> tuple[StudySpec, Forecast]:
    spec = StudySpec.model_validate({**get_preset("demo").model_dump(), "space": {"temporal_size": [1, 3, 5]}})
    return spec, make_forecast(spec, published_shape("demo"))


def _cost(plan: Forecast, temporal_size: int, second: bool) -> ConfigurationCost:
    return next(
        cost
        for cost in plan.configurations
        if (cost.temporal_size, cost.second_conv_layer) == (temporal_size, second)
    )


def test_the_papers_search_is_forecast_without_a_dataset(loso: Forecast) -> None:
    assert loso.clip_passes_per_trial == pytest.approx(3.22e6, rel=0.02)
    assert loso.pflop_per_trial == pytest.approx(439, rel=0.02)
    assert loso.configuration == {"temporal_size": 3, "second_conv_layer": False, "width": 64, "epochs": 16}
    assert (loso.folds, loso.clips, loso.augmented_clips) == (118, 327, 1722)
    assert "taps on padding count" in loso.convention
    assert [device.precision for device in loso.devices] == ["bf16", "tf32", "fp32"]
    fastest, device = loso.devices[0], loso.devices[-1]
    assert device.hours is not None
    assert fastest.hours is not None
    assert device.hours / fastest.hours == pytest.approx(989 / 67, rel=0.01)
    assert (device.fits, device.measured) == (True, False)
    assert device.hours is not None
    assert device.hours_pruned is not None
    assert 0 < device.hours_pruned < device.hours


@pytest.mark.parametrize(
    ("temporal_size", "pflop", "without_padding", "second"),
    [
        # Seconds at 790 TFLOP/s give operations without padding and those with a second convolution.
        (1, 147, 186 * 0.79, 413 * 0.79),
        (3, 439, 464 * 0.79, 1235 * 0.79),
        (5, 731, 662 * 0.79, 2058 * 0.79),
        (7, 1023, 814 * 0.79, 2881 * 0.79),
        (9, 1315, 920 * 0.79, 3703 * 0.79),
    ],
)
def test_operations_of_a_trial_over_the_space(
    loso: Forecast, temporal_size: int, pflop: float, without_padding: float, second: float
) -> None:
    cost = _cost(loso, temporal_size, False)
    assert cost.pflop_per_trial == pytest.approx(pflop, rel=0.02)
    assert cost.pflop_per_trial_without_padding == pytest.approx(without_padding, rel=0.02)
    assert _cost(loso, temporal_size, True).pflop_per_trial == pytest.approx(second, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "clips", "augmented", "passes"),
    [
        ("ckplus-10fold", 327, 1722, 1722 * 9 * 16),
        ("oulu-10fold", 480, 4320, 4320 * 9 * 16),
        ("demo", 70, 140, 140 * 4 * 8),
    ],
)
def test_the_other_presets(preset: str, clips: int, augmented: int, passes: int) -> None:
    spec = get_preset(preset).model_copy(update={"space": ONE, "trials": 2, "pruning": ()})
    plan = make_forecast(spec, published_shape(preset))
    assert (plan.clips, plan.augmented_clips, plan.clip_passes_per_trial) == (clips, augmented, passes)
    assert plan.clip_passes == 2 * passes


def test_a_cache_is_planned_on_where_there_is_one(tmp_path: Path) -> None:
    write_cache(tmp_path, subjects=4, clips_of_class=2, size=16)
    spec = StudySpec.model_validate(
        {"name": "s", "cache": "blobs", "trials": 3, "training": TINY, "space": ONE}
    )
    plan = make_forecast(spec, shape_of(spec, preset=None, cache=None, cache_root=tmp_path))
    # Four folds of 24 clips and a copy of each, of which a fold leaves a quarter out; eight epochs.
    assert (plan.folds, plan.clip_passes_per_trial) == (4, 4 * 36 * 8)
    write_cache(tmp_path, subjects=4, clips_of_class=2, size=16, windows=3, dataset="windows")
    several = make_forecast(
        spec,
        shape_of(spec.model_copy(update={"cache": "windows"}), preset=None, cache=None, cache_root=tmp_path),
    )
    assert several.clips == plan.clips
    assert several.augmented_clips == 3 * plan.augmented_clips
    assert several.clip_passes_per_trial == 3 * plan.clip_passes_per_trial
    assert several.clip_set_gib == pytest.approx(3 * plan.clip_set_gib, rel=1e-3)
    with pytest.raises(CacheMismatch, match=r"none.*use --preset to plan on a published set"):
        shape_of(spec.model_copy(update={"cache": "none"}), preset=None, cache=None, cache_root=tmp_path)
    other = spec.model_copy(update={"training": TINY.model_copy(update={"frames": 5})})
    with pytest.raises(CacheMismatch, match=r"training\.frames is 5, the cache blobs/.* has 10"):
        shape_of(other, preset=None, cache="blobs", cache_root=tmp_path)


def test_ranges_are_taken_at_their_ends(small: tuple[StudySpec, Forecast]) -> None:
    spec = StudySpec.model_validate(
        {**small[0].model_dump(), "space": {"width": {"low": 2, "high": 6}, "epochs": [2, 4]}, "pruning": ()}
    )
    plan = make_forecast(spec, published_shape("demo"))
    assert {(cost.width, cost.epochs) for cost in plan.configurations} == {
        (width, epochs) for width in (2, 4, 6) for epochs in (2, 4)
    }
    assert plan.clip_passes == 12 * 140 * 4 * 3


def test_what_cannot_fit_is_refused(loso: Forecast) -> None:
    spec = get_preset("ckplus-loso")
    with pytest.raises(InvalidInput, match=r"training\.batch_size 30.*temporal_size 9.*GiB, more than T4"):
        with_devices(loso, spec, ["T4", "H200"])
    usual = with_devices(loso, spec, []).devices
    assert {device.device: device.fits for device in usual}["T4"] is False
    vast = loso.configurations[0]
    giant = Forecast(
        **{**vars(loso), "configurations": [ConfigurationCost(**{**vars(vast), "memory_gib": 500.0})]}
    )
    with pytest.raises(InvalidInput, match=r"takes 500\.0 GiB"):
        with_devices(giant, spec, [])
    with pytest.raises(NotFound, match="--gpu 'TPU' is unknown; known are T4"):
        find_gpus(["TPU"])


def test_hours_are_forecast_for_what_the_settings_allow(loso: Forecast) -> None:
    spec = get_preset("ckplus-loso")

    def rows(settings: ComputeSettings, *gpus: str) -> list[tuple[str, str, bool]]:
        devices = with_devices(loso, spec.model_copy(update={"compute": settings}), gpus).devices
        return [(each.device, each.precision, each.hours is not None) for each in devices]

    assert rows(ComputeSettings(), "H100") == [("H100", name, True) for name in ("bf16", "tf32", "fp32")]
    assert rows(ComputeSettings(precision="tf32"), "H100") == [("H100", "tf32", True)]
    assert rows(ComputeSettings(precision="bf16"), "H100") == [("H100", "bf16", True)]


def test_this_machine_s_gpu_comes_first(loso: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    devices = with_devices(loso, get_preset("ckplus-loso"), []).devices
    assert [(each.device, each.precision) for each in devices[:4]] == [
        ("L40S", "bf16"),
        ("L40S", "tf32"),
        ("L40S", "fp32"),
        ("T4", "fp32"),
    ]


def test_a_study_that_cannot_be_split_is_refused() -> None:
    spec = StudySpec.model_validate({**get_preset("demo").model_dump(), "protocol": {"kind": "kfold", "k": 11}})
    with pytest.raises(InvalidInput, match="11 folds need at least as many subjects, the cache has 10"):
        make_forecast(spec, published_shape("demo"))


def test_rules_that_are_blind_to_correct_clips_are_not_forecast(small: tuple[StudySpec, Forecast]) -> None:
    rule: dict[str, Any] = {"rule": "bound", "threshold": 0.9, "metric": "uar"}
    spec = StudySpec.model_validate({**small[0].model_dump(), "pruning": [rule]})
    plan = with_devices(make_forecast(spec, published_shape("demo")), spec, ["H100"])
    assert plan.folds_share_pruned is None
    assert plan.devices[0].hours_pruned is None
    assert small[1].folds_share_pruned is not None
    assert 0.5 < small[1].folds_share_pruned < 1


def test_a_measured_device_comes_first_and_speaks_for_other_gpus(small: tuple[StudySpec, Forecast]) -> None:
    spec, plan = small
    costs = [cost.useful_flop_per_clip for cost in plan.configurations]
    # A tenth of an H100's 67 TFLOP/s, whatever the configuration.
    speeds = {flops: 6.7e12 / flops for flops in (min(costs), max(costs))}
    measured = MeasuredSpeed(
        device="NVIDIA H100 80GB HBM3", precision="fp32", memory=None, clips_per_second=speeds
    )
    here, *others = with_devices(plan, spec, ["RTX-3090"], measured).devices
    assert [(each.precision, each.measured) for each in others] == [
        ("bf16", False),
        ("tf32", False),
        ("fp32", True),
    ]
    there = others[-1]
    assert (here.device, here.measured, here.utilisation) == ("NVIDIA H100 80GB HBM3", True, 0.1)
    assert (there.measured, there.utilisation) == (True, 0.1)
    assert there.hours / here.hours == pytest.approx(67 / 35.6, rel=0.01)  # type: ignore[operator]
    small_memory = MeasuredSpeed(device="cpu", precision="fp32", memory=2**20, clips_per_second=speeds)
    with pytest.raises(InvalidInput, match="more than cpu has"):
        with_devices(plan, spec, [], small_memory)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A100-SXM-64GB", "A100-40GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("cpu", None),
    ],
)
def test_gpus_are_known_by_torchs_names(device: str, name: str | None) -> None:
    gpu = gpu_of_device(device)
    assert (None if gpu is None else gpu.name) == name
    assert len({gpu.chip for gpu in GPUS}) == len(GPUS) - 2


@pytest.mark.parametrize(
    ("name", "architectures", "runs"),
    [
        ("V100-16GB", ["sm_75", "sm_80", "sm_90", "compute_90"], False),
        ("V100-16GB", ["sm_70", "sm_75"], True),
        ("A10G", ["sm_75", "sm_80"], True),
        ("L4", ["sm_80", "sm_90"], True),
        ("A100-40GB", ["sm_86", "sm_90"], False),
        ("H200", ["sm_80", "sm_90a"], True),
        ("B200", ["sm_80", "sm_90"], False),
        ("B200", ["sm_80", "compute_90"], True),
        ("B200", ["sm_100", "sm_120"], True),
        # A build without NVIDIA's architectures tells nothing about the workers.
        ("V100-16GB", [], True),
        ("V100-16GB", ["gfx90a"], True),
    ],
)
def test_which_gpus_a_build_of_torch_can_use(name: str, architectures: list[str], runs: bool) -> None:
    [gpu] = find_gpus([name])
    assert gpu.runs_kernels_of(architectures) == runs


def test_a_gpu_without_kernels_is_marked_and_not_ranked(
    small: tuple[StudySpec, Forecast], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    spec, plan = small
    plan = with_devices(plan, spec, ["V100-16GB", "T4"])
    assert [(device.device, device.kernels) for device in plan.devices] == [("T4", True), ("V100-16GB", False)]
    t4, v100 = plan.devices
    assert t4.hours is not None
    assert (v100.hours, v100.hours_per_trial, v100.hours_pruned, v100.utilisation) == (None,) * 4
    names = list(devices_table(plan).columns[0].cells)
    assert names == ["T4", "V100-16GB (torch here has no kernels for it)"]


def test_a_study_fits_nothing_if_only_a_gpu_without_kernels_would_hold_it(
    loso: Forecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    spec = get_preset("ckplus-loso")
    assert {device.device: device.fits for device in with_devices(loso, spec, ["V100-16GB"]).devices} == {
        "V100-16GB": True
    }
    with pytest.raises(InvalidInput, match=r"14\.7 GiB, more than T4 has"):
        with_devices(loso, spec, [])


def test_a_slice_is_a_fraction_of_its_gpu() -> None:
    [h200] = find_gpus(["H200"])
    [named] = find_gpus(["h200 MIG 1g.18gb"])
    part = gpu_of_device("NVIDIA H200 MIG 1g.18gb")
    assert part == named
    assert (part.name, part.capability) == ("H200 MIG 1g.18gb", (9, 0))
    assert (part.fp32, part.tf32, part.bf16) == (h200.fp32 / 7, h200.tf32 / 7, h200.bf16 / 7)  # type: ignore[operator]
    assert 15 < part.memory < 16
    half = gpu_of_device("NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    assert half is not None
    assert half.fp32 == pytest.approx(19.5 * 3 / 7)
    assert round(half.memory) == 36
    third = gpu_of_device("NVIDIA A100-SXM4-80GB MIG 1c.3g.40gb")
    assert third is not None
    assert third.fp32 == pytest.approx(19.5 / 7)
    assert third.memory == half.memory
    double = gpu_of_device("NVIDIA H100 80GB HBM3 MIG 1g.20gb+me")
    assert double is not None
    assert (double.share, round(double.memory)) == (1 / 7, 18)
    with pytest.raises(NotFound, match=r"'TPU MIG 1g\.5gb' is unknown.*such as 'H200 MIG 1g\.18gb'"):
        find_gpus(["TPU MIG 1g.5gb"])


def test_a_measured_slice_does_not_speak_for_whole_gpus(small: tuple[StudySpec, Forecast]) -> None:
    spec, plan = small
    costs = [cost.useful_flop_per_clip for cost in plan.configurations]
    speeds = {flops: 6.7e12 / flops for flops in (min(costs), max(costs))}
    measured = MeasuredSpeed(
        device="NVIDIA H200 MIG 1g.18gb", precision="fp32", memory=None, clips_per_second=speeds
    )
    spec = spec.model_copy(update={"compute": ComputeSettings(precision="fp32")})
    here, whole, other = with_devices(plan, spec, ["H200", "B200 MIG 1g.23gb"], measured).devices
    assert [device.measured for device in (here, whole, other)] == [True, False, True]
    assert [device.utilisation for device in (here, whole, other)] == pytest.approx([0.7, 0.4, 0.7])


def _chosen(**chosen: Any) -> dict[str, Any]:
    """A configuration of the demo's space."""
    return {**usual_configuration(get_preset("demo")), **chosen}


def test_enqueued_configurations_are_planned_themselves() -> None:
    wanted = [
        _chosen(temporal_size=5, second_conv_layer=True),
        _chosen(temporal_size=1, second_conv_layer=False, activation="Mish"),
    ]
    space = {**get_preset("demo").space.model_dump(), "second_conv_layer": [True, False]}
    base = {**get_preset("demo").model_dump(), "space": space, "pruning": ()}
    shape = published_shape("demo")
    drawn = make_forecast(StudySpec.model_validate({**base, "trials": 4}), shape)
    only = make_forecast(StudySpec.model_validate({**base, "trials": 2, "enqueue": wanted}), shape)
    both = make_forecast(StudySpec.model_validate({**base, "trials": 4, "enqueue": wanted}), shape)

    assert [(cost.temporal_size, cost.second_conv_layer) for cost in only.enqueued] == [(5, True), (1, False)]
    assert only.configurations == []
    assert (only.configuration["temporal_size"], only.configuration["second_conv_layer"]) == (5, True)
    large, light = only.enqueued
    assert large.pflop_per_trial == _cost(drawn, 5, True).pflop_per_trial
    assert only.pflop == pytest.approx(large.pflop_per_trial + light.pflop_per_trial, rel=1e-3)
    assert both.configurations == drawn.configurations
    assert both.pflop == pytest.approx(only.pflop + 2 * drawn.pflop_per_trial_mean, rel=1e-3)

    spec = StudySpec.model_validate({**base, "trials": 4, "enqueue": wanted})
    hours = [with_devices(plan, spec, ["H100"]).devices[0].hours_per_trial or 0 for plan in (only, drawn, both)]
    assert hours[2] == pytest.approx((hours[0] + hours[1]) / 2, rel=1e-3)
    trials = list(configurations_table(both).columns[0].cells)
    assert trials == ["0", "1", *["drawn"] * len(drawn.configurations)]
    # An enqueued configuration counts its own pooling layer, a drawn one the largest of the space.
    assert light.memory_gib < _cost(drawn, 1, False).memory_gib


def test_the_command_plans_an_enqueued_configuration() -> None:
    enqueued = json.dumps([_chosen(temporal_size=5)])
    settings = ["--set", "trials=1", "--set", "pruning=[]", "--set", f"enqueue={enqueued}"]
    answer = CliRunner().invoke(app, ["plan", "--preset", "demo", "--gpu", "T4", *settings, "--json"])
    planned = json.loads(answer.stdout)
    assert [cost["temporal_size"] for cost in planned["enqueued"]] == [5]
    assert planned["configurations"] == []
    assert planned["pflop"] == planned["enqueued"][0]["pflop_per_trial"]
    shown = CliRunner().invoke(app, ["plan", "--preset", "demo", "--gpu", "T4", *settings])
    assert "drawn" not in shown.stdout


def test_clips_that_a_device_does_not_hold_take_none_of_its_memory(loso: Forecast) -> None:
    def largest(memory: float, clip_set_gib: float, **given: Any) -> float:
        network = max(cost.memory_gib for cost in loso.configurations) - loso.clip_sets * loso.clip_set_gib
        cost = ConfigurationCost(**{**vars(loso.configurations[0]), "memory_gib": network + 2 * clip_set_gib})
        costs = StudyCosts(trials=1, enqueued=[], searched=[cost], clip_sets=2, clip_set_gib=clip_set_gib)
        return costs.largest_gib(memory, **given) - network

    assert largest(39, 1.0) == pytest.approx(2.0)
    # The second set finds less free memory than the first one.
    assert largest(39, 18.0) == pytest.approx(18.0)
    assert largest(39, 50.0) == pytest.approx(0.0)
    assert largest(39, 18.0, clips_share=0.25) == pytest.approx(0.0)


def test_this_device_is_measured(small: tuple[StudySpec, Forecast], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.forecast.calibration.CALIBRATION_SECONDS", 1.0)
    spec, plan = small
    determined = torch.are_deterministic_algorithms_enabled()
    try:
        measured = measure_device(spec, published_shape("demo"), plan, device="cpu")
    finally:
        torch.use_deterministic_algorithms(determined)
    assert measured.device == "cpu"
    costs = sorted(cost.useful_flop_per_clip for cost in plan.configurations)
    assert {costs[0], costs[-1]} <= set(measured.clips_per_second)
    assert len(measured.clips_per_second) == 3
    assert all(speed > 0 for speed in measured.clips_per_second.values())
    [here, *_] = with_devices(plan, spec, ["H100"], measured).devices
    assert here.hours is not None
    assert here.hours > 0


def test_a_device_that_is_too_small_says_what_to_lower(
    small: tuple[StudySpec, Forecast], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **given: object) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    spec, plan = small
    monkeypatch.setattr("worker.training.steps.F.cross_entropy", full)
    determined = torch.are_deterministic_algorithms_enabled()
    try:
        with pytest.raises(InvalidInput, match=r"training\.batch_size 8 .* memory of cpu; lower"):
            measure_device(spec, published_shape("demo"), plan, device="cpu")
    finally:
        torch.use_deterministic_algorithms(determined)
    monkeypatch.setattr("cli.forecast.calibration.available_memory", lambda: 2**20)
    with pytest.raises(InvalidInput, match=r"takes .* GiB, but this device has only 0\.0 GiB free; lower"):
        measure_device(spec, published_shape("demo"), plan, device="cpu")
