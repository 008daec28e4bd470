"""The synthetic set: what is written, that a real detector sees its faces, and what is never overwritten."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.datasets.ckplus import CLASSES, read_ckplus
from preprocessing.datasets.reader import Dataset
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import MARKER, write_ckplus_tree, write_synthetic_tree
from preprocessing.datasets.synthetic_motion import make_person, move_face
from preprocessing.faces import FaceBox, Image, make_detector
from services.errors import InvalidInput

SUBJECTS = 3


def read_gray(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image, np.uint8)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "set"
    write_ckplus_tree(path, subjects=SUBJECTS, seed=4)
    return path


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return read_ckplus(root)


def test_the_reader_finds_every_sequence(root: Path, dataset: Dataset) -> None:
    assert Counter(sequence.label for sequence in dataset.sequences) == dict.fromkeys(CLASSES, SUBJECTS)
    assert len({sequence.subject for sequence in dataset.sequences}) == SUBJECTS
    assert [skip.reason for skip in dataset.skipped] == ["no label file: its label folder is empty"]
    assert dataset.warnings == ()


def test_subject_ids_leave_gaps(dataset: Dataset) -> None:
    numbers = sorted({int(sequence.subject[1:]) for sequence in dataset.sequences})
    assert numbers[0] == 1
    assert numbers[-1] > len(numbers)


def test_the_number_of_a_sequence_does_not_tell_its_class(dataset: Dataset) -> None:
    first = {s.subject: s.label for s in dataset.sequences if s.clip_id.endswith("_001")}
    orders = [[s.label for s in dataset.sequences if s.subject == subject] for subject in first]
    assert orders[0] != orders[1] != orders[2]


def test_lengths_and_numbers_vary(dataset: Dataset) -> None:
    lengths = [len(sequence.frames) for sequence in dataset.sequences]
    assert min(lengths) in {8, 9}
    assert max(lengths) <= 16
    assert len(set(lengths)) > 3
    starts = {int(sequence.frames[0].stem.rsplit("_", 1)[1]) for sequence in dataset.sequences}
    assert 1 in starts
    assert len(starts) > 1


def test_label_files_look_like_the_genuine_ones(root: Path) -> None:
    texts = {path.read_text() for path in (root / "Emotion").rglob("*.txt")}
    assert texts == {f"   {code}.0000000e+00\n" for code in range(1, 8)}


def test_frames_are_gray_and_of_the_genuine_size(dataset: Dataset) -> None:
    image = read_gray(dataset.sequences[0].frames[0])
    assert image.shape == (490, 640)


def detected(dataset: Dataset) -> list[tuple[FaceBox, ...]]:
    """The faces that a real detector finds in each frame."""
    detector = make_detector("yunet")
    frames = [frame for sequence in dataset.sequences for frame in sequence.frames]
    return [detector.detect(np.asarray(cv2.imread(str(frame)), np.uint8)) for frame in frames]


def test_a_real_detector_finds_one_face_in_99_of_100_frames(dataset: Dataset) -> None:
    found = detected(dataset)
    assert sum(len(boxes) == 1 for boxes in found) >= 0.99 * len(found)
    assert all(150 < boxes[0].height < 400 for boxes in found if boxes)


# --- layout, classes, colour --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oulu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oulu") / "set"
    write_synthetic_tree(path, layout="oulu-casia", subjects=2, seed=4)
    return path


def test_a_set_in_the_layout_of_oulu_casia(oulu: Path) -> None:
    dataset = read_dataset("oulu-casia", oulu)
    assert Counter(sequence.label for sequence in dataset.sequences) == dict.fromkeys(dataset.classes, 2)
    assert dataset.skipped == ()
    assert dataset.warnings == ()
    assert dataset.sequences[0].frames[0] == oulu / "OriginalImg/VL/Strong/P001/Anger/000.jpeg"
    image = cv2.imread(str(dataset.sequences[0].frames[-1]))
    assert image is not None
    assert image.shape == (240, 320, 3)
    found = detected(dataset)
    assert sum(len(boxes) == 1 for boxes in found) >= 0.99 * len(found)


def test_colours_are_those_of_a_face(oulu: Path) -> None:
    """Where there is a face there is more red than blue."""
    path = read_dataset("oulu-casia", oulu).sequences[0].frames[-1]
    image = np.asarray(cv2.imread(str(path)), np.uint8)
    (box, *_) = make_detector("yunet").detect(image)
    rows, columns = box.clipped(image_width=320, image_height=240)
    blue, green, red = image[rows, columns].reshape(-1, 3).mean(axis=0)
    assert red > green > blue


def test_a_face_in_colour_is_the_gray_one_when_decoded_to_gray(root: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic_tree(tmp_path, subjects=SUBJECTS, seed=4, colour=True, progress=stop)
    one = Path("cohn-kanade-images/S001/001")
    for path in sorted((tmp_path / one).iterdir())[:3]:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.shape == (490, 640, 3)
        as_gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(int)
        assert np.abs(as_gray - read_gray(root / one / path.name)).mean() < 2


def test_some_classes(tmp_path: Path) -> None:
    write_synthetic_tree(tmp_path, subjects=2, classes=["happy", "anger"], clips_per_class=2)
    found = Counter(sequence.label for sequence in read_ckplus(tmp_path).sequences)
    assert found == {"anger": 4, "happy": 4}


def test_oulu_casia_when_gray_is_one_channel(tmp_path: Path) -> None:
    write_synthetic_tree(tmp_path, layout="oulu-casia", subjects=1, classes=["fear"], colour=False)
    assert read_gray(next(tmp_path.rglob("*.jpeg"))).shape == (240, 320)


def test_faces_move_from_the_first_frame_to_the_last(dataset: Dataset) -> None:
    for sequence in dataset.sequences:
        first, last = read_gray(sequence.frames[0]), read_gray(sequence.frames[-1])
        assert np.abs(first.astype(int) - last).mean() > 1


@pytest.mark.parametrize("label", CLASSES)
def test_a_fade_takes_the_face_back_to_rest_from_the_same_peak(label: str) -> None:
    person = make_person(np.random.default_rng(1), 0.0)
    peak, half, gone = (
        move_face(np.random.default_rng(2), person, label, 16, 0.0, fade) for fade in (0.0, 0.5, 1.0)
    )
    idle = 0.11  # how far parts wander by themselves
    assert np.abs(gone[-1] - gone[0]).max() < idle
    assert np.abs(half[-1] - (peak[-1] + peak[0]) / 2).max() < idle
    for fading in (half, gone):
        assert min(np.abs(pose - peak[-1]).max() for pose in fading) < 0.25


def test_without_a_fade_the_marker_is_that_of_a_set_from_before_there_was_one(root: Path) -> None:
    assert "fade" not in json.loads((root / MARKER).read_text())


def test_the_same_settings_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_ckplus_tree(tmp_path / "again", subjects=SUBJECTS, seed=4)
    assert digests(tmp_path / "again") == digests(root)


def test_another_seed_gives_other_faces(root: Path, tmp_path: Path) -> None:
    write_ckplus_tree(tmp_path / "set", subjects=1, seed=5)
    frames = [
        {digest for name, digest in digests(tree).items() if name.endswith(".png")}
        for tree in (root, tmp_path / "set")
    ]
    assert not frames[0] & frames[1]


def test_a_complete_tree_is_left_as_it_is(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    calls: list[tuple[int, int]] = []
    write_ckplus_tree(root, subjects=SUBJECTS, seed=4, progress=lambda done, total: calls.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert calls == []


def test_progress_counts_sequences(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_ckplus_tree(tmp_path, subjects=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_other_settings_are_refused(root: Path) -> None:
    before = digests(root)
    with pytest.raises(InvalidInput, match="other settings") as refused:
        write_ckplus_tree(root, subjects=SUBJECTS, seed=5)
    assert str(root) in refused.value.message
    assert digests(root) == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        write_ckplus_tree(tmp_path, subjects=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(InvalidInput, match="is a file"):
        write_ckplus_tree(tmp_path / "set", subjects=1)


def test_an_interrupted_tree_is_completed(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ckplus_tree(tmp_path / "cut", subjects=1, progress=stop)
    assert not (tmp_path / "cut" / MARKER).exists()
    with pytest.raises(InvalidInput, match="other settings"):
        write_ckplus_tree(tmp_path / "cut", subjects=2)
    write_ckplus_tree(tmp_path / "cut", subjects=1)
    write_ckplus_tree(tmp_path / "whole", subjects=1)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert json.loads((tmp_path / "cut" / MARKER).read_text())["subjects"] == 1


def test_a_lost_frame_is_written_again(tmp_path: Path) -> None:
    write_ckplus_tree(tmp_path, subjects=1)
    before = digests(tmp_path)
    next((tmp_path / "cohn-kanade-images").rglob("*.png")).unlink()
    write_ckplus_tree(tmp_path, subjects=1)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subjects", 0),
        ("subjects", 401),
        ("clips_per_class", 0),
        ("seed", -1),
        ("difficulty", -0.1),
        ("difficulty", 1.1),
        ("difficulty", float("nan")),
        ("fade", -0.1),
        ("fade", 1.1),
        ("fade", float("nan")),
        ("layout", "fer2013"),
        ("classes", ["happy", "bored"]),
        ("classes", []),
    ],
)
def test_values_out_of_range(tmp_path: Path, field: str, value: object) -> None:
    settings = {field: value}
    with pytest.raises(InvalidInput, match=f"^{field} (is|holds) ") as refused:
        write_synthetic_tree(tmp_path / "set", **settings)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert not (tmp_path / "set").exists()


def test_oulu_casia_has_room_for_one_clip_of_a_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="clips_per_class is 2; the layout oulu-casia has room for 1"):
        write_synthetic_tree(tmp_path / "set", layout="oulu-casia", clips_per_class=2)
    with pytest.raises(InvalidInput, match="classes holds 'contempt'"):
        write_synthetic_tree(tmp_path / "set", layout="oulu-casia", classes=["contempt"])
    assert not (tmp_path / "set").exists()
