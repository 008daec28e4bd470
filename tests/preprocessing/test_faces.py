"""Face detection on a real photograph, and on what has no face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.detector_weights import RES10_LAYERS, RES10_WEIGHTS, YUNET, PinnedFile, find_weights
from preprocessing.faces import (
    FaceBox,
    FaceDetector,
    Image,
    Res10,
    YuNet,
    intersection_over_union,
    make_detector,
)
from services.errors import InvalidInput, NotFound

# read off the picture: between the eyes and the mouth of the astronaut
FACE_X, FACE_Y = 223, 118


@pytest.fixture(scope="module")
def photograph() -> Image:
    rgb: Image = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(rgb[..., ::-1])


@pytest.fixture(scope="module")
def yunet() -> YuNet:
    return YuNet()


@pytest.fixture(scope="module")
def res10() -> Res10:
    return Res10()


@pytest.fixture(params=["yunet", "res10"])
def either(request: pytest.FixtureRequest) -> FaceDetector:
    detector: FaceDetector = request.getfixturevalue(request.param)
    return detector


def assert_is_the_face(boxes: tuple[FaceBox, ...], scale: float = 1.0) -> None:
    assert len(boxes) == 1
    (box,) = boxes
    x, y = FACE_X * scale, FACE_Y * scale
    assert box.x < x < box.x + box.width
    assert box.y < y < box.y + box.height
    assert abs(box.x + box.width / 2 - x) < 15 * scale
    assert abs(box.y + box.height / 2 - y) < 15 * scale
    assert 60 * scale < box.width < 130 * scale
    assert 70 * scale < box.height < 160 * scale
    assert 0.5 <= box.confidence <= 1.0


def test_finds_the_one_face_of_a_photograph(photograph: Image, either: FaceDetector) -> None:
    assert_is_the_face(either.detect(photograph))


def test_a_gray_photograph_does_as_well(photograph: Image, either: FaceDetector) -> None:
    assert_is_the_face(either.detect(np.asarray(cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY), np.uint8)))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_boxes_are_in_pixels_of_the_given_image(photograph: Image, either: FaceDetector, scale: float) -> None:
    assert_is_the_face(
        either.detect(np.asarray(cv2.resize(photograph, None, fx=scale, fy=scale), np.uint8)), scale
    )


def test_sides_may_differ_much(photograph: Image, yunet: YuNet) -> None:
    wide = np.zeros((512, 1500, 3), np.uint8)
    wide[:, 900 : 900 + 512] = photograph
    (box,) = yunet.detect(wide)
    assert abs(box.x + box.width / 2 - (900 + FACE_X)) < 15
    assert abs(box.y + box.height / 2 - FACE_Y) < 15


def test_two_faces_come_largest_first(photograph: Image, yunet: YuNet) -> None:
    small = cv2.resize(photograph, (256, 256), interpolation=cv2.INTER_AREA)
    both = np.zeros((512, 768, 3), np.uint8)
    both[:256, :256] = small
    both[:, 256:] = photograph
    boxes = yunet.detect(both)
    assert len(boxes) == 2
    assert boxes[0].area > 2 * boxes[1].area
    assert boxes[0].x > 256 > boxes[1].x


@pytest.mark.parametrize(
    "shape", [(480, 640), (490, 640, 3), (1, 1), (1000, 1), (1, 1000), (10, 320), (320, 32)]
)
def test_nothing_in_a_blank_image(either: FaceDetector, shape: tuple[int, ...]) -> None:
    assert either.detect(np.full(shape, 128, np.uint8)) == ()


def test_an_image_is_judged_alone(photograph: Image, either: FaceDetector) -> None:
    before = either.detect(photograph)
    either.detect(np.full((320, 10), 3, np.uint8))
    assert either.detect(photograph) == before == make_detector(either.name).detect(photograph)


@pytest.mark.parametrize("make", [YuNet, Res10])
def test_a_strict_threshold_leaves_nothing(photograph: Image, make: type[YuNet | Res10]) -> None:
    assert make(score_threshold=1.0).detect(photograph) == ()


def test_res10_is_called_as_its_network_was_trained(photograph: Image, res10: Res10) -> None:
    # Written out as in OpenCV's own example for this model.
    net = cv2.dnn.readNetFromCaffe(str(find_weights(RES10_LAYERS)), str(find_weights(RES10_WEIGHTS)))
    wide = np.ascontiguousarray(np.hstack([photograph, photograph[:, :200]]))
    height, width = wide.shape[:2]
    net.setInput(cv2.dnn.blobFromImage(cv2.resize(wide, (300, 300)), 1.0, (300, 300), (104, 177, 123)))
    rows = [row for row in np.asarray(net.forward())[0, 0] if row[2] >= 0.5]
    expected = {
        tuple((row[3:7].astype(float) * [width, height, width, height]).astype(int).tolist()) for row in rows
    }
    found = res10.detect(wide)
    assert len(found) == 1
    assert {(b.x, b.y, b.x + b.width, b.y + b.height) for b in found} == expected


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.float32),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((2, 10, 10, 3), np.uint8),
        np.zeros((0, 10), np.uint8),
    ],
    ids=["float", "four channels", "a clip", "no pixels"],
)
def test_refuses_what_is_no_image(either: FaceDetector, image: Image) -> None:
    with pytest.raises(InvalidInput, match="image has"):
        either.detect(image)


@pytest.mark.parametrize("make", [YuNet, Res10])
@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_refuses_an_impossible_threshold(make: type[YuNet | Res10], threshold: float) -> None:
    with pytest.raises(InvalidInput, match="score_threshold is"):
        make(score_threshold=threshold)


@pytest.mark.parametrize("subject", [0, 1])
def test_yunet_gives_the_boxes_of_a_search_at_full_size(tmp_path: Path, subject: int) -> None:
    write_ckplus_tree(tmp_path, subjects=subject + 1, seed=subject)
    sequences = read_ckplus(tmp_path).sequences[-7:]
    plain = cv2.FaceDetectorYN.create(str(find_weights(YUNET)), "", (640, 490), 0.6)
    yunet = YuNet()
    for path in (sequence.frames[-1] for sequence in sequences):
        image = cv2.imread(str(path))
        assert image is not None
        rows = plain.detect(image)[1]
        x, y, width, height = max(rows.tolist(), key=lambda row: row[2] * row[3])[:4]
        expected = FaceBox(x=x, y=y, width=width, height=height, confidence=1.0)
        assert intersection_over_union(yunet.detect(np.asarray(image, np.uint8))[0], expected) >= 0.9


@pytest.mark.parametrize(("name", "weights"), [("yunet", YUNET), ("res10", RES10_WEIGHTS)])
def test_detectors_go_by_name(name: str, weights: PinnedFile) -> None:
    detector = make_detector(name)
    assert detector.name == name
    assert detector.weights_sha256 == weights.sha256
    assert find_weights(weights).name == weights.name


def test_weights_of_another_content_are_refused() -> None:
    other = replace(YUNET, sha256="0" * 64)
    with pytest.raises(InvalidInput, match=f"has SHA-256 {YUNET.sha256} and not 0000"):
        find_weights(other)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (replace(YUNET, distribution="no-such-distribution"), "which is not installed"),
        (replace(YUNET, name="other.onnx"), "has no file other.onnx"),
    ],
)
def test_missing_weights_are_told_with_advice(missing: PinnedFile, message: str) -> None:
    with pytest.raises(NotFound, match=f"{message}.*'preprocessing' extra"):
        find_weights(missing)


def test_an_unknown_detector_is_told_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'haar'.*yunet") as refused:
        make_detector("haar")
    assert refused.value.field == "detector"


def test_a_box_is_clipped_to_the_image() -> None:
    box = FaceBox(x=-5.2, y=90.4, width=30.0, height=20.0, confidence=0.9)
    image = np.zeros((100, 200), np.uint8)
    rows, columns = box.clipped(image_width=200, image_height=100)
    assert (rows, columns) == (slice(90, 100), slice(0, 25))
    assert image[rows, columns].shape == (10, 25)


def test_the_part_of_a_box_within_the_image() -> None:
    box = FaceBox(x=-5.5, y=90.25, width=30.0, height=20.0, confidence=0.9)
    assert box.within(image_width=200, image_height=100) == FaceBox(
        x=0.0, y=90.25, width=24.5, height=9.75, confidence=0.9
    )
    inside = FaceBox(x=5.5, y=9.25, width=30.0, height=20.0, confidence=0.9)
    assert inside.within(image_width=200, image_height=100) == inside
    assert replace(box, x=300.0).within(image_width=200, image_height=100) is None
    assert replace(box, x=-29.8).within(image_width=200, image_height=100) is None  # less than half a pixel


def test_a_box_beside_the_image_gives_no_pixels() -> None:
    box = FaceBox(x=300.0, y=-50.0, width=30.0, height=20.0, confidence=0.9)
    rows, columns = box.clipped(image_width=200, image_height=100)
    assert np.zeros((100, 200))[rows, columns].size == 0
