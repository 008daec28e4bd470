"""Emotions over the time of a video: on small videos of a real photograph, whose face has a known place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from typer.testing import CliRunner

from cli.main import app
from preprocessing.clips import ClipSettings, FaceClip, make_clip
from preprocessing.datasets.reader import FrameSequence
from preprocessing.faces import FaceBox, Image, YuNet
from preprocessing.frame_sampling import FrameSampling
from services.clip_cache import open_cache
from services.clip_cache_writer import CacheWriter
from services.contracts import Augmentation, FoldResult, FoldTask, TrainingSettings
from services.errors import FoldwiseError, InvalidInput, NotFound
from services.model_card import ModelCard, describe, input_text
from services.model_catalogue import add_model
from tests.cli.models.test_export_onnx import add_untrained
from tests.harness.fold_tasks import assign
from worker.inference.annotated_video import GREEN, annotated, write_annotated
from worker.inference.predict import Predictor, Window, clip_settings
from worker.training.clips import network_input
from worker.training.fit import train_model
from worker.training.pretrained import open_model, pack
from worker.training.training_device import TrainingDevice

FACE = FaceBox(x=177, y=66, width=92, height=123, confidence=1.0)
"""In the photograph below."""

CPU = torch.device("cpu")
SMALL = TrainingSettings(width=1, frame_size=16, frames=10)


@pytest.fixture(scope="module")
def photograph() -> Image:
    """An astronaut, 256 x 448 pixels of BGR."""
    rgb: Image = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return np.ascontiguousarray(picture[:256, :448])


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    root = tmp_path_factory.mktemp("models")
    return root, add_untrained(root, SMALL, temporal_size=1, clahe=True, normalization=True)


@pytest.fixture(scope="module")
def predictor(catalogue: tuple[Path, ModelCard]) -> Predictor:
    return Predictor(*open_model(catalogue[0], catalogue[1].id), CPU)


def write_video(path: Path, frames: int, picture: Callable[[int], Image]) -> Path:
    height, width = picture(0).shape[:2]
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25, (width, height))
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


def read_pictures(path: Path) -> list[Image]:
    capture = cv2.VideoCapture(str(path))
    pictures: list[Image] = []
    while True:
        there, picture = capture.read()
        if not there:
            capture.release()
            return pictures
        pictures.append(np.asarray(picture, np.uint8))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, photograph: Image) -> Path:
    """23 frames in which the face moves to the right by two pixels a frame."""
    return write_video(
        tmp_path_factory.mktemp("videos") / "face.mp4",
        23,
        lambda number: np.roll(photograph, 2 * number, axis=1),
    )


def test_windows_follow_the_stride_and_end_with_the_video(predictor: Predictor, video: Path) -> None:
    found = predictor.predict(video, stride=5)
    assert [(w.first_frame, w.last_frame) for w in found.windows] == [(0, 9), (5, 14), (10, 19), (13, 22)]
    assert [w.start for w in found.windows] == pytest.approx([0, 0.2, 0.4, 0.52])
    assert found.frames == 23
    for window in found.windows:
        assert window.probabilities is not None
        assert sum(window.probabilities.values()) == pytest.approx(1, abs=1e-3)
        assert window.label == max(window.probabilities, key=window.probabilities.__getitem__)
        assert window.frames_with_face == 10


def test_the_box_sits_on_the_face(predictor: Predictor, video: Path) -> None:
    boxes = predictor.predict(video, stride=10).boxes
    assert sorted(boxes) == list(range(23))
    for number, box in boxes.items():
        middle = (box.x + box.width / 2 - 2 * number, box.y + box.height / 2)
        assert middle == pytest.approx((FACE.x + FACE.width / 2, FACE.y + FACE.height / 2), abs=15)
        assert 0.6 * FACE.area < box.area < 1.6 * FACE.area


def test_a_clip_is_made_as_for_training(
    predictor: Predictor, catalogue: tuple[Path, ModelCard], tmp_path: Path, photograph: Image
) -> None:
    path = write_video(tmp_path / "ten.mp4", 10, lambda number: np.roll(photograph, number, axis=1))
    sequence = FrameSequence(clip_id="c", subject="s", label="right", source="ten.mp4", video=path)
    card, model = open_model(catalogue[0], catalogue[1].id)
    clip = make_clip(sequence, settings=clip_settings(card), detector=YuNet())
    assert isinstance(clip, FaceClip)
    with torch.inference_mode():
        logits = model(network_input(torch.from_numpy(clip.clahe)[None], normalization=True))
    expected = torch.softmax(logits.double(), dim=1)[0].tolist()
    [window] = predictor.predict(path, stride=5).windows
    assert window.probabilities is not None
    assert list(window.probabilities.values()) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, photograph: Image) -> dict[str, Path]:
    """A video of 14 frames for each of two classes of three people: the face moves, or becomes brighter."""
    root = tmp_path_factory.mktemp("people")

    def picture(label: str, person: int) -> Callable[[int], Image]:
        darker = (photograph * (1 - 0.2 * person)).astype(np.uint8)
        if label == "moves":
            return lambda number: np.roll(darker, 3 * number, axis=1)
        return lambda number: cv2.convertScaleAbs(darker, alpha=1 + 0.02 * number).astype(np.uint8)

    return {
        f"p{person}/{label}": write_video(root / f"{label}{person}.mp4", 14, picture(label, person))
        for person in range(3)
        for label in ("brighter", "moves")
    }


@pytest.fixture(
    scope="module",
    params=[("uniform", 2), ("middle", 2), pytest.param(("middle", 1), marks=pytest.mark.long)],
    ids=lambda it: f"{it[0]}-{it[1]}",
)
def of_windows(
    request: pytest.FixtureRequest, videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Predictor, FoldResult, FoldTask, Path]:
    """A model trained on windows of these videos, and the result of its training, which tests all of them."""
    sampling, windows = request.param
    settings = ClipSettings(frames=4, frame_size=16, frame_sampling=FrameSampling(sampling), windows=windows)
    root = tmp_path_factory.mktemp("windows")
    writer = CacheWriter(root, "people", "a" * 64)
    for clip_id, path in videos.items():
        person, label = clip_id.split("/")
        sequence = FrameSequence(clip_id=clip_id, subject=person, label=label, source=path.name, video=path)
        clip = make_clip(sequence, settings=settings, detector=YuNet())
        assert isinstance(clip, FaceClip)
        writer.add(clip.record, clip.plain, clip.clahe)
    classes, stored = ("brighter", "moves"), settings.as_dict()
    writer.finish(clip_ids=list(videos), classes=classes, settings=stored, tools={}, skipped={}, warnings=())
    cache = open_cache(root / "people" / ("a" * 64))
    # Enough steps for the windows of a video to get different probabilities.
    training = TrainingSettings(
        width=2,
        frames=4,
        frame_size=16,
        epochs=20,
        batch_size=4,
        learning_rate=0.01,
        bn_momentum=0.5,
        augmentation=Augmentation(counts={}),
    )
    task = assign(cache, training, clahe=True, normalization=True).model_copy(
        update={
            "dataset": "people",
            "fingerprint": "a" * 64,
            "classes": classes,
            "test_clips": tuple(sorted(videos)),
            "trains_on_all": True,
        }
    )
    result, state = train_model(task, cache, TrainingDevice(CPU), revision=None, on_step=lambda _: None)
    labels = tuple(classes.index(clip_id.split("/")[1]) for clip_id in task.test_clips)
    card = add_model(root / "models", "people", pack(state), describe(task, cache.manifest, labels, result))
    return Predictor(*open_model(root / "models", card.id), CPU), result, task, root / "models"


def test_a_video_is_predicted_as_its_study_tests_it(
    of_windows: tuple[Predictor, FoldResult, FoldTask, Path], videos: dict[str, Path]
) -> None:
    predictor, result, task, _ = of_windows
    settings = clip_settings(predictor.card)
    last = result.epochs[-1]
    spreads = []
    for clip_id, predicted, tested in zip(
        task.test_clips, last.predicted, last.probabilities or (), strict=True
    ):
        found = predictor.predict(videos[clip_id], stride=1)
        assert found.whole is not None
        assert found.whole.probabilities is not None
        assert list(found.whole.probabilities.values()) == pytest.approx(tested, abs=1e-4)
        assert found.whole.label == task.classes[predicted]
        assert [(window.first_frame, window.last_frame) for window in found.windows] == [
            (window[0], window[-1]) for window in settings.sample(14)
        ]
        assert (found.frames, found.whole.frames_with_face) == (14, len(found.boxes))
        assert set(found.boxes) == {number for window in settings.sample(14) for number in window}
        each = np.array([list((window.probabilities or {}).values()) for window in found.windows])
        assert list(found.whole.probabilities.values()) == pytest.approx(each.mean(axis=0), abs=2e-4)
        spreads.append(np.ptp(each, axis=0).max())
    assert len(found.windows) == 1 or max(spreads) > 0.01


def test_the_whole_video_is_written_as_a_row_and_into_every_frame(
    of_windows: tuple[Predictor, FoldResult, FoldTask, Path], videos: dict[str, Path], tmp_path: Path
) -> None:
    predictor, _, _, models = of_windows
    video = videos["p1/moves"]
    arguments = ["predict", "people", str(video), "--models", str(models), "--device", "cpu"]
    answer = CliRunner().invoke(app, [*arguments, "--csv", str(tmp_path / "out.csv"), "--json"])
    assert answer.exit_code == 0, answer.output
    (found,) = json.loads(answer.stdout)
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["label"] == found["whole"]["label"]
    assert float(row["moves"]) == found["whole"]["probabilities"]["moves"]
    several = len(found["windows"]) > 1
    assert ("mean of 2" in CliRunner().invoke(app, arguments).stdout) == several

    prediction = predictor.predict(video)
    write_annotated(video, prediction, tmp_path / "out.mp4")
    assert len(read_pictures(tmp_path / "out.mp4")) == 14
    assert ("the mean of theirs" in input_text(predictor.card)) == several
    assert predictor.card.preprocessing["frame_sampling"] in input_text(predictor.card)


def test_a_video_without_a_face_has_no_label_as_a_whole(
    of_windows: tuple[Predictor, FoldResult, FoldTask, Path], tmp_path: Path
) -> None:
    blank = write_video(tmp_path / "blank.mp4", 14, lambda number: np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(InvalidInput, match=r"no face was found in .*blank.mp4: in none of its \d windows of 4"):
        of_windows[0].predict(blank)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InvalidInput, match="is not a readable video"):
        of_windows[0].predict(tmp_path / "text.mp4")


def test_a_short_video_repeats_its_last_frame_as_for_training(
    predictor: Predictor, catalogue: tuple[Path, ModelCard], tmp_path: Path, photograph: Image
) -> None:
    path = write_video(tmp_path / "six.mp4", 6, lambda number: np.roll(photograph, number, axis=1))
    sequence = FrameSequence(clip_id="c", subject="s", label="right", source="six.mp4", video=path)
    card, model = open_model(catalogue[0], catalogue[1].id)
    clip = make_clip(sequence, settings=clip_settings(card), detector=YuNet())
    assert isinstance(clip, FaceClip)
    with torch.inference_mode():
        logits = model(network_input(torch.from_numpy(clip.clahe)[None], normalization=True))
    found = predictor.predict(path, stride=5)
    [window] = found.windows
    assert (window.first_frame, window.last_frame, found.frames) == (0, 5, 6)
    assert window.probabilities is not None
    expected = torch.softmax(logits.double(), dim=1)[0].tolist()
    assert list(window.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    assert found.flags == clip.record.flags == ("only 6 of 10 frames; the last one is repeated",)


def test_a_damaged_video_is_flagged_as_for_training(
    predictor: Predictor, catalogue: tuple[Path, ModelCard], video: Path, tmp_path: Path
) -> None:
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 300] = bytes(300)
    path = tmp_path / "face.mp4"
    path.write_bytes(content)
    sequence = FrameSequence(clip_id="c", subject="s", label="right", source="face.mp4", video=path)
    clip = make_clip(sequence, settings=clip_settings(catalogue[1]), detector=YuNet())
    assert isinstance(clip, FaceClip)
    lost, damage = (flag for flag in predictor.predict(path, stride=5).flags if "frame" in flag)
    assert lost == "face.mp4 cannot be decoded at frame 12"
    assert "face.mp4 is damaged at frames 13 to 22, or these follow a damaged frame" in clip.record.flags
    assert damage == "face.mp4 is damaged at frames 11, 13 to 22, or these follow a damaged frame"
    shown = CliRunner().invoke(app, ["predict", catalogue[1].id, str(path), "--models", str(catalogue[0])])
    assert f"flagged: {damage}" in shown.stdout


def test_a_folder_of_images_is_a_video(
    predictor: Predictor, video: Path, photograph: Image, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(23):
        cv2.imwrite(str(folder / f"frame{number + 90}.png"), np.roll(photograph, 2 * number, axis=1))
    found = predictor.predict(folder, stride=5)
    assert [(w.first_frame, w.start) for w in found.windows] == [(0, 0), (5, 0.2), (10, 0.4), (13, 0.52)]
    for number, box in predictor.predict(video, stride=5).boxes.items():
        assert found.boxes[number].x == pytest.approx(box.x, abs=5)
    write_annotated(folder, found, tmp_path / "labelled.mp4")
    assert len(read_pictures(tmp_path / "labelled.mp4")) == 23


def test_a_part_without_a_face_has_no_label(predictor: Predictor, tmp_path: Path, photograph: Image) -> None:
    empty = np.full_like(photograph, 90)
    path = write_video(tmp_path / "goes.mp4", 24, lambda number: photograph if number < 12 else empty)
    found = predictor.predict(path, stride=7)
    assert [window.frames_with_face for window in found.windows] == [10, 5, 0]
    # Half of the frames are enough, as they are for training.
    assert [window.label is None for window in found.windows] == [False, False, True]
    assert sorted(found.boxes) == list(range(12))


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("empty", InvalidInput, "no face was found in .*: in none of its 2 windows of 10 frames"),
        ("text", InvalidInput, "is not a readable video"),
        ("missing", NotFound, "cannot read .*: No such file"),
    ],
)
def test_what_cannot_be_labelled_is_said(
    predictor: Predictor, tmp_path: Path, photograph: Image, content: str, kind: type[FoldwiseError], words: str
) -> None:
    path = tmp_path / "video.mp4"
    if content == "empty":
        write_video(path, 12, lambda _: np.full_like(photograph, 90))
    elif content == "text":
        path.write_text("no video")
    with pytest.raises(kind, match=words):
        predictor.predict(path, stride=5)


def test_the_annotated_video_has_the_box_where_the_face_is(
    predictor: Predictor, video: Path, tmp_path: Path
) -> None:
    found = predictor.predict(video, stride=5)
    target = tmp_path / "labelled.mp4"
    write_annotated(video, found, target)
    assert [file.name for file in tmp_path.iterdir()] == ["labelled.mp4"]
    before, after = read_pictures(video), read_pictures(target)
    assert len(after) == len(before) == 23
    for number in (0, 22):
        box = found.boxes[number]
        column = round(box.x)
        edge = after[number][round(box.y) + 20 : round(box.y + box.height) - 20, column].astype(int)
        # Compression moves colours a little; green stands out on skin and hair.
        assert (edge[:, 1] - edge[:, 2]).mean() > 60
    with pytest.raises(InvalidInput, match=r"ends with \.mp4"):
        write_annotated(video, found, tmp_path / "labelled.avi")


def test_bars_are_as_long_as_probabilities() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    shares = {"happy": 0.75, "sad": 0.25}
    window = Window(
        first_frame=0, last_frame=9, start=0, end=0.4, frames_with_face=10, label="happy", probabilities=shares
    )
    drawn = annotated(image, None, window)
    green = (drawn == GREEN).all(axis=2)
    lengths = green.sum(axis=1)
    assert lengths.max() == pytest.approx(0.75 * 40, abs=2)
    assert not (annotated(image, None, window)[120:] != image[120:]).any()


def test_the_command_prints_writes_and_refuses(
    catalogue: tuple[Path, ModelCard], video: Path, tmp_path: Path
) -> None:
    root, card = catalogue
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    arguments = ["predict", "model", str(video), str(bad), "--models", str(root), "--device", "cpu"]
    answer = CliRunner().invoke(app, [*arguments, "--csv", str(tmp_path / "out.csv"), "--json"])
    assert answer.exit_code == 2
    good, refused = json.loads(answer.stdout)
    assert (good["model"], good["frames"], len(good["windows"]), good["flags"]) == (card.id, 23, 4, [])
    assert "is not a readable video" in refused["error"]
    assert "is not a readable video" in answer.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [window["label"] for window in good["windows"]]
    assert float(rows[0]["right"]) == good["windows"][0]["probabilities"]["right"]

    shown = CliRunner().invoke(app, ["predict", card.id, str(video), "--models", str(root), "--stride", "13"])
    assert shown.exit_code == 0
    assert "0.00 to 0.36" in shown.stdout
    assert shown.stdout.count("it was not cross-validated") == 1
    assert "it was not cross-validated" in answer.stderr
    several = CliRunner().invoke(app, [*arguments, "--video", str(tmp_path / "a.mp4")])
    assert isinstance(several.exception, InvalidInput)
