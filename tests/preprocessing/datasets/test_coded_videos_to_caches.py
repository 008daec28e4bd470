"""RAVDESS and CREMA-D from video files to the cache: drawn faces in the containers and codecs of the sets."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.stream import VideoStream

from coordinator.studies.life import check_cache
from preprocessing.clips import ClipSettings
from preprocessing.datasets.reader import FrameSequence
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.frames import read_last_frames
from preprocessing.job import Outcome, preprocess
from services.clip_cache import open_cache
from services.errors import InvalidInput
from services.presets import get_preset

RATE = 25


def make(dataset: str, root: Path, caches: Path, **reader_settings: str) -> Outcome:
    return preprocess(
        dataset, root, caches, settings=ClipSettings(), processes=1, reader_settings=reader_settings
    )


def encode(path: Path, frames: Sequence[Path], codec: str) -> None:
    """Write images as a video with 25 frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", 2_000_000
        for number, source in enumerate(frames):
            pixels = np.asarray(cv2.imread(str(source)), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrameSequence, ...]:
    """Two people with two emotions each: P001 anger, P001 happy, and the same of another person."""
    root = tmp_path_factory.mktemp("drawn") / "set"
    write_synthetic_tree(root, layout="oulu-casia", subjects=2, classes=["happy", "anger"])
    return read_dataset("oulu-casia", root).sequences


@pytest.fixture(scope="module")
def crema_d(drawn: tuple[FrameSequence, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crema") / "CREMA-D"
    for actor, pair in (("1001", drawn[:2]), ("1002", drawn[2:])):
        for sequence in pair:
            emotion = {"anger": "ANG", "happy": "HAP"}[sequence.label]
            encode(root / f"VideoFlash/{actor}_DFA_{emotion}_XX.flv", sequence.frames, "flv")
    encode(root / "VideoMP4/1001_DFA_ANG_XX.mp4", drawn[0].frames, "libx264")
    return root


@pytest.fixture(scope="module")
def ravdess(drawn: tuple[FrameSequence, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ravdess") / "RAVDESS"
    for actor, pair in (("01", drawn[:2]), ("02", drawn[2:])):
        for sequence in pair:
            emotion = {"anger": "05", "happy": "03"}[sequence.label]
            for modality in ("01", "02"):
                name = f"{modality}-01-{emotion}-01-01-01-{actor}.mp4"
                encode(root / f"Actor_{actor}" / name, sequence.frames, "libx264")
    return root


def test_flash_videos_show_the_drawn_frames(crema_d: Path, drawn: tuple[FrameSequence, ...]) -> None:
    sequences = read_dataset("crema-d", crema_d).sequences
    for sequence, original in zip(sequences, drawn, strict=True):
        read = read_last_frames(sequence, 3, colour=True)
        assert read.flags == ()
        for frame, path in zip(read.frames, original.frames[-3:], strict=True):
            difference = np.asarray(frame.image, np.int16) - np.asarray(cv2.imread(str(path)), np.int16)
            assert np.abs(difference).mean() < 6  # losses of the encoder


def test_flash_videos_become_clips_in_colour(crema_d: Path, tmp_path: Path) -> None:
    outcome = make("crema-d", crema_d, tmp_path)
    manifest, cache = outcome.manifest, open_cache(outcome.folder)
    assert (manifest.dataset, manifest.clips, manifest.subjects, manifest.channels) == ("crema-d", 4, 2, 3)
    assert {label for label, count in manifest.class_counts.items() if count == 2} == {"anger", "happy"}
    assert outcome.flagged == {"1002_DFA_HAP_XX": ("only 9 of 10 frames; the last one is repeated",)}
    assert manifest.skipped == {"VideoMP4/1001_DFA_ANG_XX.mp4": "another file of a take that is read once"}
    assert cache.records[0].source == "VideoFlash/1001_DFA_ANG_XX.flv"
    assert cache.records[0].frames[0].startswith("1001_DFA_ANG_XX.flv#")
    check_cache(get_preset("oulu-10fold"), manifest)  # the preset of the how-to


def test_each_take_of_ravdess_is_one_clip_of_the_drawn_frames(
    ravdess: Path, drawn: tuple[FrameSequence, ...], tmp_path: Path
) -> None:
    outcome = make("ravdess", ravdess, tmp_path, classes="anger,happy")
    manifest, cache = outcome.manifest, open_cache(outcome.folder)
    assert [(record.subject, record.label) for record in cache.records] == [
        ("Actor_01", "happy"),
        ("Actor_02", "happy"),
        ("Actor_01", "anger"),
        ("Actor_02", "anger"),
    ]
    assert manifest.classes == ("anger", "happy")
    assert outcome.flagged == {"01-03-01-01-01-02": ("only 9 of 10 frames; the last one is repeated",)}
    assert outcome.near_copies == ()
    assert len(manifest.skipped) == 4
    assert cache.records[2].frames[-1] == f"01-01-05-01-01-01-01.mp4#{len(drawn[0].frames) - 1}"
    check_cache(get_preset("oulu-10fold"), manifest)


def test_a_clip_ends_where_it_is_told_to(ravdess: Path, tmp_path: Path) -> None:
    outcome = make("ravdess", ravdess, tmp_path, end="0.2s")
    for record in open_cache(outcome.folder).records:
        assert record.frames[:6] == tuple(f"{Path(record.source).name}#{number}" for number in range(6))
        assert record.repeated == 4  # 0.2 s at 25 frames per second are frames 0 to 5


def test_a_clone_without_its_large_files_is_told_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "VideoFlash").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 414429\n"
    for actor in ("1001", "1002"):
        (tmp_path / f"VideoFlash/{actor}_DFA_ANG_XX.flv").write_text(pointer)
    with pytest.raises(InvalidInput, match=r"no labelled sequence of crema-d.*run `git lfs pull`"):
        make("crema-d", tmp_path, tmp_path / "caches")
