"""The card of a trained model: its origin, its scores and its intended use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_never

from pydantic import Field, FiniteFloat

from services.clip_cache import CacheManifest
from services.contracts import (
    Contract,
    CrossValidated,
    Economies,
    FoldResult,
    FoldTask,
    ModelId,
    Provenance,
    TrainingSettings,
)
from services.final_epochs import final_epochs
from services.folds import protocol_words
from services.intervals import wilson
from services.model_config import ModelConfig
from services.search_space import Hyperparameters, title_of


class ModelCard(Contract):
    """A trained model, and what it was trained on."""

    id: ModelId
    sha256: str = Field(description="of the weights file")
    dataset: str
    fingerprint: str = Field(description="of the clip cache it was trained on")
    classes: tuple[str, ...]
    clips: int
    class_counts: dict[str, int] = Field(default_factory=dict, description="clips of each class")
    subjects: int | None = None
    channels: int = Field(1, description="of its clips: 1 (gray) or 3 (red, green, blue)")
    preprocessing: dict[str, Any] = Field(
        default_factory=dict, description="settings of the clip cache: detector, box, CLAHE"
    )
    hyperparameters: Hyperparameters
    training: TrainingSettings
    seed: int
    loss: float | None = Field(description="mean training loss of the last epoch")
    training_accuracy: FiniteFloat | None = Field(
        None, description="after the last epoch, on the clips it was trained on"
    )
    cross_validated: CrossValidated | None = Field(
        None, description="cross-validated scores of its configuration"
    )
    provenance: Provenance | None = None

    def configuration(self, economies: Economies | None = None) -> ModelConfig:
        """What the network is built from; `economies` decide how it is computed, not what it predicts."""
        return ModelConfig.of(
            self.hyperparameters, self.training, economies or Economies(), classes=len(self.classes)
        )


def describe(
    task: FoldTask, manifest: CacheManifest, labels: tuple[int, ...], result: FoldResult
) -> dict[str, Any]:
    """The fields of a card that follow from how a model was trained.

    Args:
        task: the fold that was trained.
        manifest: manifest of its clip cache.
        labels: true labels of the task's test clips, in their order.
        result: result of the fold.
    """
    last = result.epochs[-1]
    right = sum(a == b for a, b in zip(labels, last.predicted, strict=True))
    return {
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        "classes": manifest.classes,
        "clips": manifest.clips,
        "class_counts": manifest.class_counts,
        "subjects": manifest.subjects or None,
        "channels": manifest.channels,
        "preprocessing": manifest.settings,
        "hyperparameters": task.hyperparameters,
        "training": task.training,
        "seed": task.study_seed,
        "loss": last.loss,
        "training_accuracy": right / len(labels),
        "cross_validated": task.cross_validated,
        "provenance": result.provenance,
    }


def card_text(card: ModelCard) -> str:
    """The card as Markdown, for people."""
    return "\n".join(_lines(card)) + "\n"


def input_text(card: ModelCard) -> str:
    """Describe the input of the network in a sentence or two."""
    training, hp = card.training, card.hyperparameters
    colour = "gray" if card.channels == 1 else "colour (red, green, blue)"
    limit, tiles = clahe_of(card)
    clahe = f", after CLAHE (clip limit {limit:g}, {tiles} x {tiles} tiles) on each" if hp.clahe else ""
    scale = "values / 127.5 - 1, in [-1, 1]" if hp.normalization else "values / 255, in [0, 1]"
    repeat = ", the gray channel three times" if card.channels == 1 else ""
    side = training.frame_size
    return (
        f"Clips of {training.frames} consecutive {colour} frames of one face, each cropped to its box and "
        f"resized to {side} x {side}{clahe}; then {scale}, as batch x 3 x frames x height x width{repeat}."
    )


def accuracy_text(card: ModelCard) -> str:
    """How accurate a model's configuration was in cross-validation, in a sentence."""
    before = card.cross_validated
    if before is None:
        return f"how accurate {card.id} is on new people is not known: it was not cross-validated"
    low, high = wilson(before.correct, before.clips)
    chance = 1 / len(card.classes)
    guessing = "; it may be no better than guessing" if may_be_guessing(before, len(card.classes)) else ""
    return (
        f"{card.id}: {before.accuracy:.2%} in cross-validation on {card.dataset} (95 % interval {low:.2%} to "
        f"{high:.2%}; guessing: {chance:.2%}){guessing}"
    )


def may_be_guessing(before: CrossValidated, classes: int) -> bool:
    """Whether the 95 % interval of a cross-validated accuracy contains that of guessing among these classes."""
    low, _ = wilson(before.correct, before.clips)
    return low <= 1 / classes


def clahe_of(card: ModelCard) -> tuple[float, int]:
    """Clip limit, and tiles along each side, of a model's CLAHE."""
    settings = card.preprocessing
    return float(settings.get("clahe_clip_limit", 2.0)), int(settings.get("clahe_tiles", 8))


def _lines(card: ModelCard) -> Iterator[str]:
    yield f"# {card.id}"
    yield ""
    yield "A 3D-CNN that names the facial emotion in a short video of one face."
    yield ""
    yield "## Data"
    yield ""
    people = "" if card.subjects is None else f" of {card.subjects} subjects"
    yield f"Trained on all {card.clips} clips{people} of {card.dataset}, clip cache `{card.fingerprint}`."
    if card.class_counts:
        yield "Clips of each class: " + ", ".join(f"{n} {name}" for name, n in card.class_counts.items()) + "."
    yield ""
    yield "## Input and output"
    yield ""
    yield input_text(card)
    if detector := card.preprocessing.get("detector"):
        yield f"Faces were found by {detector}, box: {card.preprocessing.get('box', 'frame')}."
    yield "Output: one logit for each of " + ", ".join(card.classes) + "; softmax gives probabilities."
    yield ""
    yield "## Configuration"
    yield ""
    yield "| parameter | value |"
    yield "|---|---|"
    for name, value in card.hyperparameters.model_dump().items():
        yield f"| {title_of(name)} | {value} |"
    for name, value in card.training.model_dump(exclude={"augmentation"}).items():
        yield f"| {name} | {value} |"
    yield f"| seed | {card.seed} |"
    yield ""
    yield "## How good it is"
    yield ""
    yield from _scores(card)
    yield ""
    yield "## Limits"
    yield ""
    yield from _limits(card)
    yield ""
    yield "## Intended use"
    yield ""
    yield (
        "Research on facial expressions that are acted or elicited as in its training set, from a frontal "
        "face. Not for judging persons: what a face shows is not what somebody feels, and nobody has tested it "
        "for decisions about people."
    )
    if card.provenance is not None:
        ran = card.provenance
        yield ""
        yield "## Provenance"
        yield ""
        yield (
            f"{ran.device}, torch {ran.torch}, {ran.compute}, revision {ran.revision or 'unknown'}; "
            f"{ran.clip_passes} clip passes in {ran.seconds:.0f} s. Weights: SHA-256 `{card.sha256}`."
        )


def _scores(card: ModelCard) -> Iterator[str]:
    before = card.cross_validated
    if before is None:
        yield "Not known: its configuration was not cross-validated."
    else:
        yield (
            f"Its configuration is trial {before.trial} of study {before.study}, chosen from {before.trials} "
            f"trials. In cross-validation ({protocol_words(before.protocol, before.folds)}) it got "
            f"{before.correct} of {before.clips} clips correct:"
        )
        yield ""
        low, high = wilson(before.correct, before.clips)
        yield "| accuracy (95 % interval) | UAR | UF1 |"
        yield "|---|---|---|"
        yield f"| {before.accuracy:.2%} ({low:.2%} to {high:.2%}) | {before.uar:.2%} | {before.uf1:.2%} |"
        yield ""
        yield (
            f"Split `{before.split_hash}`, seed {before.seed}. These are scores of networks that were each "
            "trained without the people they were tested on, not of this one, which has seen them all."
        )
        yield ""
        yield _epochs(card.training.epochs, before)
    if card.training_accuracy is not None:
        yield ""
        yield (
            f"On the clips it was trained on, its accuracy is {card.training_accuracy:.2%}, which says nothing "
            "about other people."
        )


def _epochs(trained: int, before: CrossValidated) -> str:
    this = f"It was trained for {trained} epochs"
    if before.epochs is None:
        return f"{this}, the median of the folds' best epochs."
    if trained != final_epochs(before.epoch_choice, before.best_epochs, before.epochs):
        return f"{this}, as was asked for; each fold had {before.epochs}."
    match before.epoch_choice:
        case "best_per_fold" | "last":
            return f"{this}, as many as each fold."
        case "best_common":
            return f"{this}: after this epoch, of {before.epochs}, the folds together had their best score."
        case "validation":
            return (
                f"{this}, the mean of the epochs that the folds chose on validation clips, of {before.epochs}."
            )
        case _:
            assert_never(before.epoch_choice)


def _limits(card: ModelCard) -> Iterator[str]:
    if card.cross_validated is not None:
        chosen = {
            "best_per_fold": "the configuration and each fold's epoch were",
            "best_common": "the configuration and the epoch were",
        }.get(card.cross_validated.epoch_choice, "the configuration was")
        yield (
            f"- The scores above are optimistic: {chosen} chosen on the clips that the scores are measured on."
        )
    yield f"- It knows the people, light and camera of {card.dataset}, and no others."
    yield "- It always names one of its classes, even if none fits what it is shown, such as a calm face."
    yield "- It expects clips that end at the peak of an expression; elsewhere in a video its labels mean less."
