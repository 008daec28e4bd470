"""The samplers that a study can name, and its warm start."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
)

from services.contracts.base import TRIALS_ALLOWED, Contract, StudyName

CANDIDATES_ALLOWED = 10_000
"""Maximum number of candidates: the sampler scores them all at once, in memory."""


class TpeSampler(Contract):
    """Optuna's TPE sampler with every argument that matters (paper section 3.3)."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(
        10, ge=1, le=TRIALS_ALLOWED, description="trials that are drawn at random before the model is used"
    )
    candidates: int = Field(
        24, ge=1, le=CANDIDATES_ALLOWED, description="candidates scored for each suggestion"
    )
    multivariate: bool = True
    constant_liar: bool = Field(True, description="keeps suggestions away from open trials")


class RandomSampler(Contract):
    """Draws each configuration at random, independently of the others."""

    kind: Literal["random"] = "random"


class GridSampler(Contract):
    """Runs every combination of the space's values once."""

    kind: Literal["grid"] = "grid"
    order: Literal["shuffled", "lexicographic"] = Field(
        "shuffled",
        description="shuffled by the study's seed, or with the last parameter of the space changing fastest",
    )
    points: dict[str, Annotated[int, Field(ge=2, le=1000)]] = Field(
        default_factory=dict, description="number of values of each range, both ends included"
    )


def _sampler_kind(given: Any) -> Any:
    # A sampler without a kind is TPE, because stored specs from before there were others have none.
    return given.get("kind", "tpe") if isinstance(given, dict) else getattr(given, "kind", None)


Sampler = Annotated[
    Annotated[TpeSampler, Tag("tpe")]
    | Annotated[RandomSampler, Tag("random")]
    | Annotated[GridSampler, Tag("grid")],
    Discriminator(_sampler_kind),
]


class WarmStart(Contract):
    """Ended trials of another study that the sampler learns from; they are copied when the study is created."""

    study: StudyName
    trials: str = Field(
        "all",
        pattern=r"^(all|complete|best [1-9][0-9]{0,5})$",
        description="`all` complete and pruned trials, only the `complete` ones, or the `best 20` of them",
    )

    @property
    def best(self) -> int | None:
        """Number of best trials to copy; None for no limit."""
        return int(self.trials.removeprefix("best ")) if self.trials.startswith("best ") else None
