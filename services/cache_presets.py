"""The presets `loso` and `kfold`: the paper's network and search space, fitted to any clip cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from services.balanced_augmentation import balance
from services.errors import InvalidInput

CachePreset = Literal["loso", "kfold"]

MAX_LOSO_SUBJECTS = 20
"""Subjects up to which a study without a protocol leaves one out at a time: twice the folds of `kfold`."""

FOLDS = 10
"""Folds of `kfold`, as in the paper; fewer if there are fewer subjects."""

MIN_TRIALS, MAX_TRIALS = 20, 800
"""Trials are as many as clips, within these limits: with more, the best of them is chosen by chance."""

MAX_FEEDBACK_DELAY = 8


class CachedClips(Protocol):
    """What a preset must know about a clip cache; `CacheManifest` and `DatasetView` are such objects."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""

    @property
    def class_counts(self) -> Mapping[str, int]:
        """Clips of each class."""

    @property
    def clips(self) -> int:
        """Number of clips."""

    @property
    def subjects(self) -> int:
        """Number of subjects."""

    @property
    def frames(self) -> int:
        """Frames of a clip."""

    @property
    def frame_size(self) -> int:
        """Width and height of a frame in pixels."""


def choose_preset(clips: CachedClips) -> tuple[CachePreset, str]:
    """The preset for a study that names none, and the reason in one clause."""
    if clips.subjects <= MAX_LOSO_SUBJECTS:
        return "loso", f"because {clips.subjects} subjects are not more than {MAX_LOSO_SUBJECTS}"
    return "kfold", (
        f"because {clips.subjects} subjects are more than {MAX_LOSO_SUBJECTS}: loso would run "
        f"{clips.subjects} folds in each trial"
    )


def fit_preset(
    preset: CachePreset, clips: CachedClips, *, trials: int | None = None, folds: int | None = None
) -> dict[str, Any]:
    """The preset for this cache: fields of a `StudySpec` as in JSON; missing ones have their defaults.

    Args:
        preset: `loso` or `kfold`.
        clips: the cache, whose name is not among the fields.
        trials: number of trials; None means as many as fit the cache.
        folds: number of folds of `kfold`; None means as many as fit the cache.

    Raises:
        InvalidInput: the clips have no subjects.
    """
    if not clips.subjects:
        raise InvalidInput(
            f"the clips of {clips.dataset} have no subjects, so {preset} cannot split them; set protocol to "
            "given_folds or holdout to use the dataset's own split",
            field="protocol",
        )
    if preset == "loso":
        folds = clips.subjects
    elif folds is None:
        folds = min(FOLDS, max(2, clips.subjects))
    if trials is None:
        trials = fitted_trials(clips)
    return {
        "name": _study_name(clips, preset),
        "protocol": {"kind": "loso"} if preset == "loso" else {"kind": "kfold", "k": folds},
        "trials": trials,
        "sampler": {"kind": "tpe", "startup_trials": min(10, max(1, trials // 4))},
        # A third of the folds, because 10 of Leave-One-Subject-Out would be most folds of a small set.
        "pruning": [{"rule": "median", "warmup_folds": min(10, max(2, folds // 3))}],
        "feedback_delay": min(MAX_FEEDBACK_DELAY, max(2, trials // 10)),
        "training": _fit_training(clips),
    }


def fitted_trials(clips: CachedClips) -> int:
    """Number of trials that fits a cache."""
    return min(MAX_TRIALS, max(MIN_TRIALS, clips.clips))


def complete_spec(
    given: Mapping[str, Any], clips: CachedClips, preset: CachePreset | None = None
) -> dict[str, Any]:
    """A study's fields, with those of `loso` or `kfold` where it has none.

    Args:
        given: fields of a `StudySpec` as in JSON; those of `training` and of the preset's own protocol are
            completed one by one.
        clips: the cache of the study.
        preset: None means that of the study's protocol, or the one that `choose_preset` chooses. With another
            protocol, only `training` fits the cache.

    Raises:
        InvalidInput: the clips have no subjects, and the protocol needs them.
    """
    protocol, training = given.get("protocol", {}), given.get("training", {})
    trials, kind, k = given.get("trials"), None, None
    enqueue = given.get("enqueue")
    if trials is None and isinstance(enqueue, list | tuple) and len(enqueue) > fitted_trials(clips):
        trials = len(enqueue)
    if isinstance(protocol, Mapping):
        kind, k = protocol.get("kind"), protocol.get("k")
    if preset is None and kind in {None, "loso", "kfold"}:
        preset = choose_preset(clips)[0] if kind is None else kind
    if preset is None:
        fitted: dict[str, Any] = {
            "name": _study_name(clips, "study"),
            "training": _fit_training(clips),
        }
    else:
        fitted = fit_preset(
            preset,
            clips,
            trials=trials if isinstance(trials, int) else None,
            folds=k if isinstance(k, int) else None,
        )
    if given.get("workers") is not None:
        # The delay follows from the number of workers.
        fitted.pop("feedback_delay", None)
    completed = {**fitted, **given}
    if isinstance(training, Mapping):
        completed["training"] = {**fitted["training"], **training}
    if preset is not None and isinstance(protocol, Mapping) and kind == preset:
        completed["protocol"] = {**fitted["protocol"], **protocol}
    return completed


def _fit_training(clips: CachedClips) -> dict[str, Any]:
    return {
        "frames": clips.frames,
        "frame_size": clips.frame_size,
        "augmentation": balance(clips.class_counts).model_dump(mode="json"),
    }


def _study_name(clips: CachedClips, ending: str) -> str:
    return f"{clips.dataset[:50].strip('-')}-{ending}"
