"""`foldwise export`: write a model of the catalogue as ONNX, and check it against torch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from services.errors import FoldwiseError, InvalidInput
from services.model_card import ModelCard, input_text
from services.network_layers import CHANNELS
from worker.training.model import EmotionNet
from worker.training.pretrained import open_model

TOLERANCE = 1e-4
"""Maximum absolute difference of a logit."""

CHECKED_BATCHES = (1, 3)

OPSET = 18


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file that passed the check."""

    model: str
    file: Path
    largest_difference: float
    """Largest difference of a logit between ONNX Runtime and torch, on noise in batches of 1 and 3."""


def export_onnx(models_root: Path, model_id: str, file: Path) -> Exported:
    """Write a model as ONNX: input `clips`, float, batch x 3 x frames x size x size; output `logits`.

    The batch size is free. The file's metadata contains `foldwise.input` (a description of the clips),
    `foldwise.classes` (in the order of the logits) and `foldwise.card` (the whole card as JSON).

    Args:
        models_root: folder of the model catalogue.
        model_id: id of the model.
        file: file to write; it appears after the check, complete.

    Raises:
        NotFound, CacheMismatch: there is no such model, or its weights have changed.
        InvalidInput: the libraries for ONNX are not installed, or the file cannot be written.
        FoldwiseError: the logits of ONNX Runtime and torch differ.
    """
    _check_libraries()
    # Plain 3D convolutions export to nodes that every runtime supports, for every batch size.
    card, model = open_model(models_root, model_id, skip_dead_taps=False)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--onnx {file}: {error.strerror or error}", field="onnx") from error
    try:
        _write(card, model, partial)
        difference = _difference(model, partial)
        if not difference <= TOLERANCE:
            raise FoldwiseError(
                f"the logits of {model_id} in ONNX Runtime differ from torch by {difference:.2g}, more than "
                f"{TOLERANCE:g}; no file was written"
            )
        partial.replace(file)
    except OSError as error:
        raise InvalidInput(f"--onnx {file}: {error.strerror or error}", field="onnx") from error
    finally:
        partial.unlink(missing_ok=True)
    return Exported(model=card.id, file=file, largest_difference=difference)


def _check_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is not installed; install foldwise with its extra onnx: pip install 'foldwise[onnx]'"
        ) from error


def _write(card: ModelCard, model: EmotionNet, file: Path) -> None:
    # With a batch of one clip the exporter would fix the batch size to one.
    clips = torch.zeros(2, CHANNELS, *model.clip_shape)
    with _quiet():
        program = torch.onnx.export(
            model,
            (clips,),
            dynamo=True,
            verbose=False,
            input_names=["clips"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
        )
    if program is None:
        raise FoldwiseError(f"torch did not export {card.id} to ONNX")
    program.model.metadata_props.update(
        {
            "foldwise.input": input_text(card),
            "foldwise.classes": json.dumps(card.classes),
            "foldwise.card": card.model_dump_json(),
        }
    )
    program.save(file, external_data=False)


@torch.inference_mode()
def _difference(model: EmotionNet, file: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        clips = torch.rand(batch, CHANNELS, *model.clip_shape, generator=random)
        [logits] = session.run(["logits"], {"clips": clips.numpy()})
        largest = max(largest, float(np.abs(logits - model(clips).numpy()).max()))
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings about libraries that are not needed."""
    logger = logging.getLogger("torch.onnx")
    previous = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(previous)
