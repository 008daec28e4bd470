"""Models as ONNX: the same logits as torch, whatever the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save

from cli.models.export_onnx import TOLERANCE, export_onnx
from services.contracts import TrainingSettings
from services.errors import InvalidInput, NotFound
from services.model_card import ModelCard
from services.model_catalogue import add_model
from services.search_space import Hyperparameters
from tests.harness.networks import build_network
from worker.training.pretrained import open_model

TRAINING = TrainingSettings(width=2, frame_size=16, frames=10)


def add_untrained(root: Path, training: TrainingSettings = TRAINING, **hyperparameters: Any) -> ModelCard:
    """A model whose running statistics and slopes are not those it was drawn with, as after training."""
    torch.manual_seed(1)
    hp = Hyperparameters.model_validate(hyperparameters)
    model = build_network(
        hp,
        width=training.width,
        classes=3,
        frames=training.frames,
        frame_size=training.frame_size,
        bn_momentum=0.5,
    )
    model.train()(torch.rand(4, 3, *model.clip_shape))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    described = {
        "dataset": "blobs",
        "fingerprint": "f" * 64,
        "classes": ("right", "down", "brighter"),
        "clips": 4,
        "hyperparameters": hp,
        "training": training,
        "seed": 0,
        "loss": 1.0,
    }
    return add_model(root, "model", save(model.state_dict()), described)


@pytest.mark.parametrize(
    ("temporal_size", "activation", "pooling", "second"),
    [
        (3, "Mish", "AvgPooling", False),
        (9, "pReLU", "MaxPooling", True),
        pytest.param(1, "ReLU", "AvgPooling", False, marks=pytest.mark.long),
        pytest.param(5, "ELU", "AvgPooling", True, marks=pytest.mark.long),
        pytest.param(7, "leaky ReLU", "MaxPooling", False, marks=pytest.mark.long),
    ],
)
def test_onnx_and_torch_agree(
    tmp_path: Path, temporal_size: int, activation: str, pooling: str, second: bool
) -> None:
    card = add_untrained(
        tmp_path / "models",
        temporal_size=temporal_size,
        activation=activation,
        pooling_layer=pooling,
        second_conv_layer=second,
        normalization=True,
    )
    file = tmp_path / "out" / "model.onnx"
    done = export_onnx(tmp_path / "models", card.id, file)
    assert done.largest_difference <= TOLERANCE
    assert [each.name for each in file.parent.iterdir()] == ["model.onnx"]

    # Against the network as it predicts here, the short way, and in a batch that the export did not look at.
    _, model = open_model(tmp_path / "models", card.id)
    clips = 2 * torch.rand(5, 3, 10, 16, 16) - 1
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"clips": clips.numpy()})
    with torch.inference_mode():
        expected = model(clips).numpy()
    assert np.ptp(expected) > 0.01
    assert np.abs(logits - expected).max() <= TOLERANCE

    known = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(known["foldwise.classes"]) == ["right", "down", "brighter"]
    assert ModelCard.model_validate_json(known["foldwise.card"]) == card
    assert "CLAHE (clip limit 2, 8 x 8 tiles)" in known["foldwise.input"]
    assert "values / 127.5 - 1, in [-1, 1]" in known["foldwise.input"]


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no model 'none'"):
        export_onnx(tmp_path, "none", tmp_path / "model.onnx")
    card = add_untrained(tmp_path, temporal_size=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"--onnx .*file/model\.onnx: "):
        export_onnx(tmp_path, card.id, tmp_path / "file" / "model.onnx")
