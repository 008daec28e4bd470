"""Splits clips into folds: Leave-One-Subject-Out, subject-independent k-fold, nested folds, or one fold of all.

A fold tests some subjects and trains on all others except those of an outer fold. Subjects are sorted by id;
k-fold puts subject i (from 0) into fold i modulo k, the rule of the ten CK+ subsets that the paper compares on
(section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.errors import InvalidInput
from services.seeds import sha256_of

MIN_CLASSES = 2
"""Minimum number of classes of a classifier."""

MIN_TRAIN_CLIPS = 2
"""Minimum number of training clips; batch normalization needs more than one."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of a cache, as splits and scores see it."""

    clip_id: str
    subject: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold and the clips it tests; `train_clips` gives the clips it trains on."""

    index: int
    name: str
    """The left-out subject, or text such as `fold 3 of 10`."""

    subjects: tuple[str, ...]
    """Subjects of the test clips."""

    test_clips: tuple[str, ...]
    validation_clips: tuple[str, ...] = ()
    """Clips that choose the epoch, neither trained on nor tested, ordered by id."""


class OuterFold(BaseModel):
    """One fold of the outer k-fold split of a nested cross-validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    k: int = Field(ge=2, le=1000)
    fold: int = Field(ge=0, lt=1000, description="index, from 0")

    @model_validator(mode="after")
    def _is_one_of_them(self) -> OuterFold:
        if self.fold >= self.k:
            raise ValueError(f"fold is {self.fold}; with k = {self.k} the last fold is {self.k - 1}")
        return self


class LeaveOneSubjectOut(BaseModel):
    """One fold for each subject."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["loso"] = "loso"
    outer: OuterFold | None = Field(None, description="its subjects are neither trained on nor tested")


class KFold(BaseModel):
    """Subject-independent k-fold."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["kfold"] = "kfold"
    k: int = Field(10, ge=2, le=1000)
    outer: OuterFold | None = Field(None, description="its subjects are neither trained on nor tested")


class HeldOut(BaseModel):
    """One fold that trains on all subjects except those of an outer fold, and tests those after the last epoch.

    It measures a configuration that was selected without them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["held_out"] = "held_out"
    outer: OuterFold


class AllClips(BaseModel):
    """One fold that trains a final model on all clips and tests it on the same clips.

    Its accuracy shows whether it has learnt them, and nothing about other people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["all"] = "all"


SplitProtocol = LeaveOneSubjectOut | KFold | HeldOut | AllClips
Protocol = Annotated[SplitProtocol, Field(discriminator="kind")]


def make_folds(clips: Sequence[Clip], protocol: SplitProtocol) -> tuple[Fold, ...]:
    """Split clips into folds in which no subject is on both sides.

    Raises:
        InvalidInput: fewer subjects than the protocol needs.
    """
    subjects = sorted({clip.subject for clip in clips})
    if isinstance(protocol, AllClips):
        tested = tuple(sorted(clip.clip_id for clip in clips))
        everything = Fold(index=0, name="all clips", subjects=tuple(subjects), test_clips=tested)
        check_folds(clips, [everything])
        return (everything,)
    left_out = outer_subjects(clips, protocol.outer)
    if isinstance(protocol, HeldOut):
        tested = tuple(sorted(clip.clip_id for clip in clips if clip.subject in left_out))
        name = f"outer fold {protocol.outer.fold + 1} of {protocol.outer.k}"
        return (Fold(index=0, name=name, subjects=tuple(sorted(left_out)), test_clips=tested),)
    taking_part = [clip for clip in clips if clip.subject not in left_out]
    inner = [subject for subject in subjects if subject not in left_out]
    match protocol:
        case LeaveOneSubjectOut():
            k, names = len(inner), inner
        case KFold(k=k):
            names = [f"fold {index + 1} of {k}" for index in range(k)]
        case _:
            assert_never(protocol)
    if len(inner) < max(2, k):
        available = f"{len(inner)} outside the outer fold" if left_out else f"{len(inner)}"
        raise InvalidInput(
            f"{max(2, k)} folds need at least as many subjects, the cache has {available}; "
            "choose a smaller k or a larger dataset",
            field="protocol",
        )
    fold_of = {subject: position % k for position, subject in enumerate(inner)}
    folds = []
    for index in range(k):
        members = tuple(subject for subject in inner if fold_of[subject] == index)
        tested = tuple(sorted(clip.clip_id for clip in taking_part if fold_of[clip.subject] == index))
        folds.append(Fold(index=index, name=names[index], subjects=members, test_clips=tested))
    check_folds(taking_part, folds)
    return tuple(folds)


def outer_subjects(clips: Iterable[Clip], outer: OuterFold | None) -> frozenset[str]:
    """The subjects of an outer fold: those that `KFold` with the same k puts into it; empty for None.

    Raises:
        InvalidInput: fewer subjects than outer folds.
    """
    if outer is None:
        return frozenset()
    subjects = sorted({clip.subject for clip in clips})
    if len(subjects) < outer.k:
        raise InvalidInput(
            f"{outer.k} outer folds need at least as many subjects, the cache has {len(subjects)}; "
            "choose a smaller k or a larger dataset",
            field="protocol.outer.k",
        )
    return frozenset(subjects[outer.fold :: outer.k])


def train_clips(clips: Sequence[Clip], fold: Fold, protocol: SplitProtocol) -> tuple[str, ...]:
    """Ids of the clips that a fold of a protocol trains on."""
    if isinstance(protocol, AllClips):
        return fold.test_clips
    away = outer_subjects(clips, protocol.outer).union(fold.subjects)
    validated = frozenset(fold.validation_clips)
    return tuple(
        sorted(clip.clip_id for clip in clips if clip.subject not in away and clip.clip_id not in validated)
    )


def check_folds(clips: Sequence[Clip], folds: Sequence[Fold]) -> None:
    """Check that every clip is tested exactly once, that no subject is split, and the validation clips.

    Raises:
        InvalidInput: a clip id is duplicated, a clip is tested never or twice, a subject is in two folds, or a
            fold's validation clips are not all clips of subjects that it does not test.
    """
    subject_of = {clip.clip_id: clip.subject for clip in clips}
    if len(subject_of) != len(clips):
        raise InvalidInput("two clips of the cache have the same id", field="clips")
    fold_of_subject: dict[str, int] = {}
    seen: set[str] = set()
    for fold in folds:
        for clip_id in fold.test_clips:
            if clip_id in seen or clip_id not in subject_of:
                raise InvalidInput(f"clip {clip_id} is tested twice or is not in the cache", field="folds")
            seen.add(clip_id)
            subject = subject_of[clip_id]
            if fold_of_subject.setdefault(subject, fold.index) != fold.index:
                raise InvalidInput(f"subject {subject} leaks: its clips are tested in two folds", field="folds")
        if set(fold.subjects) != {subject_of[clip_id] for clip_id in fold.test_clips}:
            raise InvalidInput(f"fold {fold.name} names other subjects than it tests", field="folds")
    if missing := set(subject_of) - seen:
        raise InvalidInput(f"clip {min(missing)} is tested in no fold", field="folds")
    clips_of = Counter(subject_of.values())
    for fold in folds:
        _check_validation(fold, subject_of, clips_of)


def check_trainable(
    clips: Sequence[Clip], folds: Sequence[Fold], protocol: SplitProtocol, classes: Sequence[str]
) -> None:
    """Check before a study runs that a network can be trained in every fold.

    Raises:
        InvalidInput: the clips have fewer than two classes, or a fold has fewer than `MIN_TRAIN_CLIPS` clips to
            train on.
    """
    found = sorted({classes[clip.label] for clip in clips})
    if len(found) < MIN_CLASSES:
        raise InvalidInput(
            f"the clips have {len(found)} class ({', '.join(found)}), a study needs at least {MIN_CLASSES}; "
            "add clips of another class",
            field="cache",
        )
    clips_of = Counter(clip.subject for clip in clips)
    outer = frozenset() if isinstance(protocol, AllClips) else outer_subjects(clips, protocol.outer)
    for fold in folds:
        # As many as `train_clips` lists, without going through all clips for each fold.
        away = frozenset() if isinstance(protocol, AllClips) else outer.union(fold.subjects)
        left = len(clips) - sum(clips_of[subject] for subject in away) - len(fold.validation_clips)
        if left < MIN_TRAIN_CLIPS:
            raise InvalidInput(
                f"fold {fold.name!r} leaves {left} of {len(clips)} clips to train on, at least "
                f"{MIN_TRAIN_CLIPS} are needed; add clips or choose another protocol",
                field="protocol",
            )


def protocol_words(protocol: SplitProtocol, folds: int) -> str:
    """Describe a protocol with this number of folds in a few words."""
    match protocol:
        case AllClips():
            return "all clips in one fold, tested on what it trains on"
        case HeldOut():
            return f"outer fold {protocol.outer.fold + 1} of {protocol.outer.k}, after the last epoch"
        case LeaveOneSubjectOut():
            words = f"Leave-One-Subject-Out, {folds} folds"
        case KFold():
            words = f"{folds}-fold, by subject"
        case _:
            assert_never(protocol)
    outer = protocol.outer
    return words if outer is None else f"{words}, without outer fold {outer.fold + 1} of {outer.k}"


def split_hash(folds: Sequence[Fold]) -> str:
    """SHA-256 of the test clips of each fold, in hex; two results can be paired only if it is equal."""
    return sha256_of([[fold.index, list(fold.test_clips)] for fold in folds])


def _check_validation(fold: Fold, subject_of: Mapping[str, str], clips_of: Mapping[str, int]) -> None:
    validated = set(fold.validation_clips)
    if len(validated) != len(fold.validation_clips) or not validated <= subject_of.keys():
        raise InvalidInput(
            f"fold {fold.name} has a validation clip twice, or one that is not in the cache", field="folds"
        )
    for subject, clips in Counter(subject_of[clip_id] for clip_id in validated).items():
        if subject in fold.subjects:
            raise InvalidInput(
                f"subject {subject} leaks: fold {fold.name} tests it and chooses the epoch on it", field="folds"
            )
        if clips < clips_of[subject]:
            raise InvalidInput(
                f"subject {subject} leaks: fold {fold.name} trains on it and chooses the epoch on it",
                field="folds",
            )
