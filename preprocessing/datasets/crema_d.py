"""The videos of CREMA-D as its authors distribute them: `VideoFlash/1001_DFA_ANG_XX.flv`.

The parts of a name are actor, sentence, emotion and level. 91 actors spoke twelve sentences: one of them at
three levels (LO, MD, HI), the others at none (XX).
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

NAME = "crema-d"
CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "neutral")
"""With the names and in the order of CK+ and Oulu-CASIA, then neutral."""

LEVELS = ("LO", "MD", "HI", "XX")

LABEL_OF_CODE = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sadness",
}

COMPLETE_SUBJECTS = 91
COMPLETE_COUNTS = {
    "anger": 1271,
    "disgust": 1271,
    "fear": 1271,
    "happy": 1271,
    "sadness": 1271,
    "neutral": 1087,
}

# Older copies of the set have one name that ends with a single X.
_VIDEO = re.compile(r"([0-9]{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)", re.IGNORECASE)


def read_crema_d(
    root: Path, *, level: str = "LO,MD,HI,XX", classes: str = "", end: str = "", colour: str = "yes"
) -> Dataset:
    """Read the takes of some levels.

    A take is read from its FLV file, or from a conversion if that is the only file. Everything else under
    `root` is listed in `skipped`; no frame is decoded. If all levels are read and the set is not the complete
    one (7442 takes of 91 actors), there is a warning.

    Args:
        root: the folder that holds `VideoFlash`, or another one of the videos or up to eight levels above them.
        level: some of `LO`, `MD`, `HI` and `XX` (unspecified), with commas between them; neutral takes, which
            have no level, are read in any case.
        classes: some of the classes, with commas between them; empty: all.
        end: where in each video the clip ends: seconds like `2.5s`, or a frame counted from 0; empty: at the
            end of the video.
        colour: `yes`, or `no` for gray clips.

    Raises:
        NotFound: `root` does not exist.
        InvalidInput: a setting has an invalid value, `root` is no folder, or it holds no video of the set.
        OSError: the disk failed.
    """
    levels = some_of("level", level, LEVELS)
    labels = some_of("classes", classes, CLASSES) if classes else CLASSES
    span, in_colour = span_until("end", end), yes_or_no("colour", colour)
    tree = Tree(root, layout="CREMA-D")
    code = NameCode(
        layout="CREMA-D",
        pattern=_VIDEO,
        form="actor_sentence_emotion_level",
        example="VideoFlash/1001_DFA_ANG_XX.flv",
        read=partial(_read_name, levels=levels, labels=labels),
        rank=lambda path: int(path.suffix.casefold() != ".flv"),
    )
    sequences = read_coded_videos(tree, code, span)
    counts = {label: COMPLETE_COUNTS[label] for label in labels}
    return Dataset(
        name=NAME,
        classes=labels,
        sequences=sequences,
        skipped=tree.finish(lambda path: why_no_coded_video(path, code)),
        warnings=completeness_warnings(sequences, name="CREMA-D", subjects=COMPLETE_SUBJECTS, counts=counts)
        if levels == LEVELS
        else (),
        colour=in_colour,
        settings={"level": ",".join(levels), "classes": ",".join(labels), "end": end, "colour": colour},
    )


def _read_name(name: re.Match[str], *, levels: tuple[str, ...], labels: tuple[str, ...]) -> Take:
    actor, sentence, emotion, level = (part.upper() for part in name.groups())
    level = "XX" if level == "X" else level
    label = LABEL_OF_CODE.get(emotion)
    if label is None:
        raise NotAClip(f"its emotion is none of {', '.join(LABEL_OF_CODE)}")
    if label not in labels:
        raise NotAClip(f"not asked for: classes is {','.join(labels)}")
    if level not in levels and label != "neutral":
        raise NotAClip(f"not asked for: level is {','.join(levels)}")
    return Take(clip_id=f"{actor}_{sentence}_{emotion}_{level}", subject=actor, label=label)
