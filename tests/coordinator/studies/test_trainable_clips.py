"""What can be known of a study's clips before it runs is said when it is created, not by failed trials."""

from __future__ import annotations

import pytest

from coordinator.studies import life
from coordinator.studies.data_warnings import data_warnings
from services.contracts import StudySpec
from services.errors import InvalidInput
from tests.harness.coordinator_harness import Harness
from tests.harness.tiny_cache import write_clips


def write(
    harness: Harness,
    clips: list[tuple[str, str]],
    classes: tuple[str, ...],
    part_of: dict[str, str] | None = None,
) -> None:
    """Write a cache `other` with a clip of each (subject, class), and with a split if there is one."""
    named = [(f"{subject}_{label}_{index}", subject, label) for index, (subject, label) in enumerate(clips)]
    write_clips(harness.settings.cache_root, named, dataset="other", classes=classes, part_of=part_of)


def create(harness: Harness, protocol: str) -> tuple[str, ...]:
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "cache": "other",
            "protocol": {"kind": protocol} | ({"k": 2} if protocol == "kfold" else {}),
            "training": {"frames": 2, "frame_size": 16},
            "trials": 1,
            "pruning": [],
        }
    )
    with harness.sessions.begin() as session:
        study = life.create(session, spec, harness.settings.cache_root)
        return data_warnings(session, study, harness.settings.cache_root)


@pytest.fixture
def harness(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A harness with its own folder of caches."""
    return Harness(harness.engine, tmp_path_factory.mktemp("caches"))


@pytest.mark.parametrize("protocol", ["loso", "kfold", "all"])
@pytest.mark.parametrize("classes", [("happy",), ("happy", "sad")], ids=["one", "one of two has clips"])
def test_one_class_is_refused(harness: Harness, classes: tuple[str, ...], protocol: str) -> None:
    write(harness, [(subject, "happy") for subject in "abcd"], classes)
    with pytest.raises(InvalidInput, match=r"the clips have 1 class \(happy\), a study needs at least 2"):
        create(harness, protocol)


def test_a_fold_with_one_clip_to_train_on_is_refused(harness: Harness) -> None:
    write(harness, [("a", "happy"), ("b", "sad")], ("happy", "sad"))
    with pytest.raises(InvalidInput, match="leaves 1 of 2 clips to train on, at least 2 are needed"):
        create(harness, "loso")


def test_two_clips_to_train_on_are_enough(harness: Harness) -> None:
    write(harness, [(subject, label) for subject in "ab" for label in ("happy", "sad")], ("happy", "sad"))
    assert create(harness, "loso") == ()


@pytest.mark.parametrize("protocol", ["loso", "kfold"])
def test_a_class_of_one_subject_is_warned_of(harness: Harness, protocol: str) -> None:
    clips = [(subject, label) for subject in "abcd" for label in ("happy", "sad")]
    write(harness, [*clips, ("a", "fear"), ("a", "fear")], ("fear", "happy", "sad"))
    (warning,) = create(harness, protocol)
    assert "the clips of class 'fear' are all in one fold" in warning


def test_a_class_that_a_given_split_tests_and_does_not_train_is_warned_of(harness: Harness) -> None:
    clips = [(subject, label) for subject in "abc" for label in ("happy", "sad")]
    parts = {"a": "train", "b": "train", "c": "test"}
    write(harness, [*clips, ("c", "fear")], ("fear", "happy", "sad"), parts)
    (warning,) = create(harness, "holdout")
    assert warning == (
        "no clip of class 'fear' is in the part train, so those in the part test all count as wrong"
    )
