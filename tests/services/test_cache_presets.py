"""The presets that fit any clip cache, and what tells a study of the paper from its clips."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from services.balanced_augmentation import balance
from services.cache_presets import choose_preset, complete_spec, fit_preset
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.folds import AllClips, KFold, LeaveOneSubjectOut
from services.presets import CKPLUS_AUGMENTATION, clip_differences, get_preset
from tests.services.test_seeds_and_presets import CKPLUS_COUNTS, augmented


@dataclass
class Clips:
    """15 clips of three classes by five people, unless told otherwise."""

    dataset: str = "lab"
    class_counts: dict[str, int] = field(default_factory=lambda: {"happy": 5, "sad": 5, "calm": 5})
    subjects: int = 5
    frames: int = 8
    frame_size: int = 48

    @property
    def clips(self) -> int:
        return sum(self.class_counts.values())


CKPLUS = Clips(dataset="ckplus", class_counts=CKPLUS_COUNTS, subjects=118)


def fitted(given: dict[str, Any], clips: Clips) -> StudySpec:
    return StudySpec.model_validate(complete_spec({"cache": clips.dataset, **given}, clips))


# --- augmentation -------------------------------------------------------------------------------------------


def test_ckplus_becomes_nearly_the_papers_quasi_balanced_set() -> None:
    balanced = balance(CKPLUS_COUNTS)
    same = {name for name in CKPLUS_COUNTS if balanced.counts_for(name) == CKPLUS_AUGMENTATION.counts_for(name)}
    assert same == {"disgust", "fear", "happy", "sadness", "surprise"}
    grown = augmented(balanced, CKPLUS_COUNTS)
    assert max(grown.values()) / min(grown.values()) < 276 / 225, "more balanced than the paper's"
    assert sum(grown.values()) == pytest.approx(1722, rel=0.04)


@pytest.mark.parametrize(
    "counts", [{"a": 80, "b": 80}, {"a": 100, "b": 60, "c": 16}, {"a": 9, "b": 4}, {"a": 1, "b": 1}]
)
def test_classes_become_about_equally_large(counts: dict[str, int]) -> None:
    grown = augmented(balance(counts), counts)
    assert grown["a"] == 3 * counts["a"]
    assert max(grown.values()) <= 1.5 * min(grown.values())


def test_the_rarest_classes_have_a_limit_and_a_class_without_clips_no_copies() -> None:
    counts = {"common": 1000, "rare": 2, "none": 0}
    balanced = balance(counts)
    assert augmented(balanced, counts) == {"common": 3000, "rare": 40, "none": 0}
    assert set(balanced.counts) == {"common", "rare"}


# --- loso and kfold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subjects", "preset", "reason"),
    [
        (5, "loso", "because 5 subjects are not more than 20"),
        (20, "loso", "because 20 subjects"),
        (21, "kfold", "because 21 subjects are more than 20: loso would run 21 folds in each trial"),
    ],
)
def test_few_subjects_are_left_out_one_at_a_time(subjects: int, preset: str, reason: str) -> None:
    chosen, said = choose_preset(Clips(subjects=subjects))
    assert chosen == preset
    assert said.startswith(reason)


def test_a_small_set_gets_a_small_search() -> None:
    spec = fitted({}, Clips())
    assert (spec.name, spec.protocol, spec.trials, spec.feedback_delay) == (
        "lab-loso",
        LeaveOneSubjectOut(),
        20,
        2,
    )
    assert (spec.training.frames, spec.training.frame_size, spec.training.width) == (8, 48, 64)
    assert spec.training.augmentation == balance(Clips().class_counts)


def test_a_large_set_gets_the_papers_number_of_trials_and_of_folds() -> None:
    spec = fitted({}, Clips(class_counts={"a": 5000, "b": 4000}, subjects=300))
    assert (spec.name, spec.protocol, spec.trials, spec.feedback_delay) == ("lab-kfold", KFold(k=10), 800, 8)
    assert fitted({}, CKPLUS).trials == 327


@pytest.mark.parametrize(("subjects", "folds"), [(118, 10), (10, 10), (4, 4), (1, 2)])
def test_kfold_has_at_most_as_many_folds_as_subjects(subjects: int, folds: int) -> None:
    spec = StudySpec.model_validate({"cache": "lab", **fit_preset("kfold", Clips(subjects=subjects))})
    assert spec.protocol == KFold(k=folds)


def test_what_a_study_names_stays() -> None:
    spec = fitted(
        {"name": "mine", "trials": 6, "training": {"epochs": 4}, "protocol": {"kind": "kfold", "k": 3}}, Clips()
    )
    assert (spec.name, spec.trials, spec.protocol, spec.training.epochs) == ("mine", 6, KFold(k=3), 4)
    assert (spec.training.frame_size, spec.feedback_delay) == (48, 2)
    own = fitted({"training": {"augmentation": {}}, "feedback_delay": None}, Clips())
    assert not own.training.augmentation.counts
    assert own.feedback_delay is None
    assert fitted({"workers": 3}, Clips()).feedback_delay == 6


def test_clips_without_subjects_need_another_protocol_which_keeps_its_own_settings() -> None:
    nobody = Clips(subjects=0)
    with pytest.raises(InvalidInput, match="the clips of lab have no subjects"):
        fitted({}, nobody)
    spec = fitted({"protocol": {"kind": "all"}, "trials": 1, "pruning": []}, nobody)
    assert (spec.protocol, spec.training.frame_size) == (AllClips(), 48)


def test_a_long_or_odd_dataset_name_still_names_a_study() -> None:
    for dataset in ("x" * 80, f"{'x' * 49}--y"):
        assert fitted({}, Clips(dataset=dataset)).name.startswith("xxx")


def test_there_are_as_many_trials_as_enqueued_configurations_at_least() -> None:
    enqueue = [{"dropout": number / 100} for number in range(40)]
    assert fitted({"name": "s", "enqueue": enqueue}, Clips()).trials == 40
    assert fitted({"name": "s", "enqueue": enqueue[:3]}, Clips()).trials == 20


def test_a_field_that_is_wrong_is_left_to_the_spec() -> None:
    with pytest.raises(ValidationError, match="training"):
        fitted({"training": 5}, Clips())
    with pytest.raises(ValidationError, match="frames"):
        fitted({}, Clips(frames=300))


# --- the paper's clips --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"detector": "res10", "box": "frame"}, None),
        ({}, None),
        ({"detector": "yunet", "box": "frame"}, "made with detector yunet, the paper's with detector res10"),
        (
            {"detector": "yunet", "box": "median"},
            "made with detector yunet and box median, the paper's with detector res10 and box frame",
        ),
    ],
)
def test_clips_that_are_not_the_papers_are_told(settings: dict[str, str], words: str | None) -> None:
    said = clip_differences(get_preset("ckplus-best"), "ckplus", settings)
    assert (said is None) == (words is None)
    assert words is None or (said is not None and words in said and "--preset ckplus-loso" in said)


def test_a_study_that_is_not_the_papers_takes_any_clips() -> None:
    yunet = {"detector": "yunet", "box": "median"}
    assert clip_differences(get_preset("demo"), "ckplus", yunet) is None
    assert clip_differences(fitted({}, CKPLUS), "ckplus", yunet) is None
    assert clip_differences(get_preset("oulu-10fold"), "ravdess", yunet) is None
    said = clip_differences(get_preset("oulu-10fold"), "oulu-casia", yunet)
    assert said is not None
    assert "--preset oulu-10fold" in said
