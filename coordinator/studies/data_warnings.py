"""What is wrong with a study's clips, or not as in the paper, though it can run on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import StudyFoldRow, StudyRow
from services.clip_cache import cache_folder, open_cache
from services.contracts import StudySpec
from services.folds import AllClips, Clip, HeldOut, Holdout
from services.presets import clip_differences


def data_warnings(session: Session, study: StudyRow, cache_root: Path) -> tuple[str, ...]:
    """Sentences about a new study's clips.

    Raises:
        CacheMismatch: its clip cache is not under `cache_root`.
    """
    spec = parsed_spec(study)
    if isinstance(spec.protocol, AllClips | HeldOut):
        return ()
    cache = open_cache(cache_folder(cache_root, study.dataset, study.fingerprint), verify=False)
    split = study_split(session, study)
    different = clip_differences(spec, study.dataset, cache.manifest.settings)
    return (
        *_about_classes(study, spec, split, cache.clips()),
        *_about_given_split(spec, split, cache.clips()),
        *([] if different is None else [different]),
    )


def _about_classes(
    study: StudyRow, spec: StudySpec, split: Sequence[StudyFoldRow], clips: Sequence[Clip]
) -> Iterator[str]:
    if isinstance(spec.protocol, Holdout):
        trained = {clip.label for clip in clips if clip.split == "train"}
        for label in sorted({label for fold in split for label in fold.labels} - trained):
            yield (
                f"no clip of class {study.classes[label]!r} is in the part train, so those in the part test "
                "all count as wrong"
            )
        return
    folds_of = Counter(label for fold in split for label in set(fold.labels))
    for label, folds in sorted(folds_of.items()):
        if folds == 1:
            yield (
                f"the clips of class {study.classes[label]!r} are all in one fold: no network that is tested "
                "on them was trained on this class, so they all count as wrong"
            )


def _about_given_split(spec: StudySpec, split: Sequence[StudyFoldRow], clips: Sequence[Clip]) -> Iterator[str]:
    if not all(clip.has_subject for clip in clips):
        yield (
            "the dataset gives no subjects, so nobody can check whether a fold trains and tests on the same "
            "person"
        )
    unused = sum(len(fold.validation_clip_ids) for fold in split)
    if unused and spec.epoch_choice != "validation":
        yield (
            f"the {unused} clips in the part validation are neither trained on nor tested; set epoch_choice to "
            "validation to choose the epoch on them"
        )
