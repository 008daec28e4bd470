"""The configuration of a network: made from a task, the same again from a model's card, checked when made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from services.contracts import Economies, TrainingSettings
from services.errors import InvalidInput
from services.model_card import ModelCard
from services.model_config import IRRELEVANT_TO_COMPILATION, IRRELEVANT_TO_WEIGHTS, ModelConfig
from services.search_space import Hyperparameters

NAMES = {field.name for field in fields(ModelConfig)}
ECONOMIES = Economies(skip_dead_taps=False)
OTHER = Hyperparameters(
    activation="Mish",
    temporal_size=7,
    pooling_layer="MaxPooling",
    second_conv_layer=True,
    initializer="Xavier normal",
    dropout=0.5,
)
OTHER_TRAINING = TrainingSettings(
    width=3,
    frames=7,
    frame_size=48,
    bn_momentum=0.3,
    batch_norm="after activation",
    pool_counts_padding=False,
)
CONFIG = ModelConfig.of(Hyperparameters(), TrainingSettings(), Economies(), classes=7)


def test_every_field_follows_from_the_parameters_and_settings() -> None:
    other = ModelConfig.of(OTHER, OTHER_TRAINING, ECONOMIES, classes=3)
    same = [name for name in NAMES if getattr(other, name) == getattr(CONFIG, name)]
    assert same == [], "of() fills these with a constant"


def test_a_card_gives_the_configuration_of_the_task_it_was_trained_on() -> None:
    card = ModelCard(
        id=f"m-{'0' * 12}",
        sha256="0" * 64,
        dataset="blobs",
        fingerprint="f" * 64,
        classes=("a", "b", "c"),
        clips=1,
        hyperparameters=OTHER,
        training=OTHER_TRAINING,
        seed=0,
        loss=None,
    )
    stored = ModelCard.model_validate_json(card.model_dump_json())
    assert stored.configuration(ECONOMIES) == ModelConfig.of(OTHER, OTHER_TRAINING, ECONOMIES, classes=3)


def test_it_is_frozen_and_a_key() -> None:
    again = replace(CONFIG)
    assert {CONFIG, again} == {CONFIG}
    assert replace(CONFIG, bn_momentum=0.2) != CONFIG
    with pytest.raises(FrozenInstanceError):
        again.width = 3  # type: ignore[misc]


def test_what_is_left_out_of_a_comparison_is_named_and_nothing_else_is() -> None:
    assert set(CONFIG.values_for_weights()) == NAMES - IRRELEVANT_TO_WEIGHTS
    assert {name for name, _ in CONFIG.architecture()} == NAMES - IRRELEVANT_TO_COMPILATION
    assert IRRELEVANT_TO_WEIGHTS | IRRELEVANT_TO_COMPILATION < NAMES


@pytest.mark.parametrize(("field", "value"), [("frames", 0), ("frame_size", 15), ("width", 0), ("classes", 1)])
def test_impossible_sizes_are_named(field: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is {value}") as caught:
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
