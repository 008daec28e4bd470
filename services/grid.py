"""The grid of a search space: every combination of its parameters' values, each with an index from 0.

The last parameter of the space changes fastest, as in `itertools.product`; no grid is ever held as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from services.errors import InvalidInput
from services.search_space import PARAMETERS, ParameterValue, Range, SearchSpace
from services.seeds import derive_seed

Axes = Mapping[str, tuple[ParameterValue, ...]]
"""The values of each parameter that the grid combines."""


def grid_axes(space: SearchSpace, points: Mapping[str, int]) -> Axes:
    """A parameter's options, or as many values of its range as `points` says, both ends included.

    A range of whole numbers, or one whose values are equal once rounded, may have fewer.

    Raises:
        InvalidInput: a range has no number of points, or something else than a range has.
    """
    ranges = {name for name, domain in space.items() if isinstance(domain, Range)}
    if wrong := sorted(set(points) - ranges):
        raise InvalidInput(f"sampler.points.{wrong[0]}: no range of the space has this name", field="sampler")
    axes: dict[str, tuple[ParameterValue, ...]] = {}
    for name, domain in space.items():
        if not isinstance(domain, Range):
            axes[name] = domain
        elif name in points:
            axes[name] = _spread(name, domain, points[name])
        else:
            raise InvalidInput(
                f"space.{name} is a range and a grid wants values; give sampler.points.{name} or options",
                field=f"space.{name}",
            )
    return axes


def grid_size(axes: Axes) -> int:
    """How many configurations the grid has."""
    return math.prod(len(values) for values in axes.values())


def configuration(axes: Axes, index: int) -> dict[str, ParameterValue]:
    """The configuration at an index of the grid, from 0 to its size - 1."""
    chosen = {}
    for name, values in reversed(list(axes.items())):
        index, digit = divmod(index, len(values))
        chosen[name] = values[digit]
    return {name: chosen[name] for name in axes}


def shuffled(size: int, seed: int) -> Iterator[int]:
    """0 to `size` - 1 in an order that follows from the seed; takes memory only for what was drawn."""
    # Fisher and Yates, with what was moved in a mapping instead of everything in a list.
    moved: dict[int, int] = {}
    for index in range(size):
        other = index + derive_seed("grid", seed, index) % (size - index)
        drawn = moved.get(other, other)
        moved[other] = moved.pop(index, index)
        yield drawn


def _spread(name: str, domain: Range, points: int) -> tuple[ParameterValue, ...]:
    alone = SearchSpace.model_validate({name: domain})
    whole = PARAMETERS[name].annotation is int
    values: dict[ParameterValue, None] = {}
    for step in range(points):
        share = step / (points - 1)
        value = (
            domain.low * (domain.high / domain.low) ** share
            if domain.log
            else domain.low + (domain.high - domain.low) * share
        )
        # The last power can end a bit beyond the range.
        inside = min(max(value, domain.low), domain.high)
        values[alone.canonicalize({name: round(inside) if whole else inside})[name]] = None
    return tuple(values)
