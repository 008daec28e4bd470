"""Oulu-CASIA NIR&VIS as its authors distribute it: `OriginalImg/VL/Strong/P012/Anger/000.jpeg`.

Two cameras (VL visible light, NI near infrared) recorded six emotions of 80 people under three lightings.
"""

from __future__ import annotations

import re
from functools import cache, partial
from pathlib import Path

from preprocessing.datasets.reader import (
    SYNTHETIC_MARKER,
    Dataset,
    FrameSequence,
    as_text,
    completeness_warnings,
    first_few,
)
from preprocessing.datasets.reader_settings import one_of
from preprocessing.datasets.tree import Tree, is_file, is_folder
from services.errors import InvalidInput

NAME = "oulu-casia"
MODALITIES = ("VL", "NI")
LIGHTINGS = ("Strong", "Weak", "Dark")
MAX_SEARCH_DEPTH = 8
"""Levels below the root that are searched for the folder of the subjects."""

CLASSES = ("anger", "disgust", "fear", "happy", "sadness", "surprise")
"""In the order and with the names of the paper's confusion matrix, so that they match those of CK+."""

FOLDER_OF_CLASS = {
    "anger": "Anger",
    "disgust": "Disgust",
    "fear": "Fear",
    "happy": "Happiness",
    "sadness": "Sadness",
    "surprise": "Surprise",
}

COMPLETE_SUBJECTS = 80

_CLASS_OF_FOLDER = {folder.casefold(): label for label, folder in FOLDER_OF_CLASS.items()}
_SUBJECT_FOLDER = re.compile(r"P[0-9]+", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"([0-9]+)\.(?:jpe?g|png|bmp)", re.IGNORECASE)


def read_oulu_casia(root: Path, *, modality: str = "VL", lighting: str = "Strong") -> Dataset:
    """Read the sequences of one modality and lighting.

    Everything else under `root` is listed in `skipped`; images are not opened. A set that is not the complete
    one (480 sequences of 80 subjects) gets a warning, unless `foldwise synth` wrote it.

    Args:
        root: the folder that holds the subjects, such as `VL/Strong`, or one up to eight levels above it.
        modality: `VL` (visible light; clips in colour) or `NI` (near infrared; gray clips). The paper uses VL.
        lighting: `Strong`, `Weak` or `Dark`. The paper uses Strong.

    Raises:
        NotFound: `root` does not exist.
        InvalidInput: the modality or lighting is unknown, `root` is no folder, or it holds none or several of
            the folders searched for.
        OSError: the disk failed.
    """
    modality = one_of("modality", modality, MODALITIES)
    lighting = one_of("lighting", lighting, LIGHTINGS)
    tree = Tree(root, layout="Oulu-CASIA")
    top = _find_subjects(tree, modality, lighting)
    sequences: list[FrameSequence] = []
    gaps: list[str] = []
    for clip_id, folder in sorted(_emotion_folders(tree, top).items()):
        frames = _frames(tree, folder)
        if not frames:
            tree.skip(folder, "no images named <number>.jpeg")
            continue
        tree.use(*frames.values())
        subject, label = clip_id.split("_")
        sequences.append(
            FrameSequence(
                clip_id=clip_id,
                subject=subject,
                label=label,
                source=as_text(folder.relative_to(top.parent.parent).as_posix()),
                frames=tuple(frames.values()),
            )
        )
        if list(frames) != list(range(len(frames))):
            gaps.append(clip_id)
    warnings = (*_completeness(tree, top, sequences), *_gap_warnings(gaps))

    def skip_reason(path: Path) -> str | None:
        if path.name.casefold() in {name.casefold() for name in (*MODALITIES, *LIGHTINGS)}:
            return f"not asked for: modality is {modality} and lighting {lighting}"
        if _SUBJECT_FOLDER.fullmatch(path.name):
            return "a subject without an emotion folder"
        return "no emotion of the set" if path.parent.parent == top and is_folder(path) else None

    return Dataset(
        name=NAME,
        classes=CLASSES,
        sequences=tuple(sequences),
        skipped=tree.finish(skip_reason),
        warnings=warnings,
        colour=modality == "VL",
        settings={"modality": modality, "lighting": lighting},
    )


def _find_subjects(tree: Tree, modality: str, lighting: str) -> Path:
    """The folder that holds the subjects of this modality and lighting."""
    holds_subjects = cache(partial(_holds_subjects, tree))
    holders = list(filter(holds_subjects, tree.walk(MAX_SEARCH_DEPTH, stop_at=holds_subjects)))
    wanted = (modality.casefold(), lighting.casefold())
    matching = [path for path in holders if _modality_and_lighting(path) == wanted]
    if len(matching) == 1:
        return matching[0]
    if matching:
        found = ", ".join(as_text(str(path)) for path in matching)
        raise InvalidInput(
            f"root is {tree.root}, under which several folders are {modality}/{lighting} "
            f"({found}); give one of them.",
            field="root",
        )
    known = ", ".join(as_text(f"{path.parent.name}/{path.name}") for path in holders) or "none"
    raise InvalidInput(
        f"root is {tree.root}, but no folder {modality}/{lighting} with subjects P001, P002, ... is in it, "
        f"up to {MAX_SEARCH_DEPTH} levels down; folders with subjects: {known}.",
        field="root",
    )


def _holds_subjects(tree: Tree, folder: Path) -> bool:
    return any(_SUBJECT_FOLDER.fullmatch(child.name) for child in tree.folders(folder))


def _modality_and_lighting(folder: Path) -> tuple[str, str]:
    return folder.parent.name.casefold(), folder.name.casefold()


def _emotion_folders(tree: Tree, top: Path) -> dict[str, Path]:
    """The sequences' folders by clip id."""
    found: dict[str, Path] = {}
    for subject in tree.folders(top):
        if not _SUBJECT_FOLDER.fullmatch(subject.name):
            continue
        for folder in tree.folders(subject):
            label = _CLASS_OF_FOLDER.get(folder.name.casefold())
            if label is None:
                continue
            clip_id = f"{subject.name.upper()}_{label}"
            if clip_id in found:
                tree.skip(folder, f"a second folder of {clip_id}")
            else:
                found[clip_id] = folder
    return found


def _frames(tree: Tree, folder: Path) -> dict[int, Path]:
    """Image files by frame number, in ascending order."""
    found: dict[int, Path] = {}
    for path in tree.files(folder):
        match = _IMAGE_FILE.fullmatch(path.name)
        if match and int(match[1]) in found:
            tree.skip(path, f"has the same number as {found[int(match[1])].name}")
        elif match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _completeness(tree: Tree, top: Path, sequences: list[FrameSequence]) -> tuple[str, ...]:
    for folder in top.parents[:3]:  # VL, OriginalImg, and what holds it
        if is_file(folder / SYNTHETIC_MARKER):
            tree.use(folder / SYNTHETIC_MARKER)
            return ()
    counts = dict.fromkeys(CLASSES, COMPLETE_SUBJECTS)
    return completeness_warnings(sequences, name="Oulu-CASIA", subjects=COMPLETE_SUBJECTS, counts=counts)


def _gap_warnings(clip_ids: list[str]) -> tuple[str, ...]:
    if not clip_ids:
        return ()
    return (
        f"In {len(clip_ids)} sequences the frames are not numbered 0, 1, 2, ... without a gap, "
        f"so frames may be missing: {first_few(clip_ids)}.",
    )
