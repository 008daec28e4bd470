"""What a study will cost: against the arithmetic of the paper's search, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.forecast.calibration import measure_device
from cli.forecast.costs import ConfigurationCost
from cli.forecast.dataset_shape import published_shape, shape_of
from cli.forecast.devices import DeviceForecast, MeasuredSpeed
from cli.forecast.forecast import Forecast, make_forecast, with_devices
from cli.forecast.gpus import GPUS, find_gpus, gpu_of_device
from cli.main import app
from services.contracts import StudySpec
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
    [device] = loso.devices
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
        ("demo", 70, 210, 210 * 4 * 8),
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
    assert plan.clip_passes == 10 * 210 * 4 * 3


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
    measured = MeasuredSpeed(device="NVIDIA H100 80GB HBM3", memory=None, clips_per_second=speeds)
    here, there = with_devices(plan, spec, ["V100-16GB"], measured).devices
    assert (here.device, here.measured, here.utilisation) == ("NVIDIA H100 80GB HBM3", True, 0.1)
    assert (there.measured, there.utilisation) == (True, 0.1)
    assert there.hours / here.hours == pytest.approx(67 / 15.7, rel=0.01)  # type: ignore[operator]
    small_memory = MeasuredSpeed(device="cpu", memory=2**20, clips_per_second=speeds)
    with pytest.raises(InvalidInput, match="more than cpu has"):
        with_devices(plan, spec, [], small_memory)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-40GB"),
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
