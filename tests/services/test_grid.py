"""Grids: every combination once, in an order that follows from the seed, of spaces that have one."""

from __future__ import annotations

from itertools import islice, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.contracts import StudySpec
from services.errors import InvalidInput
from services.grid import configuration, grid_axes, grid_size, shuffled
from services.search_space import SearchSpace

SPACE: dict[str, list[Any]] = {
    "activation": ["ReLU", "ELU"],
    "clahe": [True, False],
    "temporal_size": [1, 3, 5],
}
WITH_RANGE: dict[str, Any] = {"clahe": [True, False], "dropout": {"low": 0.0, "high": 0.5}}


def spec(space: dict[str, Any], sampler: dict[str, Any], **given: Any) -> StudySpec:
    return StudySpec.model_validate(
        {"name": "s", "cache": "c", "space": space, "sampler": {"kind": "grid", **sampler}, **given}
    )


def test_the_last_parameter_changes_fastest() -> None:
    axes = grid_axes(SearchSpace.model_validate(SPACE), {})
    places = [tuple(configuration(axes, place).values()) for place in range(grid_size(axes))]
    assert places == list(product(*SPACE.values()))
    assert list(configuration(axes, 7)) == list(SPACE)


@given(size=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
def test_a_shuffled_order_has_every_place_once_and_follows_from_the_seed(size: int, seed: int) -> None:
    order = list(shuffled(size, seed))
    assert sorted(order) == list(range(size))
    assert list(islice(shuffled(size, seed), size // 2)) == order[: size // 2]


def test_seeds_shuffle_differently_and_a_huge_grid_is_not_held() -> None:
    assert len({tuple(shuffled(50, seed)) for seed in range(5)}) == 5
    drawn = list(islice(shuffled(10**15, 0), 100))
    assert len(set(drawn)) == 100
    assert max(drawn) > 10**14


@pytest.mark.parametrize(
    ("domain", "points", "values"),
    [
        ({"dropout": {"low": 0.0, "high": 0.5}}, 3, (0.0, 0.25, 0.5)),
        ({"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, 3, (1e-4, 1e-3, 1e-2)),
        ({"epochs": {"low": 3, "high": 5}}, 9, (3, 4, 5)),
        ({"width": {"low": 8, "high": 64, "log": True}}, 4, (8, 16, 32, 64)),
    ],
)
def test_a_range_with_points_is_spread_over_both_ends(
    domain: dict[str, Any], points: int, values: tuple[float, ...]
) -> None:
    (name,) = domain
    axes = grid_axes(SearchSpace.model_validate(domain), {name: points})
    assert axes[name] == values
    assert [type(value) for value in axes[name]] == [type(value) for value in values]


def test_a_range_without_points_and_points_without_a_range_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"sampler\.points\.dropout") as refused:
        grid_axes(SearchSpace.model_validate(WITH_RANGE), {})
    assert refused.value.field == "space.dropout"
    with pytest.raises(InvalidInput, match=r"sampler\.points\.clahe"):
        grid_axes(SearchSpace.model_validate(WITH_RANGE), {"dropout": 3, "clahe": 2})
    with pytest.raises(ValidationError, match=r"space\.dropout is a range"):
        spec(WITH_RANGE, {}, trials=2)


def test_more_trials_than_configurations_are_refused_with_the_size() -> None:
    assert spec(SPACE, {}, trials=12).trials == 12
    with pytest.raises(ValidationError, match="the grid has 12 configurations; set trials to 12 or less"):
        spec(SPACE, {}, trials=13)
    assert spec(WITH_RANGE, {"points": {"dropout": 4}}, trials=8).trials == 8
    one = [{"activation": "ELU", "clahe": True, "temporal_size": 3}]
    assert spec(SPACE, {}, trials=13, enqueue=one).trials == 13
    with pytest.raises(ValidationError, match="12 configurations and 1 are enqueued; set trials to 13"):
        spec(SPACE, {}, trials=14, enqueue=one)
