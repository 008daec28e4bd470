"""The base class of all contracts, and the names and limits that several of them share."""

from __future__ import annotations

from typing import Annotated, NewType

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

StudyName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


LeaseId = NewType("LeaseId", str)


ModelId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?-[0-9a-f]{12}$")]
"""A name and the first 12 digits of the weights' SHA-256."""


PRINTABLE = r"^[^\x00]*$"
"""PostgreSQL has no text with a NUL in it."""


TRIALS_ALLOWED = 100_000
"""In one study."""


WORKERS_ALLOWED = 10_000
"""Of one study in Kubernetes."""


class Contract(BaseModel):
    """Base of all wire types: frozen, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)
