"""Frames from image files and videos: the last ones, in order, and what could not be read."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.datasets.reader import FrameSequence, Span
from preprocessing.frames import ReadFrames, count_frames, read_chosen_frames, read_last_frames

CONTAINERS = [("clip.mp4", "mp4v"), ("clip.avi", "MJPG"), ("clip.mov", "mp4v"), ("clip.mkv", "FFV1")]
FRAMES = 30


def write_video(path: Path, codec: str, frames: int = FRAMES) -> Path:
    """25 frames a second; the gray value of a frame is eight times its number."""
    # OpenCV takes text only
    plain = path.parent / f"plain{path.suffix}"
    writer = cv2.VideoWriter(str(plain), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25, (64, 48))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    return plain.rename(path)


def read(path: Path, span: Span | None = None, *, count: int = 10, colour: bool = False) -> ReadFrames:
    sequence = FrameSequence(
        clip_id="a", subject="a", label="a", source="a", video=path, span=span if span is not None else Span()
    )
    return read_last_frames(sequence, count, colour=colour)


def numbers(read: ReadFrames) -> list[int]:
    return [int(frame.name.rsplit("#", 1)[1]) for frame in read.frames]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_the_last_frames_of_a_video(tmp_path: Path, name: str, codec: str) -> None:
    found = read(write_video(tmp_path / name, codec))
    assert [frame.name for frame in found.frames] == [f"{name}#{number}" for number in range(20, 30)]
    assert found.flags == ()
    for frame, number in zip(found.frames, range(20, 30), strict=True):
        assert frame.image.shape == (48, 64)
        assert abs(float(frame.image.mean()) - 8 * number) < 9


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(start=3, end=7), [3, 4, 5, 6, 7]),
        (Span(start=27), [27, 28, 29]),
        (Span(end=2), [0, 1, 2]),
        (Span(start=5, end=5), [5]),
        (Span(start=0.2, end=0.32, seconds=True), [5, 6, 7, 8]),
        (Span(start=1.12, seconds=True), [28, 29]),
        (Span(end=1.2, seconds=True), list(range(20, 30))),
    ],
)
@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_a_stretch_of_a_video_with_both_ends(
    tmp_path: Path, name: str, codec: str, span: Span, expected: list[int]
) -> None:
    found = read(write_video(tmp_path / name, codec), span)
    assert numbers(found) == expected
    assert found.flags == ()


@pytest.mark.parametrize("span", [Span(start=25, end=40), Span(start=1.0, end=4.0, seconds=True)])
def test_a_stretch_that_reaches_over_the_end_is_flagged(tmp_path: Path, span: Span) -> None:
    found = read(write_video(tmp_path / "clip.mp4", "mp4v"), span)
    assert numbers(found) == [25, 26, 27, 28, 29]
    assert found.flags == ("clip.mp4 breaks off after 30 frames",)


def test_a_stretch_after_the_end_has_no_frames(tmp_path: Path) -> None:
    assert read(write_video(tmp_path / "clip.mp4", "mp4v"), Span(start=30)).frames == ()


def test_a_video_that_was_cut_off_is_flagged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", "FFV1")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = read(path)
    assert 0 < len(found.frames) == 10
    assert found.flags == (f"clip.mkv breaks off after {numbers(found)[-1] + 1} frames",)


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(4096)])
def test_a_file_that_is_no_video_has_no_frames(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    assert read(tmp_path / "clip.mp4").frames == ()


def test_a_video_that_is_gone_or_a_folder_is_told(tmp_path: Path) -> None:
    assert read(tmp_path / "gone.mp4").flags == ("unreadable video gone.mp4: No such file or directory",)
    (tmp_path / "folder.mp4").mkdir()
    assert read(tmp_path / "folder.mp4").frames == ()


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.mp4", b"50%02d.mp4", b"a:b|c.mp4", b"two\nlines.mp4", "Zoë.mp4".encode()]
)
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    found = read(write_video(tmp_path / os.fsdecode(name), "mp4v", frames=3))
    assert numbers(found) == [0, 1, 2]
    found.frames[0].name.encode()


def test_colours_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 200
    path.write_bytes(cv2.imencode(".png", red)[1].tobytes())
    sequence = FrameSequence(clip_id="a", subject="a", label="a", source="a", frames=(path,))
    (frame,) = read_last_frames(sequence, 10, colour=True).frames
    assert frame.image[0, 0].tolist() == [0, 0, 200]
    (frame,) = read_last_frames(sequence, 10, colour=False).frames
    assert frame.image.shape == (8, 8)
    assert read(write_video(tmp_path / "clip.mp4", "mp4v"), colour=True).frames[0].image.shape == (48, 64, 3)


# --- chosen frames ------------------------------------------------------------------------------------------


def every_third(readable: int) -> range:
    return range(0, readable, 3)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(), list(range(0, 30, 3))),
        (Span(start=4, end=12), [4, 7, 10]),
        (Span(start=0.2, end=0.48, seconds=True), [5, 8, 11]),
    ],
)
@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_chosen_frames_of_a_video(
    tmp_path: Path, name: str, codec: str, span: Span, expected: list[int]
) -> None:
    path = write_video(tmp_path / name, codec)
    sequence = FrameSequence(clip_id="a", subject="a", label="a", source="a", video=path, span=span)
    found = read_chosen_frames(sequence, every_third, colour=False)
    assert numbers(found) == expected
    assert found.flags == ()
    for frame, number in zip(found.frames, expected, strict=True):
        assert abs(float(frame.image.mean()) - 8 * number) < 9
    assert count_frames(path) == FRAMES
    whole = read_chosen_frames(sequence, range, colour=False)
    last = read_last_frames(sequence, FRAMES, colour=False)
    assert [frame.name for frame in whole.frames] == [frame.name for frame in last.frames]
    assert all((a.image == b.image).all() for a, b in zip(whole.frames, last.frames, strict=True))


def test_chosen_frames_of_a_cut_or_unreadable_video_are_flagged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", "FFV1")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    sequence = FrameSequence(clip_id="a", subject="a", label="a", source="a", video=path)
    found = read_chosen_frames(sequence, every_third, colour=False)
    assert found.flags == (f"clip.mkv breaks off after {count_frames(path)} frames",)
    path.write_bytes(b"no video at all")
    assert read_chosen_frames(sequence, every_third, colour=False).frames == ()


def test_chosen_frames_of_images_count_pages_and_skip_what_cannot_be_read(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate(("0.png", "1.png", "2.tiff", "3.png", "4.png")):
        paths.append(tmp_path / name)
        page = np.full((8, 8), 20 * number, np.uint8)
        if name.endswith("tiff"):
            cv2.imwritemulti(str(paths[-1]), [page, page + 1, page + 2])
        else:
            cv2.imwrite(str(paths[-1]), page)
    paths[1].write_bytes(b"broken")
    sequence = FrameSequence(clip_id="a", subject="a", label="a", source="a", frames=tuple(paths))
    counted: list[int] = []

    def choose(readable: int) -> tuple[int, ...]:
        counted.append(readable)
        return (0, 2, 3, 5)

    found = read_chosen_frames(sequence, choose, colour=False)
    assert counted == [6]
    assert [(frame.name, int(frame.image[0, 0])) for frame in found.frames] == [
        ("0.png", 0),
        ("2.tiff#1", 41),
        ("2.tiff#2", 42),
        ("4.png", 80),
    ]
    (flag,) = found.flags
    assert flag.startswith("unreadable frame 1.png: ")
