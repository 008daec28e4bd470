"""The baseline of the preprocessing benchmark: a simple script, as one writes it on the first afternoon.

One process with OpenCV's defaults reads each of a sequence's last ten frames, finds a face with YuNet at full
resolution, crops, resizes, converts to gray and equalizes; at the end it saves two arrays. With preprocessing
it shares only the reader's list of files and the path of the detector's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessing.datasets import reader
from preprocessing.detector_weights import YUNET, find_weights

Box = tuple[float, float, float, float]


def run_naive_preprocessing(
    sequences: Sequence[reader.FrameSequence], folder: Path, size: int
) -> list[list[Box | None]]:
    """Write `clips.npy` and `clips_clahe.npy` into `folder`.

    Args:
        sequences: the sequences to read.
        folder: folder to create.
        size: height and width of a crop in pixels.

    Returns:
        x, y, width and height in pixels for each frame of each sequence; None for a frame without a face.
    """
    detector = cv2.FaceDetectorYN.create(str(find_weights(YUNET)), "", (320, 320))
    clahe = cv2.createCLAHE(2.0, (8, 8))
    clips, enhanced = [], []
    boxes: list[list[Box | None]] = []
    for sequence in sequences:
        faces, found = [], []
        for path in sequence.frames[-10:]:
            image: Any = cv2.imread(str(path))
            height, width = image.shape[:2]
            detector.setInputSize((width, height))
            rows: Any = detector.detect(image)[1]
            box = None if rows is None else max(rows[:, :4].tolist(), key=lambda row: row[2] * row[3])
            found.append(None if box is None else (box[0], box[1], box[2], box[3]))
            x, y, w, h = (0, 0, width, height) if box is None else (max(0, int(value)) for value in box)
            faces.append(
                cv2.cvtColor(cv2.resize(image[y : y + h, x : x + w], (size, size)), cv2.COLOR_BGR2GRAY)
            )
        faces += faces[-1:] * (10 - len(faces))
        clips.append(np.stack(faces))
        enhanced.append(np.stack([clahe.apply(face) for face in faces]))
        boxes.append(found)
    folder.mkdir(parents=True)
    np.save(folder / "clips.npy", np.stack(clips))
    np.save(folder / "clips_clahe.npy", np.stack(enhanced))
    return boxes
