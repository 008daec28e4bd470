"""A clip from one sequence: boxes, few faces, colours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.clips import BoxChoice, ClipSettings, DroppedClip, FaceClip, FewFaces, apply_clahe, make_clip
from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.reader import FrameSequence
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.faces import YuNet
from preprocessing.frame_sampling import FrameSampling
from services.errors import InvalidInput

SETTINGS = ClipSettings(frame_size=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    write_ckplus_tree(root, subjects=1, difficulty=0.2)
    return root


@pytest.fixture(scope="module")
def yunet() -> YuNet:
    return YuNet()


@pytest.fixture
def sequence(root: Path) -> FrameSequence:
    return max(read_ckplus(root).sequences, key=lambda sequence: len(sequence.frames))


@pytest.fixture
def blank(root: Path) -> Path:
    path = root / "blank.png"
    cv2.imwrite(str(path), np.full((490, 640), 90, np.uint8))
    return path


def with_faces(sequence: FrameSequence, blank: Path, count: int) -> FrameSequence:
    """The last ten frames, of which the first `count` show a face."""
    last = sequence.frames[-10:]
    return replace(sequence, frames=(*last[:count], *[blank] * (10 - count)))


def clip_of(sequence: FrameSequence, root: Path, yunet: YuNet, settings: ClipSettings = SETTINGS) -> FaceClip:
    made = make_clip(sequence, settings=settings, detector=yunet)
    assert isinstance(made, FaceClip)
    return made


def test_a_clip_with_too_few_faces_is_dropped_with_the_numbers(
    sequence: FrameSequence, blank: Path, root: Path, yunet: YuNet
) -> None:
    made = make_clip(with_faces(sequence, blank, 4), settings=SETTINGS, detector=yunet)
    assert made == DroppedClip(
        clip_id=sequence.clip_id,
        reason="a face in only 4 of its last 10 frames, a smaller share than 0.5 (min_face_share)",
    )
    kept = clip_of(with_faces(sequence, blank, 5), root, yunet)
    assert kept.record.flags == ("no face in 5 of 10 frames",)


def test_a_clip_with_too_few_faces_is_kept_and_flagged_when_asked(
    sequence: FrameSequence, blank: Path, root: Path, yunet: YuNet
) -> None:
    keep = replace(SETTINGS, few_faces=FewFaces.KEEP)
    few = clip_of(with_faces(sequence, blank, 1), root, yunet, keep)
    assert few.record.flags == ("no face in 9 of 10 frames (too few)",)
    assert few.record.boxes[1:] == (None,) * 9
    none = clip_of(with_faces(sequence, blank, 0), root, yunet, keep)
    assert none.record.flags == ("no face in any of 10 frames: whole pictures are kept",)
    assert (none.plain == 90).all()


def test_the_median_box_crops_all_frames_alike(sequence: FrameSequence, root: Path, yunet: YuNet) -> None:
    own = clip_of(sequence, root, yunet)
    median = clip_of(sequence, root, yunet, replace(SETTINGS, box=BoxChoice.MEDIAN))
    assert median.record == own.record  # the index keeps what was found in each frame
    edges = [(x, y, x + w, y + h) for x, y, w, h in (box for box in own.record.boxes if box is not None)]
    left, top, right, bottom = np.median(edges, axis=0)
    for crop, path in zip(median.plain, sequence.frames[-10:], strict=True):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        face = image[round(top) : round(bottom), round(left) : round(right)]
        expected = cv2.resize(face, (32, 32), interpolation=cv2.INTER_AREA).astype(np.int16)
        assert np.abs(expected - crop).mean() < 4  # boxes of the record are rounded
    assert not np.array_equal(median.plain, own.plain)


def test_a_passer_by_is_told_and_not_followed(
    sequence: FrameSequence, root: Path, yunet: YuNet, tmp_path: Path
) -> None:
    frames = []
    for number, path in enumerate(sequence.frames[-10:]):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        # In one frame the same face stands beside, larger, in a picture twice as wide.
        beside = np.full_like(image, 90) if number != 4 else np.asarray(cv2.resize(image, None, fx=1.2, fy=1.2))
        beside = beside[: image.shape[0], 60 : 60 + image.shape[1]]
        frames.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(frames[-1]), np.hstack([image, beside]))
    made = clip_of(replace(sequence, frames=tuple(frames)), tmp_path, yunet)
    assert made.record.flags == ("several faces in 1 of 10 frames",)
    assert all(box is not None and box[0] + box[2] < 640 for box in made.record.boxes)


def test_a_face_mostly_beyond_the_edge_counts_by_what_is_in_the_picture(
    sequence: FrameSequence, root: Path, yunet: YuNet, tmp_path: Path
) -> None:
    image = cv2.imread(str(sequence.frames[-1]), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    (face,) = yunet.detect(np.asarray(image, np.uint8))
    larger = cv2.resize(image, None, fx=1.15, fy=1.15)[: image.shape[0]]
    # Of the larger face only the left 70 % are left.
    path = tmp_path / "1.png"
    cv2.imwrite(str(path), np.hstack([image, larger[:, : int(1.15 * (face.x + 0.7 * face.width))]]))
    record = clip_of(replace(sequence, frames=(path,)), tmp_path, yunet).record
    assert record.flags == (
        "only 1 of 10 frames; the last one is repeated",
        "several faces in 1 of 1 frames",
    )
    box = record.boxes[0]
    assert box is not None
    assert box[0] + box[2] < image.shape[1]


def test_colours_are_kept_as_red_green_blue(
    sequence: FrameSequence, root: Path, yunet: YuNet, tmp_path: Path
) -> None:
    path = tmp_path / "red.png"
    gray = cv2.imread(str(sequence.frames[-1]), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    cv2.imwrite(str(path), np.stack([gray // 2, gray // 2, gray], axis=-1))
    red = replace(sequence, frames=(path,))
    made = make_clip(red, settings=SETTINGS, detector=yunet, colour=True)
    assert isinstance(made, FaceClip)
    assert made.plain.shape == made.clahe.shape == (10, 32, 32, 3)
    assert made.plain[..., 0].mean() > 1.5 * made.plain[..., 2].mean()


def test_clahe_of_a_colour_picture_changes_its_lightness_alone() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(60, 120, (2, 32, 32, 3), np.uint8)
    lab_before, lab_after = (
        np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in each]).astype(int)
        for each in (frames, apply_clahe(frames, 2.0, 8))
    )
    assert np.abs(lab_after - lab_before)[..., 0].mean() > 5
    assert np.abs(lab_after - lab_before)[..., 1:].mean() < 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_face_share", 1.5),
        ("min_face_share", float("nan")),
        ("frames", 0),
        ("frame_size", 8),
        ("windows", 0),
        ("windows", 2),  # of the last frames
    ],
)
def test_settings_out_of_range_are_refused_by_the_name_of_their_option(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is {value}") as refused:
        ClipSettings(**{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field


def test_settings_are_read_from_a_manifest() -> None:
    settings = ClipSettings(min_face_share=0.25, box=BoxChoice.MEDIAN, few_faces=FewFaces.KEEP, frames=4)
    stored = {**settings.as_dict(), "reader": {"name": "videos"}}
    assert ClipSettings.from_dict(stored) == settings
    assert ClipSettings.from_dict({"least_faces": 0.75}) == ClipSettings(min_face_share=0.75)
    windows = ClipSettings(frame_sampling=FrameSampling.UNIFORM, windows=3)
    assert ClipSettings.from_dict(json.loads(json.dumps(windows.as_dict()))) == windows


def test_settings_that_older_caches_lack_are_stored_only_if_they_are_not_the_defaults() -> None:
    assert not {"frame_sampling", "windows"} & ClipSettings().as_dict().keys()
    assert ClipSettings(frame_sampling=FrameSampling.MIDDLE).as_dict()["frame_sampling"] == "middle"


def test_one_face_is_followed_through_all_windows(
    sequence: FrameSequence, blank: Path, root: Path, yunet: YuNet
) -> None:
    """A frame without a face gets the box of the nearest frame that was chosen, also of another window."""
    settings = replace(SETTINGS, frames=2, frame_sampling=FrameSampling.UNIFORM, windows=2)
    last = sequence.frames[-4:]
    made = clip_of(replace(sequence, frames=(last[0], blank, last[2], blank)), root, yunet, settings)
    assert [Path(name).name for name in made.record.frames] == [
        last[0].name,
        last[2].name,
        blank.name,
        blank.name,
    ]
    assert [box is None for box in made.record.boxes] == [False, False, True, True]
    assert made.record.flags == ("no face in 2 of 4 frames",)
    assert made.plain.shape == made.clahe.shape == (4, 32, 32)
    assert (made.plain[2:] == 90).all()
    few = make_clip(replace(sequence, frames=(last[0], blank, blank, blank)), settings=settings, detector=yunet)
    assert isinstance(few, DroppedClip)
    assert few.reason.startswith("a face in only 1 of its chosen 4 frames")


@pytest.mark.parametrize("sampling", [FrameSampling.UNIFORM, FrameSampling.MIDDLE])
def test_a_short_sequence_repeats_its_last_frame_in_every_window(
    sequence: FrameSequence, root: Path, yunet: YuNet, sampling: FrameSampling
) -> None:
    settings = replace(SETTINGS, frames=4, frame_sampling=sampling, windows=2)
    last = sequence.frames[-3:]
    made = clip_of(replace(sequence, frames=last), root, yunet, settings)
    assert made.record.frames == (*(path.name for path in last), last[-1].name) * 2
    assert made.record.repeated == 1
    assert made.record.flags == ("only 3 of 4 frames; the last one is repeated",)
    assert (made.plain[:4] == made.plain[4:]).all()
