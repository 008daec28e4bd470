"""The Extended Cohn-Kanade set (CK+) as its authors distribute it.

`cohn-kanade-images/S005/001/S005_001_00000011.png` and, for a labelled sequence, one file
`Emotion/S005/001/S005_001_00000011_emotion.txt` that holds a code as a float in exponent form.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from preprocessing.datasets.reader import Dataset, Sequence, Skipped
from services.errors import InvalidInput, NotFound

IMAGES = "cohn-kanade-images"
LABELS = "Emotion"
SEARCH_DEPTH = 2

CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
"""In the order of the confusion matrices of the paper, which is not that of the codes."""

LABEL_OF_CODE = {
    1: "anger",
    2: "contempt",
    3: "disgust",
    4: "fear",
    5: "happy",
    6: "sadness",
    7: "surprise",
}
NEUTRAL_CODE = 0

COMPLETE_SUBJECTS = 118
COMPLETE_COUNTS = {
    "anger": 45,
    "disgust": 59,
    "fear": 25,
    "happy": 69,
    "sadness": 28,
    "surprise": 83,
    "contempt": 18,
}

_SUBJECT_FOLDER = re.compile(r"S\d+")
_SEQUENCE_FOLDER = re.compile(r"\d+")
_IMAGE_FILE = re.compile(r"(S\d+_\d+)_(\d+)\.png", re.IGNORECASE)
_LABEL_FILE = re.compile(r"(S\d+_\d+)_(\d+)_emotion\.txt", re.IGNORECASE)


def read_ckplus(root: Path) -> Dataset:
    """The labelled sequences under `root`, which holds the two folders or is up to two levels above them.

    Every sequence of either folder is among `sequences` or `skipped`; images are not opened.
    A set that is not the complete one (327 sequences of 118 subjects) is told in `warnings`.

    Raises `NotFound` where `root` is not there, and `InvalidInput` where it is no folder, where the two
    folders are not found, or where there is more than one pair of them.
    """
    images, labels = _find_folders(root.expanduser().absolute())
    sequences: list[Sequence] = []
    skipped: list[Skipped] = []
    cut: list[str] = []
    for subject, number in sorted(_sequence_folders(images) | _sequence_folders(labels)):
        clip_id = f"{subject}_{number}"
        image_folder, label_folder = images / subject / number, labels / subject / number
        frames = _numbered(image_folder, _IMAGE_FILE, clip_id)
        label_files = _numbered(label_folder, _LABEL_FILE, clip_id)
        label, reason = _read_label(label_folder, [path for _, path in label_files])
        if not frames:
            where = image_folder if image_folder.is_dir() else label_folder
            reason = f"{'a label' if label_files else 'no label'} and no images named {clip_id}_<number>.png"
            skipped.append(Skipped(path=where, reason=reason))
        elif label is None:
            skipped.append(Skipped(path=image_folder, reason=reason))
        else:
            sequences.append(
                Sequence(
                    clip_id=clip_id, subject=subject, label=label, frames=tuple(path for _, path in frames)
                )
            )
            if label_files[-1][0] != frames[-1][0]:
                cut.append(clip_id)
    return Dataset(
        name="ckplus",
        classes=CLASSES,
        sequences=tuple(sorted(sequences, key=lambda sequence: sequence.clip_id)),
        skipped=tuple(skipped),
        warnings=(*_differences(sequences), *_cut_sequences(cut)),
    )


def _find_folders(root: Path) -> tuple[Path, Path]:
    if not root.exists():
        raise NotFound(f"root is {root}, which does not exist; give the folder that holds CK+.", field="root")
    if not root.is_dir():
        raise InvalidInput(f"root is {root}, which is a file; give the folder that holds CK+.", field="root")
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        holders = [path for path in level if (path / IMAGES).is_dir() and (path / LABELS).is_dir()]
        if len(holders) > 1:
            found = ", ".join(str(path) for path in holders)
            raise InvalidInput(
                f"root is {root}, under which several folders hold CK+ ({found}); give one of them.",
                field="root",
            )
        if holders:
            return holders[0] / IMAGES, holders[0] / LABELS
        level = [child for path in level for child in _subfolders(path)]
    raise InvalidInput(
        f"root is {root}, but no folder in it, up to {SEARCH_DEPTH} levels down, holds both {IMAGES!r} and "
        f"{LABELS!r}; unpack both there, side by side.",
        field="root",
    )


def _subfolders(path: Path) -> list[Path]:
    # macOS archives carry a second, hollow tree of the same names in __MACOSX
    return sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__MACOSX"))
    )


def _sequence_folders(top: Path) -> set[tuple[str, str]]:
    return {
        (subject.name, number.name)
        for subject in top.iterdir()
        if subject.is_dir() and _SUBJECT_FOLDER.fullmatch(subject.name)
        for number in subject.iterdir()
        if number.is_dir() and _SEQUENCE_FOLDER.fullmatch(number.name)
    }


def _numbered(folder: Path, pattern: re.Pattern[str], clip_id: str) -> list[tuple[int, Path]]:
    """The files of this clip whose names match, with their trailing integers, ordered by these."""

    def matches() -> Iterator[tuple[int, Path]]:
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and match[1].upper() == clip_id and path.is_file():
                yield int(match[2]), path

    return sorted(matches()) if folder.is_dir() else []


def _read_label(folder: Path, files: list[Path]) -> tuple[str | None, str]:
    """The class, or None and the reason."""
    if not files:
        return None, "no label file: its label folder is empty" if folder.is_dir() else "no label folder"
    texts = {path.read_text(encoding="utf-8", errors="replace").strip() for path in files}
    if len(texts) > 1:
        return None, f"{len(files)} label files that contradict each other"
    text = texts.pop()
    try:
        code = float(text)
    except ValueError:
        return None, f"label {text[:40]!r} is not a number"
    if code == NEUTRAL_CODE:
        return None, "label 0 (neutral) is not one of the seven emotions"
    label = LABEL_OF_CODE.get(int(code)) if code.is_integer() else None
    return label, "" if label else f"label {text[:40]!r} is not a code of CK+ (1 to 7)"


def _differences(sequences: list[Sequence]) -> Iterator[str]:
    subjects = len({sequence.subject for sequence in sequences})
    counts = Counter(sequence.label for sequence in sequences)
    pairs = [
        ("sequences", len(sequences), sum(COMPLETE_COUNTS.values())),
        ("subjects", subjects, COMPLETE_SUBJECTS),
        *((label, counts[label], COMPLETE_COUNTS[label]) for label in CLASSES),
    ]
    differing = [
        f"{found} {what} instead of {complete}" for what, found, complete in pairs if found != complete
    ]
    if differing:
        yield f"This is not the complete CK+ set: {', '.join(differing)}."


def _cut_sequences(clip_ids: list[str]) -> Iterator[str]:
    if clip_ids:
        named = ", ".join(clip_ids[:5]) + (", ..." if len(clip_ids) > 5 else "")
        yield (
            f"In {len(clip_ids)} sequences the label names another last frame than the images have, "
            f"so frames may be missing: {named}."
        )
