"""What a forecast needs to know of a dataset: from a clip cache, or of the paper's sets as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from pathlib import Path

from coordinator.studies.life import check_cache
from preprocessing.datasets import ckplus, oulu_casia
from services.clip_cache import cache_folder, find_cache, open_cache
from services.contracts import StudySpec
from services.errors import CacheMismatch
from services.folds import Clip
from services.presets import DEMO_SUBJECTS, get_preset

CKPLUS_SUBJECTS = {1: 21, 2: 22, 3: 47, 4: 20, 5: 7, 6: 1}
"""How many subjects of CK+ have so many labelled sequences."""

OULU_CLASSES = dict.fromkeys(oulu_casia.CLASSES, oulu_casia.COMPLETE_SUBJECTS)
OULU_SUBJECTS = {6: 80}


@dataclass(frozen=True, kw_only=True)
class DatasetShape:
    """A dataset without its pictures."""

    name: str
    source: str
    """Where this is known from, for people."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    channels: int
    """1 for gray clips, 3 for colour."""

    @property
    def subjects(self) -> int:
        """How many people."""
        return len({clip.subject for clip in self.clips})


def shape_of_cache(spec: StudySpec, cache_root: Path) -> DatasetShape:
    """The clips of the cache that a study names.

    Raises:
        CacheMismatch: there is none, or its clips are of another size than the study says.
        InvalidInput: the study augments a class that the cache has not.
    """
    manifest = find_cache(cache_root, spec.cache)
    check_cache(spec, manifest)
    cache = open_cache(cache_folder(cache_root, manifest.dataset, manifest.fingerprint), verify=False)
    return DatasetShape(
        name=manifest.dataset,
        source=f"the clip cache {manifest.dataset}/{manifest.fingerprint[:12]}",
        classes=manifest.classes,
        clips=cache.clips(),
        channels=manifest.channels,
    )


def published_shape(preset: str) -> DatasetShape:
    """The dataset that a preset is made for, as it is published; that of the demo as it is drawn.

    Whose clips show what is made up: how many clips the folds of loso or kfold train on
    in all does not depend on it.

    Raises:
        NotFound: there is no such preset.
    """
    if preset == "demo":
        classes = dict.fromkeys(ckplus.COMPLETE_COUNTS, DEMO_SUBJECTS)
        return _made_up("ckplus", "the synthetic set of the demo", classes, {len(classes): DEMO_SUBJECTS}, 1)
    if get_preset(preset).cache == "oulu-casia":
        return _made_up("oulu-casia", "the published set", OULU_CLASSES, OULU_SUBJECTS, 3)
    return _made_up("ckplus", "the published set", ckplus.COMPLETE_COUNTS, CKPLUS_SUBJECTS, 1)


def shape_of(spec: StudySpec, *, preset: str | None, cache: str | None, cache_root: Path) -> DatasetShape:
    """The shape of a study's dataset: of a cache where one is named, else of the preset's published set.

    Args:
        spec: the study.
        preset: the preset that it was made from.
        cache: the cache that was named beside it.
        cache_root: folder of the clip caches.

    Raises:
        CacheMismatch, InvalidInput: as `shape_of_cache`.
    """
    if preset is not None and cache is None and spec.cache == get_preset(preset).cache:
        return published_shape(preset)
    try:
        return shape_of_cache(spec, cache_root)
    except CacheMismatch as error:
        if preset is not None:
            raise
        raise CacheMismatch(
            f"{error.message}; without a cache, --preset plans on the published sets", field=error.field
        ) from error


def _made_up(
    name: str, source: str, classes: Mapping[str, int], subjects: Mapping[int, int], channels: int
) -> DatasetShape:
    labels = _dealt(classes)
    clips = []
    for number, count in enumerate(chain.from_iterable(repeat(n, times) for n, times in subjects.items())):
        subject = f"s{number:03d}"
        clips += [Clip(clip_id=f"{subject}_{i}", subject=subject, label=next(labels)) for i in range(count)]
    return DatasetShape(name=name, source=source, classes=tuple(classes), clips=tuple(clips), channels=channels)


def _dealt(classes: Mapping[str, int]) -> Iterator[int]:
    """The label of each clip: the classes in turn as long as they last."""
    left = Counter(dict(enumerate(classes.values())))
    for label in cycle(range(len(classes))):
        if not left.total():
            return
        if left[label]:
            left[label] -= 1
            yield label
