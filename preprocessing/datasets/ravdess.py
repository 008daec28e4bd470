"""The videos of RAVDESS as its authors distribute them: `Actor_12/01-01-06-01-02-01-12.mp4`.

The numbers are modality, channel, emotion, intensity, statement, repetition and actor. 24 actors spoke, and 23
of them sang, two statements twice. Each take has a file with sound and one without, of the same pictures.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from preprocessing.datasets.coded_videos import NameCode, Take, read_coded_videos, why_no_coded_video
from preprocessing.datasets.reader import Dataset, completeness_warnings
from preprocessing.datasets.reader_settings import some_of, span_until, yes_or_no
from preprocessing.datasets.tree import Tree
from preprocessing.datasets.video_list import NotAClip

NAME = "ravdess"
CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "neutral", "calm")
"""With the names and in the order of CK+ and Oulu-CASIA, then those that only this set has."""

CHANNELS = ("speech", "song")
INTENSITIES = ("normal", "strong")

LABEL_OF_CODE = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}

COMPLETE_SUBJECTS = {"speech": 24, "song": 23}

_NOT_SUNG = {"disgust", "surprise"}
_TAKES_PER_INTENSITY = 4
"""Takes of one actor with the same emotion and intensity: two statements, each spoken or sung twice."""

_CHANNEL_OF_CODE = {"01": "speech", "02": "song"}
_INTENSITY_OF_CODE = {"01": "normal", "02": "strong"}
_SOUND_ONLY = "03"
_VIDEO = re.compile(r"([0-9]{2})" + r"-([0-9]{2})" * 6)


def read_ravdess(
    root: Path,
    *,
    channel: str = "speech",
    intensity: str = "normal,strong",
    classes: str = "",
    end: str = "",
    colour: str = "yes",
) -> Dataset:
    """Read the takes of some channels and intensities.

    A take is read from the file with sound (modality 01), or from the one without (02) if that is the only
    one. Everything else under `root` is listed in `skipped`; no frame is decoded. A set that is not the
    complete one (1440 spoken and 1012 sung takes) gets a warning.

    Args:
        root: the folder that holds the actors' folders, or one up to seven levels above it.
        channel: `speech`, `song`, or both with a comma between them.
        intensity: `normal`, `strong`, or both; neutral takes, which have no intensity, are read in any case.
        classes: some of the classes, with commas between them; empty: all that the channels have.
        end: where in each video the clip ends: seconds like `2.5s`, or a frame counted from 0; empty: at the
            end of the video.
        colour: `yes`, or `no` for gray clips.

    Raises:
        NotFound: `root` does not exist.
        InvalidInput: a setting has an invalid value, `root` is no folder, or it holds no video of the set.
        OSError: the disk failed.
    """
    channels = some_of("channel", channel, CHANNELS)
    intensities = some_of("intensity", intensity, INTENSITIES)
    possible = tuple(label for label in CLASSES if channels != ("song",) or label not in _NOT_SUNG)
    labels = some_of("classes", classes, possible) if classes else possible
    span, in_colour = span_until("end", end), yes_or_no("colour", colour)
    tree = Tree(root, layout="RAVDESS")
    code = NameCode(
        layout="RAVDESS",
        pattern=_VIDEO,
        form="modality-channel-emotion-intensity-statement-repetition-actor",
        example="Actor_01/01-01-01-01-01-01-01.mp4",
        read=partial(_read_name, channels=channels, intensities=intensities, labels=labels),
        rank=lambda path: int(path.stem[:2]),
    )
    sequences = read_coded_videos(tree, code, span)
    return Dataset(
        name=NAME,
        classes=labels,
        sequences=sequences,
        skipped=tree.finish(lambda path: why_no_coded_video(path, code)),
        warnings=completeness_warnings(
            sequences,
            name="RAVDESS",
            subjects=max(COMPLETE_SUBJECTS[one] for one in channels),
            counts={label: _complete_count(label, channels, intensities) for label in labels},
        ),
        colour=in_colour,
        settings={
            "channel": ",".join(channels),
            "intensity": ",".join(intensities),
            "classes": ",".join(labels),
            "end": end,
            "colour": colour,
        },
    )


def _read_name(
    name: re.Match[str], *, channels: tuple[str, ...], intensities: tuple[str, ...], labels: tuple[str, ...]
) -> Take:
    modality, channel_code, emotion, intensity_code, _, _, actor = name.groups()
    channel, label = _CHANNEL_OF_CODE.get(channel_code), LABEL_OF_CODE.get(emotion)
    intensity = _INTENSITY_OF_CODE.get(intensity_code)
    if modality == _SOUND_ONLY:
        raise NotAClip("sound without pictures (modality 03)")
    if modality not in {"01", "02"} or channel is None or label is None or intensity is None:
        raise NotAClip("its name has a number that RAVDESS does not use")
    if not 1 <= int(actor) <= COMPLETE_SUBJECTS["speech"]:
        raise NotAClip(f"RAVDESS has no actor {actor}")
    if channel not in channels:
        raise NotAClip(f"not asked for: channel is {','.join(channels)}")
    if label not in labels:
        raise NotAClip(f"not asked for: classes is {','.join(labels)}")
    if intensity not in intensities and label != "neutral":
        raise NotAClip(f"not asked for: intensity is {','.join(intensities)}")
    # without the modality, because the files of a take differ only in it
    return Take(clip_id=name[0].partition("-")[2], subject=f"Actor_{actor}", label=label)


def _complete_count(label: str, channels: tuple[str, ...], intensities: tuple[str, ...]) -> int:
    actors = sum(COMPLETE_SUBJECTS[one] for one in channels if one == "speech" or label not in _NOT_SUNG)
    return actors * _TAKES_PER_INTENSITY * (1 if label == "neutral" else len(intensities))
