"""Splits clips into folds: Leave-One-Subject-Out, subject-independent k-fold, nested folds, the dataset's own
split, or one fold of all.

A fold tests some subjects and trains on all others except those of an outer fold. Subjects are sorted by id;
k-fold puts subject i (from 0) into fold i modulo k, the rule of the ten CK+ subsets that the paper compares on
(section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.errors import InvalidInput
from services.official_splits import Part, find_leak, natural_order
from services.seeds import sha256_of

MIN_CLASSES = 2
"""Minimum number of classes of a classifier."""

MIN_GIVEN_FOLDS = 2
"""Minimum number of folds of a dataset's own cross-validation."""

MIN_TRAIN_CLIPS = 2
"""Minimum number of training clips; batch normalization needs more than one."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of a cache, as splits and scores see it."""

    clip_id: str
    subject: str
    """The person, or the clip's id where the dataset gives no subjects."""

    label: int
    has_subject: bool = True
    """Whether the dataset gives subjects; all clips of a cache have one, or none has."""

    fold: str = ""
    """Name of the clip's fold in the dataset's own split; empty if it has none."""

    split: Part | Literal[""] = ""
    """Part of the dataset's own split that the clip is in; empty if it has none."""


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


class GivenFolds(BaseModel):
    """One fold for each value of the column `fold` of the dataset's list."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["given_folds"] = "given_folds"
    outer: OuterFold | None = Field(None, description="its subjects are neither trained on nor tested")


class Holdout(BaseModel):
    """One fold that trains on the part train of the dataset's own split and tests the part test.

    The part validation chooses the epoch with `epoch_choice: validation`; otherwise it is not used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["holdout"] = "holdout"
    outer: OuterFold | None = Field(None, description="its subjects are neither trained on nor tested")


class AllClips(BaseModel):
    """One fold that trains a final model on all clips and tests it on the same clips.

    Its accuracy shows whether it has learnt them, and nothing about other people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["all"] = "all"


SplitProtocol = LeaveOneSubjectOut | KFold | GivenFolds | Holdout | HeldOut | AllClips
Protocol = Annotated[SplitProtocol, Field(discriminator="kind")]


def make_folds(clips: Sequence[Clip], protocol: SplitProtocol) -> tuple[Fold, ...]:
    """Split clips into folds in which no subject is on both sides, as far as the dataset gives subjects.

    Raises:
        InvalidInput: fewer subjects than the protocol needs, or none; the dataset has no such split of its own,
            or a subject is on two sides of it.
    """
    if isinstance(protocol, AllClips):
        everything = _fold(0, "all clips", clips)
        check_folds(clips, [everything])
        return (everything,)
    left_out = outer_subjects(clips, protocol.outer)
    taking_part = [clip for clip in clips if clip.subject not in left_out]
    match protocol:
        case HeldOut():
            name = f"outer fold {protocol.outer.fold + 1} of {protocol.outer.k}"
            return (_fold(0, name, [clip for clip in clips if clip.subject in left_out]),)
        case Holdout():
            return (_holdout_fold(taking_part),)
        case GivenFolds():
            folds = _given_folds(taking_part)
        case LeaveOneSubjectOut() | KFold():
            _require_subjects(clips, protocol.kind)
            folds = _subject_folds(taking_part, protocol, " outside the outer fold" if left_out else "")
        case _:
            assert_never(protocol)
    check_folds(taking_part, folds)
    return tuple(folds)


def outer_subjects(clips: Sequence[Clip], outer: OuterFold | None) -> frozenset[str]:
    """The subjects of an outer fold: those that `KFold` with the same k puts into it; empty for None.

    Raises:
        InvalidInput: fewer subjects than outer folds, or none.
    """
    if outer is None:
        return frozenset()
    _require_subjects(clips, "outer")
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
        case GivenFolds():
            words = f"the {folds} folds of the dataset"
        case Holdout():
            words = "the dataset's split into train and test"
        case _:
            assert_never(protocol)
    outer = protocol.outer
    return words if outer is None else f"{words}, without outer fold {outer.fold + 1} of {outer.k}"


def split_hash(folds: Sequence[Fold]) -> str:
    """SHA-256 of the test clips of each fold, in hex; two results can be paired only if it is equal."""
    return sha256_of([[fold.index, list(fold.test_clips)] for fold in folds])


def _subject_folds(clips: Sequence[Clip], protocol: LeaveOneSubjectOut | KFold, where: str) -> list[Fold]:
    subjects = sorted({clip.subject for clip in clips})
    match protocol:
        case LeaveOneSubjectOut():
            k, names = len(subjects), subjects
        case KFold(k=k):
            names = [f"fold {index + 1} of {k}" for index in range(k)]
        case _:
            assert_never(protocol)
    if len(subjects) < max(2, k):
        raise InvalidInput(
            f"{max(2, k)} folds need at least as many subjects, the cache has {len(subjects)}{where}; "
            "choose a smaller k or a larger dataset",
            field="protocol",
        )
    fold_of = {subject: position % k for position, subject in enumerate(subjects)}
    members: list[list[Clip]] = [[] for _ in range(k)]
    for clip in clips:
        members[fold_of[clip.subject]].append(clip)
    return [
        _fold(index, name, of_fold) for index, (name, of_fold) in enumerate(zip(names, members, strict=True))
    ]


def _given_folds(clips: Sequence[Clip]) -> list[Fold]:
    """One fold for each name of a given fold; one whose subjects are all in the outer fold does not exist."""
    if without := [clip.clip_id for clip in clips if not clip.fold]:
        raise InvalidInput(
            f"clip {min(without)} has no given fold; give each clip one in the column `fold` of the dataset's "
            "list and preprocess again, or choose another protocol",
            field="protocol",
        )
    members: dict[str, list[Clip]] = {}
    for clip in clips:
        members.setdefault(clip.fold, []).append(clip)
    if len(members) < MIN_GIVEN_FOLDS:
        raise InvalidInput(
            f"the clips that take part have {len(members)} given fold ({', '.join(members)}), at least "
            f"{MIN_GIVEN_FOLDS} are needed; choose another protocol",
            field="protocol",
        )
    _refuse_leak((clip.clip_id, clip.subject, f"fold {clip.fold}") for clip in clips)
    names = sorted(members, key=natural_order)
    return [_fold(index, f"fold {name}", members[name]) for index, name in enumerate(names)]


def _holdout_fold(clips: Sequence[Clip]) -> Fold:
    if without := [clip.clip_id for clip in clips if not clip.split]:
        raise InvalidInput(
            f"clip {min(without)} is in no part of a given split; write train, validation or test in the "
            "column `split` of the dataset's list and preprocess again, or choose another protocol",
            field="protocol",
        )
    parts: dict[str, list[Clip]] = {"train": [], "validation": [], "test": []}
    for clip in clips:
        parts[clip.split].append(clip)
    for part in ("train", "test"):
        if not parts[part]:
            raise InvalidInput(
                f"no clip that takes part is in the part {part} of the given split; correct the column `split` "
                "or choose another protocol",
                field="protocol",
            )
    _refuse_leak((clip.clip_id, clip.subject, clip.split) for clip in clips)
    validated = tuple(sorted(clip.clip_id for clip in parts["validation"]))
    fold = replace(_fold(0, "test", parts["test"]), validation_clips=validated)
    # What it tests and chooses the epoch on must be sound; what it trains on is tested nowhere.
    check_folds([clip for clip in clips if clip.split == "test"], [replace(fold, validation_clips=())])
    return fold


def _fold(index: int, name: str, tested: Iterable[Clip]) -> Fold:
    tested = list(tested)
    return Fold(
        index=index,
        name=name,
        subjects=tuple(sorted({clip.subject for clip in tested})),
        test_clips=tuple(sorted(clip.clip_id for clip in tested)),
    )


def _require_subjects(clips: Sequence[Clip], wanted: str) -> None:
    if any(not clip.has_subject for clip in clips):
        raise InvalidInput(
            f"the clips have no subjects, which {wanted} needs to keep a person out of training and test at "
            "once; give them in the column `subject` of the dataset's list and preprocess again, or choose "
            "given_folds or holdout",
            field="protocol",
        )


def _refuse_leak(clips: Iterable[tuple[str, str, str]]) -> None:
    if leak := find_leak(clips):
        raise InvalidInput(
            f"{leak}: a network must not be tested on a person whom it was trained on; correct the dataset's "
            "list and preprocess again, or choose loso or kfold",
            field="protocol",
        )


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
