"""Presets: study specs by name, for the paper's experiments, the demo, and any clip cache.

The paper's presets are the paper's, except that trials run at the same time: the sampler learns with a delay,
and keeps away from trials that have not ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from services.cache_presets import CachePreset
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    BoundRule,
    ComputeSettings,
    Economies,
    MedianRule,
    StudySpec,
    TpeSampler,
    TrainingSettings,
)
from services.errors import InvalidInput, NotFound
from services.folds import KFold, LeaveOneSubjectOut
from services.search_space import Hyperparameters, SearchSpace, paper_space

PAPER_TRIALS = 800
PAPER_THRESHOLD = 0.965
"""Accuracy below which the paper ends a trial on CK+."""

DEMO_SUBJECTS = 10
"""Number of synthetic subjects, each with one clip of each of the seven emotions."""

CKPLUS_AUGMENTATION = Augmentation(
    counts={
        "contempt": AugmentationCounts(flip=1, rotation=7, contrast=4),
        "fear": AugmentationCounts(flip=1, rotation=4, contrast=4),
        "sadness": AugmentationCounts(flip=1, rotation=4, contrast=3),
        "anger": AugmentationCounts(flip=1, rotation=2, contrast=1),
        "happy": AugmentationCounts(flip=1, rotation=1, contrast=1),
        "disgust": AugmentationCounts(flip=1, rotation=1, contrast=1),
        "surprise": AugmentationCounts(flip=1, rotation=1, contrast=0),
    }
)
"""Section 4.1 of the paper: a quasi-balanced set of 1,722 clips."""

OULU_AUGMENTATION = Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1, rotation=5, contrast=2)})
"""Section 4.2 of the paper: 4,320 clips."""


PAPER_SAMPLER = TpeSampler(multivariate=False)
"""Section 3.3 of the paper: TPE fits a mixture for each parameter."""


def _demo_space() -> SearchSpace:
    """The space of Table 1 without what takes most time: two temporal sizes and a second convolution."""
    space = paper_space().model_dump() | {"temporal_size": [1, 3, 5]}
    del space["second_conv_layer"]
    return SearchSpace.model_validate(space)


def _table_2(name: str, protocol: LeaveOneSubjectOut | KFold) -> StudySpec:
    """The paper's best configuration on CK+, alone, with every epoch of every fold."""
    return StudySpec(
        name=name,
        cache="ckplus",
        protocol=protocol,
        trials=1,
        enqueue=(Hyperparameters().model_dump(),),
        sampler=PAPER_SAMPLER,
        pruning=(),
        # The report then has every reading of "the best epoch".
        economies=Economies(stop_when_perfect=False),
        training=TrainingSettings(augmentation=CKPLUS_AUGMENTATION),
    )


PRESETS: dict[str, StudySpec] = {
    "ckplus-loso": StudySpec(
        name="ckplus-loso",
        cache="ckplus",
        protocol=LeaveOneSubjectOut(),
        trials=PAPER_TRIALS,
        sampler=PAPER_SAMPLER,
        feedback_delay=8,
        pruning=(BoundRule(threshold=PAPER_THRESHOLD),),
        # A bound prunes correctly in any order of folds; in this order it ends hopeless trials earliest.
        fold_order="hardest_first",
        training=TrainingSettings(augmentation=CKPLUS_AUGMENTATION),
    ),
    "ckplus-best": _table_2("ckplus-best", LeaveOneSubjectOut()),
    "ckplus-best-10fold": _table_2("ckplus-best-10fold", KFold(k=10)),
    # The paper searches on the folds of Leave-One-Subject-Out only.
    "ckplus-10fold": StudySpec(
        name="ckplus-10fold",
        cache="ckplus",
        protocol=KFold(k=10),
        trials=PAPER_TRIALS,
        sampler=PAPER_SAMPLER,
        feedback_delay=8,
        pruning=(MedianRule(),),
        training=TrainingSettings(augmentation=CKPLUS_AUGMENTATION),
    ),
    "oulu-10fold": StudySpec(
        name="oulu-10fold",
        cache="oulu-casia",
        protocol=KFold(k=10),
        trials=PAPER_TRIALS,
        sampler=PAPER_SAMPLER,
        feedback_delay=8,
        pruning=(MedianRule(),),
        training=TrainingSettings(augmentation=OULU_AUGMENTATION),
    ),
    "demo": StudySpec(
        name="demo",
        cache="ckplus",
        protocol=KFold(k=5),
        space=_demo_space(),
        trials=12,
        seed=4,
        sampler=TpeSampler(startup_trials=4),
        pruning=(MedianRule(startup_trials=3, warmup_folds=2),),
        # Up to three workers have a trial each, and trial 6 is the first that the sampler models.
        feedback_delay=2,
        # Bits depend on the number of threads: with one, the trials are the same whatever the number of cores.
        compute=ComputeSettings(threads=1),
        training=TrainingSettings(
            width=6,
            # A clip of six frames takes two thirds of the time of one with ten.
            frames=6,
            frame_size=32,
            batch_size=8,
            learning_rate=0.0005,
            epochs=8,
            # An epoch has 14 batches. With the paper's 0.1 the running statistics stay behind the weights.
            bn_momentum=0.3,
            augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1)}),
        ),
    ),
}


CACHE_PRESETS: tuple[CachePreset, ...] = get_args(CachePreset)

PRESET_NAMES = (*PRESETS, *CACHE_PRESETS)


def clip_preset(name: str) -> dict[str, str | int]:
    """Options of `foldwise preprocess` for the clips that a preset needs; the paper's presets use its detector.

    Raises:
        NotFound: there is no such preset; the message lists the known ones.
        InvalidInput: the preset fits any clips.
    """
    spec = get_preset(name)
    return {
        "dataset": spec.cache,
        "frames": spec.training.frames,
        "frame_size": spec.training.frame_size,
        "detector": "yunet" if name == "demo" else "res10",
        "frame_sampling": "last",
        "windows": 1,
        "box": "frame",
    }


def clip_differences(spec: StudySpec, dataset: str, settings: Mapping[str, Any]) -> str | None:
    """A sentence about what a paper's study finds in its clips that the paper's clips do not have, or None.

    A study is the paper's if it has the dataset and the augmentation of one of the paper's presets.

    Args:
        spec: the study.
        dataset: name of its clip cache.
        settings: how the clips were made: `CacheManifest.settings`.
    """
    for name, preset in PRESETS.items():
        if name == "demo" or preset.cache != dataset:
            continue
        if preset.training.augmentation != spec.training.augmentation:
            continue
        wanted = clip_preset(name)
        different = [key for key in ("detector", "box") if settings.get(key, wanted[key]) != wanted[key]]
        if not different:
            return None
        theirs, ours = (
            " and ".join(f"{key} {values[key]}" for key in different) for values in (settings, wanted)
        )
        return (
            f"the clips were made with {theirs}, the paper's with {ours}; "
            f"to make such clips, run: foldwise preprocess --preset {name} --root FOLDER"
        )
    return None


def get_preset(name: str) -> StudySpec:
    """The study spec of a preset.

    Raises:
        NotFound: there is no such preset; the message lists the known ones.
        InvalidInput: the preset is one of `CACHE_PRESETS`, which have no spec without a clip cache.
    """
    if name in CACHE_PRESETS:
        raise InvalidInput(
            f"the preset {name} fits any clips, so it names none; name the clip cache or the dataset yourself",
            field="preset",
        )
    try:
        return PRESETS[name]
    except KeyError:
        raise NotFound(
            f"there is no preset {name!r}; there are: {', '.join(PRESET_NAMES)}", field="preset"
        ) from None
