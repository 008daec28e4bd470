"""The configuration of a network: every value that decides what is built, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from services.contracts import Economies, FoldTask, TrainingSettings
from services.errors import InvalidInput
from services.folds import MIN_CLASSES
from services.search_space import Hyperparameters

MIN_FRAME_SIZE = 16
"""Minimum pixels on a side of a frame; four pools leave one pixel of it."""

IRRELEVANT_TO_WEIGHTS = frozenset({"initializer", "dropout", "classes", "bn_momentum", "skip_dead_taps"})
"""Fields in which a pretrained model may differ from the network that takes over its weights. The last layer,
which depends on `classes`, is not copied."""

IRRELEVANT_TO_COMPILATION = frozenset({"initializer", "dropout"})
"""Fields that are data to a network and not code; networks that differ only in them share compiled code."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that a trial's network is built from.

    A setting that changes the network is a field here: `build_model` takes nothing else, the worker keeps and
    compiles networks by it, models of the catalogue are rebuilt from it, and the check of pretrained weights
    compares it. Fields have no defaults, so that `of` must fill every one of them.
    """

    activation: str
    temporal_size: int
    """Frames that the kernel of a convolution spans."""

    pooling_layer: str
    second_conv_layer: bool
    """Whether the first two groups have two convolutions too."""

    initializer: str
    dropout: float
    """Share of the units that dropout sets to zero (0 to 1)."""

    width: int
    """Filters of the first group; the two hidden dense layers have 64 times as many units (paper: 64)."""

    classes: int
    """Units of the last layer."""

    frames: int
    """Frames of a clip."""

    frame_size: int
    """Pixels on a side of a frame."""

    bn_momentum: float
    """Share of a new batch in the running statistics (paper: 0.1)."""

    batch_norm: str
    """`before activation` or `after activation`."""

    pool_counts_padding: bool
    """Whether the last average pool counts the padding around it as zeros."""

    skip_dead_taps: bool
    """Whether kernel taps that only meet padding are left out of the computation. The weights keep them."""

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            InvalidInput: fewer than 1 frame or filter, 2 classes, or 16 pixels.
        """
        for name, value, least in (
            ("frames", self.frames, 1),
            ("frame_size", self.frame_size, MIN_FRAME_SIZE),
            ("width", self.width, 1),
            ("classes", self.classes, MIN_CLASSES),
        ):
            if value < least:
                raise InvalidInput(f"{name} is {value}, the network needs at least {least}", field=name)

    @classmethod
    def of(cls, hp: Hyperparameters, training: TrainingSettings, economies: Economies, *, classes: int) -> Self:
        """The configuration that follows from a trial's parameters and its study's settings.

        Raises:
            InvalidInput: fewer than 1 frame or filter, 2 classes, or 16 pixels.
        """
        return cls(
            activation=hp.activation,
            temporal_size=hp.temporal_size,
            pooling_layer=hp.pooling_layer,
            second_conv_layer=hp.second_conv_layer,
            initializer=hp.initializer,
            dropout=hp.dropout,
            width=training.width,
            classes=classes,
            frames=training.frames,
            frame_size=training.frame_size,
            bn_momentum=training.bn_momentum,
            batch_norm=training.batch_norm,
            pool_counts_padding=training.pool_counts_padding,
            skip_dead_taps=economies.skip_dead_taps,
        )

    @classmethod
    def of_task(cls, task: FoldTask) -> Self:
        """The configuration of the network that a fold trains."""
        return cls.of(task.hyperparameters, task.training, task.economies, classes=len(task.classes))

    def values_for_weights(self) -> dict[str, Any]:
        """The fields that must be equal where one network takes over the weights of another."""
        return {name: value for name, value in asdict(self).items() if name not in IRRELEVANT_TO_WEIGHTS}

    def architecture(self) -> frozenset[tuple[str, Any]]:
        """The fields that decide the code of a network, with their values."""
        return frozenset(
            (name, value) for name, value in asdict(self).items() if name not in IRRELEVANT_TO_COMPILATION
        )
