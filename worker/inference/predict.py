"""`foldwise predict`: the emotion that a face shows in each window of a video."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from preprocessing.clips import (
    ClipSettings,
    apply_clahe,
    crop_faces,
    find_faces,
    repeat_flags,
    too_few_faces,
)
from preprocessing.face_tracks import follow_one_face
from preprocessing.faces import FaceBox, FaceDetector, Image, make_detector
from preprocessing.frames import VideoFrame, VideoReader
from preprocessing.unreadable import Unreadable
from services.clip_cache import Frames
from services.errors import InvalidInput, NotFound
from services.model_card import ModelCard
from services.model_catalogue import find_model
from worker.training.clips import network_input
from worker.training.device import choose_device
from worker.training.model import EmotionNet
from worker.training.pretrained import open_model

CLIPS_PER_BATCH = 16
"""Windows that the network predicts in one forward pass."""

PROBABILITY_DIGITS = 4
"""Decimals that probabilities are rounded to."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive frames of a video, and what a model predicts for them."""

    first_frame: int
    last_frame: int
    """Numbers from 0; both frames belong to the window."""

    start: float
    end: float
    """Times of the first and of the last frame in seconds."""

    frames_with_face: int
    label: str | None
    """None if too few frames show a face."""

    probabilities: dict[str, float] | None
    """By class, 4 decimals."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model predicts for a video."""

    video: str
    model: str
    frames: int
    windows: list[Window]
    flags: tuple[str, ...]
    """What could not be read or is damaged, in words, as `foldwise preprocess` flags it."""

    boxes: dict[int, FaceBox] = field(repr=False)
    """The box of the analysed face by frame number; frames without a face are missing."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A frame and the faces found in it."""

    number: int
    seconds: float
    image: Image
    faces: tuple[FaceBox, ...]


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A window and the face in it, cropped for the model."""

    window: Window
    crops: Frames | None
    """None if too few frames show a face."""


def load_predictor(root: Path, model: str, device: str | None) -> Predictor:
    """Load a model of the catalogue for prediction.

    Args:
        root: folder of the model catalogue.
        model: id of a model, or a unique beginning of one.
        device: torch device such as `cpu` or `cuda:0`; None takes a GPU if there is one.

    Raises:
        NotFound: the catalogue has no such model, or several whose ids begin with this text.
        InvalidInput: the device cannot be used.
    """
    card, network = open_model(root, find_model(root, model, by_beginning=True).id)
    return Predictor(card, network, choose_device(device))


class Predictor:
    """A model, and the preprocessing of the clips that it was trained on."""

    def __init__(self, card: ModelCard, model: EmotionNet, device: torch.device) -> None:
        """Move `model` to the device and put it into evaluation mode.

        Raises:
            InvalidInput: the face detector of the training clips is unknown.
            NotFound: the detector's weights are missing.
        """
        self.card = card
        self._device = device
        self._model = model.to(device).eval()
        self._settings = clip_settings(card)
        self._detector: FaceDetector = make_detector(self._settings.detector)

    def predict(self, video: str | os.PathLike[str], *, stride: int = 5) -> Prediction:
        """Label the windows of a video.

        A window has as many frames as the model takes. Windows start every `stride` frames; one more covers the
        last frames. In each window one face is tracked and cropped in the same way as in the training clips. As
        in them, a video with too few frames for one window repeats its last frame.

        Raises:
            NotFound: the file does not exist or cannot be read.
            InvalidInput: the file is not a readable video, or shows no face in any window.
        """
        video = Path(video)
        boxes: dict[int, FaceBox] = {}
        windows: list[Window] = []
        clips: list[_Clip] = []
        count = length = 0
        try:
            reader = VideoReader(video)
            for window in self._windows(reader, stride):
                count, length = window[-1].number + 1, len(window)
                clips.append(self._clip(window, boxes))
                if len(clips) == CLIPS_PER_BATCH:
                    windows += self._label(clips)
                    clips = []
        except OSError as error:
            raise NotFound(f"cannot read {video}: {error.strerror}", field="video") from error
        except Unreadable as error:
            raise InvalidInput(f"{video} is not a readable video: {error}", field="video") from error
        flags = reader.flags()
        if not length:
            raise InvalidInput("; ".join((f"{video} is not a readable video", *flags)), field="video")
        flags += repeat_flags(length, self._settings)
        windows += self._label(clips)
        if all(window.label is None for window in windows):
            raise InvalidInput(
                f"no face was found in {video}: in none of its {len(windows)} windows of "
                f"{self._settings.frames} frames do enough frames show one",
                field="video",
            )
        return Prediction(
            video=str(video), model=self.card.id, frames=count, windows=windows, flags=flags, boxes=boxes
        )

    def _windows(self, video: Iterable[VideoFrame], stride: int) -> Iterator[Sequence[_Frame]]:
        length = self._settings.frames
        latest: deque[_Frame] = deque(maxlen=length)
        read, covered = 0, 0
        for frame in video:
            latest.append(self._find_faces(frame))
            read += 1
            if read >= length and (read - length) % stride == 0:
                covered = read
                yield tuple(latest)
        if covered < read:
            # Clips of the training sets have their peak in their last frames.
            yield tuple(latest)

    def _find_faces(self, frame: VideoFrame) -> _Frame:
        image = frame.image
        if self.card.channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)
        faces = find_faces(image, self._detector)
        return _Frame(number=frame.number, seconds=frame.seconds, image=image, faces=faces)

    def _clip(self, frames: Sequence[_Frame], boxes: dict[int, FaceBox]) -> _Clip:
        found = follow_one_face([frame.faces for frame in frames])
        window = Window(
            first_frame=frames[0].number,
            last_frame=frames[-1].number,
            start=round(frames[0].seconds, 3),
            end=round(frames[-1].seconds, 3),
            frames_with_face=sum(box is not None for box in found),
            label=None,
            probabilities=None,
        )
        if too_few_faces(found, self._settings):
            return _Clip(window=window, crops=None)
        for frame, box in zip(frames, found, strict=True):
            if box is not None:
                boxes.setdefault(frame.number, box)
        cropped = crop_faces([frame.image for frame in frames], found, self._settings)
        crops = np.stack(cropped + [cropped[-1]] * (self._settings.frames - len(cropped)))
        if self.card.hyperparameters.clahe:
            crops = apply_clahe(crops, self._settings.clahe_clip_limit, self._settings.clahe_tiles)
        return _Clip(window=window, crops=crops)

    @torch.inference_mode()
    def _label(self, clips: Sequence[_Clip]) -> list[Window]:
        crops = [clip.crops for clip in clips if clip.crops is not None]
        if not crops:
            return [clip.window for clip in clips]
        batch = network_input(
            torch.from_numpy(np.stack(crops)).to(self._device),
            normalization=self.card.hyperparameters.normalization,
        )
        rows = iter(torch.softmax(self._model(batch).double(), dim=1).cpu().tolist())
        return [
            clip.window if clip.crops is None else self._labelled(clip.window, next(rows)) for clip in clips
        ]

    def _labelled(self, window: Window, probabilities: Sequence[float]) -> Window:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return dataclasses.replace(
            window,
            label=self.card.classes[best],
            probabilities={
                name: round(p, PROBABILITY_DIGITS)
                for name, p in zip(self.card.classes, probabilities, strict=True)
            },
        )


def clip_settings(card: ModelCard) -> ClipSettings:
    """How the clips were made that a model was trained on; the defaults where its card does not say."""
    training = card.training
    return ClipSettings.from_dict(
        {**card.preprocessing, "frames": training.frames, "frame_size": training.frame_size}
    )
