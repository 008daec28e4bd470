"""Samplers that a study can name, and its warm start."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
)

from services.contracts.base import Contract, StudyName


class TpeSampler(Contract):
    """Optuna's TPE with every argument that matters named (paper section 3.3)."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(10, ge=1, description="trials drawn at random before the model is used")
    candidates: int = Field(24, ge=1, description="candidates scored for each suggestion")
    multivariate: bool = True
    constant_liar: bool = Field(True, description="keeps parallel suggestions apart")


class RandomSampler(Contract):
    """Each configuration drawn at random, whatever came of the others."""

    kind: Literal["random"] = "random"


class GridSampler(Contract):
    """Every combination of the space's values, each once."""

    kind: Literal["grid"] = "grid"
    order: Literal["shuffled", "lexicographic"] = Field(
        "shuffled", description="by the study's seed, or the last parameter of the space changing fastest"
    )
    points: dict[str, Annotated[int, Field(ge=2, le=1000)]] = Field(
        default_factory=dict, description="how many values of each range, both ends included"
    )


def _sampler_kind(given: Any) -> Any:
    # A sampler without a kind is TPE: so it was when there was no other.
    return given.get("kind", "tpe") if isinstance(given, dict) else getattr(given, "kind", None)


Sampler = Annotated[
    Annotated[TpeSampler, Tag("tpe")]
    | Annotated[RandomSampler, Tag("random")]
    | Annotated[GridSampler, Tag("grid")],
    Discriminator(_sampler_kind),
]


class WarmStart(Contract):
    """Ended trials of another study for the sampler to learn from, copied when the study is created."""

    study: StudyName
    trials: str = Field(
        "all",
        pattern=r"^(all|complete|best [1-9][0-9]{0,5})$",
        description="`all` that are complete or pruned, the `complete` ones, or the `best 20` of these",
    )

    @property
    def best(self) -> int | None:
        """How many of the best are meant, if not all."""
        return int(self.trials.removeprefix("best ")) if self.trials.startswith("best ") else None
