"""The base class of all contracts, and the names and limits that several of them share."""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated, Literal, NewType

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
)

StudyName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


LeaseId = NewType("LeaseId", str)


ModelId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?-[0-9a-f]{12}$")]
"""A name and the first 12 digits of the weights' SHA-256."""


PRINTABLE = r"^[^\x00]*$"
"""Text without NUL, which PostgreSQL cannot store."""


TRIALS_ALLOWED = 100_000
"""Maximum number of trials of a study."""


WORKERS_ALLOWED = 10_000
"""Maximum number of a study's worker pods in Kubernetes."""


SECONDS_ALLOWED = 1e9
"""Maximum of a study's time limits, about 31 years: PostgreSQL's times end, and no study takes longer."""


Count = Annotated[int, Field(ge=0, lt=2**31)]
"""A number of things that fits every integer column."""


Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
"""A part of a whole, from 0 to 1."""


Loss = Annotated[FiniteFloat, Field(ge=-3.5e38, le=3.5e38)]
"""A loss in single precision."""


def is_empty(value: Sized) -> bool:
    """Whether a field has nothing to write."""
    return not value


class Contract(BaseModel):
    """Base of all wire types: frozen, and unknown fields are rejected, except where a client reads a reply."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Objective = Literal["accuracy", "uar", "uf1"]
"""A score over all folds of a trial: pooled accuracy, mean recall (UAR) or mean F1 (UF1) of the classes."""


EpochChoice = Literal["best_per_fold", "best_common", "last", "validation"]
"""How the epoch is chosen at which a fold counts."""
