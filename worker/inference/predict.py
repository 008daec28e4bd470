"""`foldwise predict`: the emotion that a face shows in each window of a video, or in the whole video."""

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
    among_chosen,
    apply_clahe,
    chosen_frames,
    crop_faces,
    find_faces,
    repeat_flags,
    too_few_faces,
)
from preprocessing.face_tracks import follow_one_face
from preprocessing.faces import FaceBox, FaceDetector, Image, make_detector
from preprocessing.frame_sampling import FrameSampling
from preprocessing.frames import VideoFrame, VideoReader, count_frames
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
    """Frames of a video, and what a model predicts for them."""

    first_frame: int
    last_frame: int
    """Numbers from 0; both frames belong to the window. Those between them do too, except with a model whose
    frames are spread over the video (`uniform`)."""

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

    whole: Window | None = None
    """The whole video, with the mean of its windows' probabilities; None for a model of the last frames, which
    labels each window by itself."""


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


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """The windows of a video."""

    windows: list[Window]
    whole: Window | None
    frames: int
    """Number of frames of the video."""

    used: int
    """Number of frames in a window, without repetitions."""

    flags: tuple[str, ...]


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

        With a model of the last frames, windows of as many frames as the model takes start every `stride`
        frames; one more covers the last frames. In each window one face is tracked and cropped in the same way
        as in the training clips. As in them, a video with too few frames for one window repeats its last frame.

        With another `frame_sampling`, the windows are those of a training clip, whatever the stride, and the
        whole video gets the mean of their probabilities, as a study tests it.

        Raises:
            NotFound: the file does not exist or cannot be read.
            InvalidInput: the file is not a readable video, or shows no face in any window.
        """
        video = Path(video)
        boxes: dict[int, FaceBox] = {}
        try:
            if self._settings.frame_sampling is FrameSampling.LAST:
                found = self._label_over_time(video, stride, boxes)
            else:
                found = self._label_whole(video, boxes)
        except OSError as error:
            raise NotFound(f"cannot read {video}: {error.strerror}", field="video") from error
        except Unreadable as error:
            raise InvalidInput(f"{video} is not a readable video: {error}", field="video") from error
        if not found.used:
            raise InvalidInput("; ".join((f"{video} is not a readable video", *found.flags)), field="video")
        if all(window.label is None for window in found.windows):
            raise InvalidInput(
                f"no face was found in {video}: in none of its {len(found.windows)} windows of "
                f"{self._settings.frames} frames do enough frames show one",
                field="video",
            )
        return Prediction(
            video=str(video),
            model=self.card.id,
            frames=found.frames,
            windows=found.windows,
            whole=found.whole,
            flags=found.flags + repeat_flags(found.used, self._settings),
            boxes=boxes,
        )

    def _label_over_time(self, video: Path, stride: int, boxes: dict[int, FaceBox]) -> _Labelled:
        windows: list[Window] = []
        clips: list[_Clip] = []
        count = length = 0
        reader = VideoReader(video)
        for frames in self._windows(reader, stride):
            count, length = frames[-1].number + 1, len(frames)
            clips.append(self._clip(frames, boxes))
            if len(clips) == CLIPS_PER_BATCH:
                windows += self._label(clips)
                clips = []
        windows += self._label(clips)
        return _Labelled(windows=windows, whole=None, frames=count, used=length, flags=reader.flags())

    def _label_whole(self, video: Path, boxes: dict[int, FaceBox]) -> _Labelled:
        available = count_frames(video)
        windows = self._settings.sample(available) if available else ()
        chosen = frozenset(chosen_frames(windows))
        frames: list[_Frame] = []
        count = 0
        reader = VideoReader(video)
        for position, frame in enumerate(reader):
            count = frame.number + 1
            if position in chosen:
                frames.append(self._find_faces(frame))
        flags = reader.flags()
        if not frames:
            return _Labelled(windows=[], whole=None, frames=0, used=0, flags=flags)
        found = follow_one_face([frame.faces for frame in frames])
        unlabelled = [self._unlabelled(frames, found, window) for window in among_chosen(windows)]
        whole = self._unlabelled(frames, found, range(len(frames)))
        if too_few_faces(found, self._settings):
            return _Labelled(windows=unlabelled, whole=whole, frames=count, used=len(frames), flags=flags)
        _keep_boxes(frames, found, boxes)
        crops = crop_faces([frame.image for frame in frames], found, self._settings)
        probabilities = [
            each
            for first in range(0, len(windows), CLIPS_PER_BATCH)
            for each in self._probabilities(
                [
                    self._with_clahe(np.stack([crops[number] for number in window]))
                    for window in among_chosen(windows)[first : first + CLIPS_PER_BATCH]
                ]
            )
        ]
        return _Labelled(
            windows=[self._labelled(*pair) for pair in zip(unlabelled, probabilities, strict=True)],
            whole=self._labelled(whole, np.mean(probabilities, axis=0).tolist()),
            frames=count,
            used=len(frames),
            flags=flags,
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
        window = self._unlabelled(frames, found, range(len(frames)))
        if too_few_faces(found, self._settings):
            return _Clip(window=window, crops=None)
        _keep_boxes(frames, found, boxes)
        cropped = crop_faces([frame.image for frame in frames], found, self._settings)
        crops = np.stack(cropped + [cropped[-1]] * (self._settings.frames - len(cropped)))
        return _Clip(window=window, crops=self._with_clahe(crops))

    def _unlabelled(
        self, frames: Sequence[_Frame], found: Sequence[FaceBox | None], members: Sequence[int]
    ) -> Window:
        """The window of some frames; `members` are their indices in ascending order."""
        first, last = frames[members[0]], frames[members[-1]]
        return Window(
            first_frame=first.number,
            last_frame=last.number,
            start=round(first.seconds, 3),
            end=round(last.seconds, 3),
            frames_with_face=sum(found[index] is not None for index in set(members)),
            label=None,
            probabilities=None,
        )

    def _with_clahe(self, crops: Frames) -> Frames:
        if not self.card.hyperparameters.clahe:
            return crops
        return apply_clahe(crops, self._settings.clahe_clip_limit, self._settings.clahe_tiles)

    def _label(self, clips: Sequence[_Clip]) -> list[Window]:
        rows = iter(self._probabilities([clip.crops for clip in clips if clip.crops is not None]))
        return [
            clip.window if clip.crops is None else self._labelled(clip.window, next(rows)) for clip in clips
        ]

    @torch.inference_mode()
    def _probabilities(self, crops: Sequence[Frames]) -> list[list[float]]:
        """The probability of each class for each window."""
        if not crops:
            return []
        batch = network_input(
            torch.from_numpy(np.stack(crops)).to(self._device),
            normalization=self.card.hyperparameters.normalization,
        )
        rows: list[list[float]] = torch.softmax(self._model(batch).double(), dim=1).cpu().tolist()
        return rows

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


def _keep_boxes(frames: Sequence[_Frame], found: Sequence[FaceBox | None], boxes: dict[int, FaceBox]) -> None:
    for frame, box in zip(frames, found, strict=True):
        if box is not None:
            boxes.setdefault(frame.number, box)


def clip_settings(card: ModelCard) -> ClipSettings:
    """How the clips were made that a model was trained on; the defaults where its card does not say."""
    training = card.training
    return ClipSettings.from_dict(
        {**card.preprocessing, "frames": training.frames, "frame_size": training.frame_size}
    )
