"""Write a video with the analysed face, its label, and the probabilities of all classes."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from preprocessing.faces import FaceBox, Image
from preprocessing.frames import VideoReader
from services.errors import InvalidInput
from worker.inference.predict import Prediction, Window

WHITE, GREEN, DARK = (255, 255, 255), (80, 200, 80), (40, 40, 40)
CODEC = "mp4v"
FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_annotated(video: Path, prediction: Prediction, target: Path) -> None:
    """Write a video as MP4 with boxes and labels drawn into it. The file appears only when it is complete.

    A frame gets the label of the last window that ends at or before it; the first frames get that of the first
    window. If the model labels the whole video, every frame gets its label, and those that the model saw get a
    box.

    Raises:
        InvalidInput: the target cannot be written as a video, or is not named .mp4.
        OSError: the video cannot be read.
        Unreadable: the file is neither a video nor an image.
    """
    if target.suffix != ".mp4":
        raise InvalidInput(f"--video {target}: the annotated video is an MP4; give a name that ends with .mp4")
    ends = [window.last_frame for window in prediction.windows]
    writer: cv2.VideoWriter | None = None
    size = (0, 0)
    reader = VideoReader(video)
    with _partial(target) as partial:
        try:
            for frame in reader:
                if writer is None:
                    size = frame.image.shape[1], frame.image.shape[0]
                    writer = _open(partial, target, reader.rate, size)
                latest = prediction.windows[max(0, bisect_right(ends, frame.number) - 1)]
                window = prediction.whole or latest
                drawn = annotated(frame.image, prediction.boxes.get(frame.number), window)
                # Images of a folder may differ in size, and the writer drops frames of another size.
                writer.write(cv2.resize(drawn, size))
        finally:
            if writer is not None:
                writer.release()


def annotated(image: Image, box: FaceBox | None, window: Window) -> Image:
    """A copy of a BGR image with a box around the face, its label, and a bar for each class on the left."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    line = max(14, height // 24)
    scale, thick = line / 30, max(1, line // 14)
    if box is not None:
        rows, columns = box.clipped(image_width=width, image_height=height)
        cv2.rectangle(drawn, (columns.start, rows.start), (columns.stop - 1, rows.stop - 1), GREEN, thick + 1)
    if window.label is None or window.probabilities is None:
        _write(drawn, "no face", (line // 2, line + line // 2), scale, thick)
        return drawn
    if box is not None:
        text = f"{window.label} {window.probabilities[window.label]:.0%}"
        above = rows.start - line // 3 if rows.start > 2 * line else min(height - 4, rows.stop + line)
        _write(drawn, text, (columns.start, above), scale, thick)
    bar = max(40, width // 8)
    for index, (name, probability) in enumerate(window.probabilities.items()):
        top = line // 2 + index * line
        colour = GREEN if name == window.label else WHITE
        cv2.rectangle(drawn, (line // 2, top), (line // 2 + bar, top + line - 4), DARK, cv2.FILLED)
        length = round(bar * probability)
        cv2.rectangle(drawn, (line // 2, top), (line // 2 + length, top + line - 4), colour, cv2.FILLED)
        _write(drawn, name, (line // 2 + bar + 6, top + line - 6), scale * 0.8, thick)
    return drawn


def _write(image: Image, text: str, corner: tuple[int, int], scale: float, thick: int) -> None:
    cv2.putText(image, text, corner, FONT, scale, DARK, thick + 2, cv2.LINE_AA)
    cv2.putText(image, text, corner, FONT, scale, WHITE, thick, cv2.LINE_AA)


def _open(partial: Path, target: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    codec = cv2.VideoWriter.fourcc(*CODEC)
    writer = cv2.VideoWriter(str(partial), cv2.CAP_FFMPEG, codec, rate, size)
    if not writer.isOpened():
        raise InvalidInput(f"--video {target} cannot be written; give a file in a folder that you can write to")
    return writer


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    partial = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
