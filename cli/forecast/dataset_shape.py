"""What a forecast needs to know about a dataset: read from a clip cache, or known from the published sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from pathlib import Path

from coordinator.studies.life import check_cache
from preprocessing.datasets import ckplus, oulu_casia
from services.clip_cache import cache_folder, find_cache, open_cache
from services.contracts import DatasetView, StudySpec
from services.errors import CacheMismatch
from services.folds import Clip
from services.presets import DEMO_SUBJECTS, PRESETS, get_preset

CKPLUS_SUBJECTS = {1: 21, 2: 22, 3: 47, 4: 20, 5: 7, 6: 1}
"""Number of CK+ subjects, by their number of labelled sequences."""

OULU_CLASSES = dict.fromkeys(oulu_casia.CLASSES, oulu_casia.COMPLETE_SUBJECTS)
OULU_SUBJECTS = {6: 80}
"""Number of Oulu-CASIA subjects, by their number of labelled sequences."""


@dataclass(frozen=True, kw_only=True)
class DatasetShape:
    """A dataset's clips, classes and channels, without the images."""

    name: str
    source: str
    """Where this information comes from, for printing."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    channels: int
    """1 for gray clips, 3 for colour."""

    @property
    def subjects(self) -> int:
        """Number of subjects; 0 if the dataset gives none."""
        return len({clip.subject for clip in self.clips if clip.has_subject})


def shape_of_cache(spec: StudySpec, cache_root: Path) -> DatasetShape:
    """The shape of the clip cache that a study names.

    Raises:
        CacheMismatch: there is no such cache, or its clips do not have the study's size.
        InvalidInput: the study augments a class that the cache does not have.
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


def described_shape(dataset: DatasetView) -> DatasetShape:
    """The shape of a clip cache of which only the numbers are known, as of one on another machine.

    Each subject gets about as many clips as every other, and the classes in turn.
    """
    each, more = divmod(dataset.clips, dataset.subjects)
    return _invent_shape(
        dataset.dataset,
        f"the clip cache {dataset.dataset}/{dataset.fingerprint[:12]}",
        dataset.class_counts,
        {each: dataset.subjects - more, each + 1: more},
        dataset.channels,
    )


def published_shape(preset: str) -> DatasetShape:
    """The shape of the dataset that a preset is made for: as published, or as the demo draws it.

    Which subject has which class is invented. It does not change how many clips the folds train on in total.

    Raises:
        NotFound: there is no such preset.
    """
    if preset == "demo":
        classes = dict.fromkeys(ckplus.COMPLETE_COUNTS, DEMO_SUBJECTS)
        return _invent_shape(
            "ckplus", "the synthetic set of the demo", classes, {len(classes): DEMO_SUBJECTS}, 1
        )
    if get_preset(preset).cache == "oulu-casia":
        return _invent_shape("oulu-casia", "the published set", OULU_CLASSES, OULU_SUBJECTS, 3)
    return _invent_shape("ckplus", "the published set", ckplus.COMPLETE_COUNTS, CKPLUS_SUBJECTS, 1)


def shape_of(spec: StudySpec, *, preset: str | None, cache: str | None, cache_root: Path) -> DatasetShape:
    """The shape of a study's dataset: of the clip cache that is named, otherwise of the preset's published set.

    Args:
        spec: the study.
        preset: name of the preset that the study was built from, or None.
        cache: name of the clip cache that the user gave besides the preset, or None.
        cache_root: folder of the clip caches.

    Raises:
        CacheMismatch, InvalidInput: as `shape_of_cache`.
    """
    if preset is not None and preset in PRESETS and cache is None and spec.cache == get_preset(preset).cache:
        return published_shape(preset)
    try:
        return shape_of_cache(spec, cache_root)
    except CacheMismatch as error:
        if preset is not None:
            raise
        raise CacheMismatch(
            f"{error.message}; without a cache, use --preset to plan on a published set", field=error.field
        ) from error


def _invent_shape(
    name: str, source: str, classes: Mapping[str, int], subjects: Mapping[int, int], channels: int
) -> DatasetShape:
    labels = _alternating_labels(classes)
    clips = []
    for number, count in enumerate(chain.from_iterable(repeat(n, times) for n, times in subjects.items())):
        subject = f"s{number:03d}"
        clips += [Clip(clip_id=f"{subject}_{i}", subject=subject, label=next(labels)) for i in range(count)]
    return DatasetShape(name=name, source=source, classes=tuple(classes), clips=tuple(clips), channels=channels)


def _alternating_labels(classes: Mapping[str, int]) -> Iterator[int]:
    """A label for each clip: the classes in turn, each as often as its count."""
    remaining = Counter(dict(enumerate(classes.values())))
    for label in cycle(range(len(classes))):
        if not remaining.total():
            return
        if remaining[label]:
            remaining[label] -= 1
            yield label
