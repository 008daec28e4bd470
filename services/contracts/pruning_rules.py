"""The pruning rules that a study can name; each is a module of `services.pruning`."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from services.pruning.bound import BoundRule
from services.pruning.forgiving import ForgivingRule
from services.pruning.median import MedianRule
from services.pruning.paired import PairedRule
from services.pruning.rule import Rule
from services.pruning.wilcoxon import WilcoxonRule

PruningRule = Annotated[
    BoundRule | MedianRule | PairedRule | WilcoxonRule | ForgivingRule, Field(discriminator="rule")
]

PRUNING_RULES: tuple[type[Rule], ...] = get_args(get_args(PruningRule)[0])
"""The classes of the union, in its order."""
