"""Smaller settings for a study that takes too long: what changes first, and what a user's choice keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cli.forecast.dataset_shape import described_shape
from cli.forecast.hours_here import HoursHere, hours_here
from cli.forecast.smaller import make_smaller
from cli.spec_files import apply_setting
from services.cache_presets import complete_spec
from services.contracts import DatasetView, StudySpec
from services.folds import KFold

LARGE = DatasetView(
    dataset="large",
    fingerprint="f" * 64,
    classes=("a", "b"),
    class_counts={"a": 500, "b": 400},
    clips=900,
    subjects=60,
    frames=10,
    frame_size=112,
    channels=1,
)


def build(further: list[str], given: tuple[str, ...] = (), **fields: Any) -> StudySpec:
    data: dict[str, Any] = {"cache": "large", **fields}
    for setting in [*further, *given]:
        apply_setting(data, setting)
    return StudySpec.model_validate(complete_spec(data, LARGE))


def folds_of(spec: StudySpec) -> int:
    return spec.protocol.k if isinstance(spec.protocol, KFold) else LARGE.subjects


def machine(hours_of_the_whole: float) -> HoursHere:
    """A machine on which hours grow with trials, folds and the square of the width."""

    def hours(spec: StudySpec) -> float:
        return hours_of_the_whole * spec.trials / 800 * folds_of(spec) / 10 * (spec.training.width / 64) ** 2

    return HoursHere(device="this CPU", how="", on_cpu=True, of=hours)


@pytest.mark.parametrize(
    ("hours", "settings"),
    [
        (20, ()),
        (150, ("trials=100",)),
        (350, ("trials=100", "protocol={kind: kfold, k: 5}")),
        (
            1500,
            (
                "trials=100",
                "protocol={kind: kfold, k: 5}",
                "training.width=32",
                "training.learning_rate=0.0002",
            ),
        ),
        (
            1e9,
            (
                "trials=20",
                "protocol={kind: kfold, k: 5}",
                "training.width=8",
                "training.learning_rate=0.0008",
            ),
        ),
    ],
)
def test_no_more_is_made_smaller_than_needed(hours: float, settings: tuple[str, ...]) -> None:
    smaller = make_smaller(build, (), LARGE.subjects, machine(hours))
    assert smaller.settings == settings
    assert smaller.hours is not None
    assert smaller.hours == machine(hours).of(smaller.spec)
    assert smaller.hours < 24 or hours == 1e9
    # What follows from the trials follows from the fewer ones.
    assert smaller.spec.feedback_delay == (2 if smaller.spec.trials == 20 else 8)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("trials=700",), {"trials"}),
        (("protocol.kind=loso",), {"protocol"}),
        (("training.width=48",), {"training.width", "training.learning_rate"}),
        (("training={width: 48}",), {"training.width", "training.learning_rate"}),
        (("space={width: [16, 64], learning_rate: [0.1]}",), {"training.width", "training.learning_rate"}),
    ],
)
def test_what_the_user_chose_stays(given: tuple[str, ...], kept: set[str]) -> None:
    named = [setting.partition("=")[0] for setting in given]
    smaller = make_smaller(lambda further: build(further, given), named, LARGE.subjects, machine(1e9))
    changed = {setting.partition("=")[0] for setting in smaller.settings}
    assert changed == {"trials", "protocol", "training.width", "training.learning_rate"} - kept


@pytest.mark.parametrize(
    ("name", "device", "batch_size", "fits"),
    [
        ("NVIDIA H200", "one H200", 30, True),
        ("NVIDIA H200", "one H200", 4096, False),
        ("Tesla T4", "one T4", 30, True),
        ("Radeon VII", None, 30, None),
    ],
)
def test_a_gpu_is_forecast_by_its_data_sheet(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str | None, batch_size: int, fits: bool | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    spec = build([], ("space={temporal_size: [3]}", f"training.batch_size={batch_size}"))
    here = hours_here(spec, described_shape(LARGE))
    assert (here and here.device) == device
    if here is not None:
        assert not here.on_cpu
        assert (here.of(spec) is not None) == fits


def test_a_described_cache_has_its_clips_classes_and_subjects() -> None:
    shape = described_shape(LARGE)
    assert (len(shape.clips), shape.subjects, shape.classes, shape.channels) == (900, 60, ("a", "b"), 1)
    assert sum(clip.label == 0 for clip in shape.clips) == 500
    uneven = described_shape(LARGE.model_copy(update={"subjects": 59}))
    assert uneven.subjects == 59
