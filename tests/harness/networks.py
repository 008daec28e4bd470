"""Small networks for tests, from the hyper-parameters and the sizes that a test names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.contracts import Economies, TrainingSettings
from services.model_config import ModelConfig
from services.search_space import Hyperparameters
from worker.training.model import EmotionNet, build_model


def build_network(hp: Hyperparameters, **sizes: Any) -> EmotionNet:
    """The network of these hyper-parameters; `sizes` are fields of `ModelConfig`."""
    usual = ModelConfig.of(hp, TrainingSettings(), Economies(), classes=7)
    return build_model(replace(usual, **sizes))
