"""Settings of a fold's training: augmentation, economies, compute plan."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    model_validator,
)

from services.contracts.base import Contract, ModelId
from services.search_space import Hyperparameters, TunableSettings

ANY_CLASS = "*"
"""Key of augmentation counts that stands for every class that is not named."""


class AugmentationCounts(Contract):
    """Number of copies of each clip that are added to the training set, by kind (paper sections 4.1, 4.2)."""

    flip: int = Field(0, ge=0, le=1)
    rotation: int = Field(0, ge=0, le=100)
    contrast: int = Field(0, ge=0, le=100)


class Augmentation(Contract):
    """The augmented copies (paper section 3.2), made once per study and the same for all its folds."""

    counts: dict[str, AugmentationCounts] = Field(
        default_factory=dict, description=f"per class name; {ANY_CLASS!r} stands for every class not named"
    )
    rotation_degrees: FiniteFloat = Field(
        30.0, ge=0, le=180, description="angles are drawn from -x to +x degrees"
    )
    contrast_low: FiniteFloat = Field(0.22, ge=0, le=100)
    contrast_high: FiniteFloat = Field(2.2, ge=0, le=100)
    border: Literal["black", "replicate"] = Field(
        "black", description="fills the area that a rotation uncovers"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        if self.contrast_low > self.contrast_high:
            raise ValueError(
                f"contrast_low ({self.contrast_low}) is above contrast_high ({self.contrast_high})"
            )
        return self

    def counts_for(self, class_name: str) -> AugmentationCounts:
        """The copies that are made of a clip of this class."""
        return self.counts.get(class_name) or self.counts.get(ANY_CLASS) or AugmentationCounts()


class TrainingSettings(TunableSettings):
    """Settings of all trials of a study, unless its space searches them; defaults are the paper's."""

    frames: int = Field(10, ge=1, le=256, description="frames of a clip; must equal the cache's")
    frame_size: int = Field(112, ge=16, le=512, description="pixels on a side; must equal the cache's")
    augmentation: Augmentation = Augmentation()
    batch_norm: Literal["before activation", "after activation"] = Field(
        "before activation",
        description="position of batch normalisation after a convolution, which has no bias in both positions",
    )
    pool_counts_padding: bool = Field(True, description="whether the last average pool counts padding as zeros")
    pretrained: ModelId | None = Field(
        None, description="id of the catalogue's model from which networks start, with a new last layer"
    )


class Economies(Contract):
    """Ways to the same reported result with less work. A test proves each of them; each can be switched off."""

    stop_when_perfect: bool = Field(
        True, description="end a fold at the first epoch with all test clips correct: it is the best epoch"
    )
    skip_dead_taps: bool = Field(True, description="do not compute kernel taps that meet only padding")
    gray_as_one_channel: bool = Field(
        True, description="compute the first convolution of a gray clip's three equal channels as one"
    )
    reuse_folds: bool = Field(
        True, description="count the result of a trial with equal parameters that ran the same fold"
    )


Precision = Literal["fp32", "tf32", "bf16"]

MemoryFormat = Literal["contiguous", "channels_last"]

Auto = Literal["auto"]
"""The value of a compute setting that follows from the device of the study's first lease."""


class ComputePlan(Contract):
    """Precision and compilation: what a device must support, and what a check against fp32 can veto."""

    precision: Precision = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        """For messages, such as `bf16, compiled`."""
        return self.precision + (", compiled" if self.compiled else "")


class StudyPlan(ComputePlan):
    """How all folds of a study are computed, frozen with its first lease. It decides the bits of a result."""

    memory_format: MemoryFormat | None = Field(
        None, description="memory format of the convolutions; null in older studies: the worker's choice"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of a worker; null on a GPU, and in older studies"
    )

    @property
    def compute(self) -> ComputePlan:
        """The part that a device must support."""
        return ComputePlan(precision=self.precision, compiled=self.compiled)


def is_auto(value: object) -> bool:
    """Whether a compute setting is left to the device of the first lease."""
    return value == "auto"


class ComputeSettings(Contract):
    """How results are computed; part of the study because it can change them. `auto` alone means all `auto`.

    A part that is `auto` is not written, because older programs that read a study know no such value.
    """

    precision: Precision | Auto = Field(
        "auto",
        exclude_if=is_auto,
        description="tf32 and bf16 run only on devices where a check against fp32 passes",
    )
    compiled: bool | Auto = Field(
        "auto",
        exclude_if=is_auto,
        description="compile with torch.compile; needs a C++ compiler (CPU) or Triton (GPU)",
    )
    memory_format: MemoryFormat | Auto = Field(
        "auto", exclude_if=is_auto, description="memory format of the convolutions"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        "auto", exclude_if=is_auto, description="CPU threads of a worker that trains on the CPU"
    )

    @model_validator(mode="before")
    @classmethod
    def _all_auto(cls, given: Any) -> Any:
        return {} if given == "auto" else given

    def __str__(self) -> str:
        """For messages, such as `auto` or `precision=bf16, compiled=true`."""
        chosen = self.model_dump(mode="json")
        return ", ".join(f"{name}={str(value).lower()}" for name, value in chosen.items()) or "auto"

    def allow(self, plan: ComputePlan) -> bool:
        """Whether a plan is what these settings ask for."""
        return self.precision in {"auto", plan.precision} and self.compiled in {"auto", plan.compiled}


def configure(
    parameters: dict[str, Any], training: TrainingSettings
) -> tuple[Hyperparameters, TrainingSettings]:
    """Split a trial's parameters into the hyperparameters of its network and its training settings.

    Parameters of Table 1 that a space does not name take the defaults of `Hyperparameters`.
    """
    ours = {k: v for k, v in parameters.items() if k in Hyperparameters.model_fields}
    others = {k: v for k, v in parameters.items() if k not in Hyperparameters.model_fields}
    return Hyperparameters(**ours), training.model_copy(update=others)
