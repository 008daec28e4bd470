"""The grid of a search space: every combination of its parameters' values, each with an index from 0.

The last parameter of the space changes fastest, as in `itertools.product`; the grid is never stored as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from services.errors import InvalidInput
from services.search_space import PARAMETERS, ParameterValue, Range, SearchSpace
from services.seeds import derive_seed

Axes = Mapping[str, tuple[ParameterValue, ...]]
"""The values that the grid combines, by parameter."""


def grid_axes(space: SearchSpace, points: Mapping[str, int]) -> Axes:
    """The values of each parameter: its options, or `points` values of its range, both ends included.

    A range has fewer values if some are equal after rounding.

    Raises:
        InvalidInput: `points` lacks a range, or names something else.
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
                f"space.{name} is a range, but a grid needs values; give sampler.points.{name} or options",
                field=f"space.{name}",
            )
    return axes


def grid_size(axes: Axes) -> int:
    """Number of configurations in the grid."""
    return math.prod(len(values) for values in axes.values())


def configuration(axes: Axes, index: int) -> dict[str, ParameterValue]:
    """The configuration at an index of the grid, from 0 to its size - 1."""
    chosen = {}
    for name, values in reversed(list(axes.items())):
        index, digit = divmod(index, len(values))
        chosen[name] = values[digit]
    return {name: chosen[name] for name in axes}


def shuffled(size: int, seed: int) -> Iterator[int]:
    """Yield 0 to `size` - 1 in an order that depends only on the seed; memory grows with the numbers drawn."""
    # Fisher-Yates with a mapping of the moved numbers instead of a list of all.
    moved: dict[int, int] = {}
    for index in range(size):
        other = index + derive_seed("grid", seed, index) % (size - index)
        drawn = moved.get(other, other)
        moved[other] = moved.pop(index, index)
        yield drawn


def _spread(name: str, domain: Range, points: int) -> tuple[ParameterValue, ...]:
    single = SearchSpace.model_validate({name: domain})
    whole = PARAMETERS[name].annotation is int
    values: dict[ParameterValue, None] = {}
    for step in range(points):
        share = step / (points - 1)
        value = (
            domain.low * (domain.high / domain.low) ** share
            if domain.log
            else domain.low + (domain.high - domain.low) * share
        )
        # Rounding can put the last power slightly outside the range.
        inside = min(max(value, domain.low), domain.high)
        values[single.canonicalize({name: round(inside) if whole else inside})[name]] = None
    return tuple(values)
