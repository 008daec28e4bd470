"""The Extended Cohn-Kanade set (CK+) as its authors distribute it.

`cohn-kanade-images/S005/001/S005_001_00000011.png` and, for a labelled sequence, one file
`Emotion/S005/001/S005_001_00000011_emotion.txt` that holds a code as a float in exponent form.
"""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.datasets.reader import (
    SYNTHETIC_MARKER,
    Dataset,
    FrameSequence,
    as_text,
    completeness_warnings,
    first_few,
)
from preprocessing.datasets.text_files import decode_text
from preprocessing.datasets.tree import Tree, is_file, is_folder, raise_if_disk_failed
from services.errors import InvalidInput

NAME = "ckplus"
IMAGES = "cohn-kanade-images"
LABELS = "Emotion"
MAX_SEARCH_DEPTH = 2
"""Levels below the root that are searched for the two folders."""

CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
"""In the order of the paper's confusion matrices, which is not that of the codes."""

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

_NOT_READ = {
    "facs": "action units, which foldwise does not read",
    "facs_labels": "action units, which foldwise does not read",
    "landmarks": "landmarks, which foldwise does not read",
}
"""Other folders of the distribution, with the reason why they are skipped."""

# [0-9] and not \d, which matches digits of every script
_SUBJECT_FOLDER = re.compile(r"S[0-9]+", re.IGNORECASE)
_SEQUENCE_FOLDER = re.compile(r"[0-9]+")
_IMAGE_FILE = re.compile(r"(S[0-9]+_[0-9]+)_([0-9]+)\.png", re.IGNORECASE)
_LABEL_FILE = re.compile(r"(S[0-9]+_[0-9]+)_([0-9]+)_emotion\.txt", re.IGNORECASE)

_MAX_LABEL_BYTES = 1000
"""Bytes that are read of a label file; real ones are far shorter."""


def read_ckplus(root: Path) -> Dataset:
    """Read the labelled sequences under `root`, which holds the two folders or is up to two levels above them.

    Everything under `root` is part of a sequence or listed in `skipped`; images are not opened. A set that is
    not the complete one (327 sequences of 118 subjects) gets a warning, unless `foldwise synth` wrote it.

    Raises:
        NotFound: `root` does not exist.
        InvalidInput: `root` is no folder, or holds none or several pairs of the two folders.
        OSError: the disk failed.
    """
    tree = Tree(root, layout="CK+")
    images, labels = _find_folders(tree)
    image_folders, label_folders = _sequence_folders(tree, images), _sequence_folders(tree, labels)
    sequences: list[FrameSequence] = []
    mismatched: list[str] = []
    for clip_id in sorted(image_folders.keys() | label_folders.keys()):
        image_folder, label_folder = image_folders.get(clip_id), label_folders.get(clip_id)
        frames = _numbered(tree, image_folder, _IMAGE_FILE, clip_id)
        label_files = _numbered(tree, label_folder, _LABEL_FILE, clip_id)
        label, reason = _read_label(label_folder, list(label_files.values()))
        if not frames:
            label = None
            reason = f"{'a label' if label_files else 'no label'} and no images named {clip_id}_<number>.png"
        if label is None:
            if image_folder is not None:
                tree.skip(image_folder, reason)
            if label_folder is not None and (image_folder is None or tree.entries(label_folder)):
                tree.skip(label_folder, reason)
            elif label_folder is not None:
                tree.use(label_folder)
            continue
        assert image_folder is not None  # noqa: S101 - for the type checker; it holds the frames
        tree.use(*frames.values(), *label_files.values())
        sequences.append(
            FrameSequence(
                clip_id=clip_id,
                subject=clip_id.split("_")[0],
                label=label,
                source=as_text(image_folder.relative_to(images.parent).as_posix()),
                frames=tuple(frames.values()),
            )
        )
        if max(label_files) != max(frames):
            mismatched.append(clip_id)
    warnings = (*_completeness(tree, images, sequences), *_mismatch_warnings(mismatched))
    return Dataset(
        name=NAME,
        classes=CLASSES,
        sequences=tuple(sequences),
        skipped=tree.finish(_skip_reason),
        warnings=warnings,
    )


def _find_folders(tree: Tree) -> tuple[Path, Path]:
    """The folders of images and labels: side by side, or each in its archive's folder."""
    images: list[Path] = []
    labels: list[Path] = []
    pairs: list[tuple[Path, Path]] = []
    level = [tree.root]
    for _ in range(MAX_SEARCH_DEPTH + 1):
        level = [child for path in level for child in tree.folders(path)]
        images += [path for path in level if path.name == IMAGES]
        labels += [path for path in level if path.name == LABELS]
        pairs = [(one, other) for one in images for other in labels if one.parent == other.parent]
        if pairs:
            break
    if not pairs and len(images) == len(labels) == 1:
        pairs = [(images[0], labels[0])]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        found = ", ".join(as_text(str(path.parent)) for path, _ in pairs)
        raise InvalidInput(
            f"root is {tree.root}, under which several folders hold CK+ ({found}); give one of them.",
            field="root",
        )
    raise InvalidInput(
        f"root is {tree.root}, but no folder in it, up to {MAX_SEARCH_DEPTH} levels down, holds both "
        f"{IMAGES!r} and {LABELS!r}; unpack both there, side by side.",
        field="root",
    )


def _sequence_folders(tree: Tree, top: Path) -> dict[str, Path]:
    """The sequences' folders by clip id."""
    found: dict[str, Path] = {}
    for subject in tree.folders(top):
        if not _SUBJECT_FOLDER.fullmatch(subject.name):
            continue
        for number in tree.folders(subject):
            if not _SEQUENCE_FOLDER.fullmatch(number.name):
                continue
            clip_id = f"{subject.name.upper()}_{number.name}"
            if clip_id in found:
                tree.skip(number, f"a second folder of {clip_id}")
            else:
                found[clip_id] = number
    return found


def _numbered(tree: Tree, folder: Path | None, pattern: re.Pattern[str], clip_id: str) -> dict[int, Path]:
    """The clip's files whose names match `pattern`, by frame number, in ascending order."""
    found: dict[int, Path] = {}
    for path in tree.files(folder) if folder is not None else []:
        match = pattern.fullmatch(path.name)
        if match and match[1].upper() == clip_id:
            number = int(match[2])
            if number in found:
                tree.skip(path, f"has the same number as {found[number].name}")
            else:
                found[number] = path
    return dict(sorted(found.items()))


def _read_label(folder: Path | None, files: list[Path]) -> tuple[str | None, str]:
    """The class, or None and the reason."""
    if not files:
        return None, "no label folder" if folder is None else "no label file: its label folder is empty"
    try:
        texts = {_text_of(path) for path in files}
    except (OSError, UnicodeDecodeError) as error:
        return None, f"its label file cannot be read: {getattr(error, 'strerror', None) or error}"
    if len(texts) > 1:
        return None, f"{len(files)} label files that contradict each other"
    text = texts.pop()
    shown = ascii(text[:40])
    try:
        code = float(text)
    except ValueError:
        return None, f"label {shown} is not a number"
    if code == NEUTRAL_CODE:
        return None, "label 0 (neutral) is not one of the seven emotions"
    label = LABEL_OF_CODE.get(int(code)) if code.is_integer() else None
    return label, "" if label else f"label {shown} is not a code of CK+ (1 to 7)"


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return decode_text(file.read(_MAX_LABEL_BYTES)).strip()
    except OSError as error:
        raise_if_disk_failed(path, error)
        raise


def _skip_reason(path: Path) -> str | None:
    if path.name.casefold() in _NOT_READ:
        return _NOT_READ[path.name.casefold()]
    if _IMAGE_FILE.fullmatch(path.name) and is_folder(path):
        return "a folder named like an image"
    if _IMAGE_FILE.fullmatch(path.name):
        return "an image that does not belong in this folder"
    if _LABEL_FILE.fullmatch(path.name):
        return "a label that does not belong in this folder"
    if _SUBJECT_FOLDER.fullmatch(path.name):
        return "a subject without a sequence"
    return None


def _completeness(tree: Tree, images: Path, sequences: list[FrameSequence]) -> tuple[str, ...]:
    marker = images.parent / SYNTHETIC_MARKER
    if is_file(marker):
        tree.use(marker)
        return ()
    return completeness_warnings(sequences, name="CK+", subjects=COMPLETE_SUBJECTS, counts=COMPLETE_COUNTS)


def _mismatch_warnings(clip_ids: list[str]) -> tuple[str, ...]:
    if not clip_ids:
        return ()
    return (
        f"In {len(clip_ids)} sequences the label names a different last frame than the images do, "
        f"so frames may be missing: {first_few(clip_ids)}.",
    )
