"""Models of the catalogue, loaded for prediction."""

from __future__ import annotations

import os
from pathlib import Path

from client.local_service import default_state
from worker.inference.predict import Predictor, load_predictor


def load_model(
    model: str, *, models: str | os.PathLike[str] | None = None, device: str | None = None
) -> Predictor:
    """Load a model; its `predict(video)` labels the face in a video over time.

    Args:
        model: id of a model in the catalogue, or a unique beginning of one.
        models: folder of the model catalogue; by default FOLDWISE_MODELS, or the folder `models` in the state
            folder of `foldwise up`.
        device: torch device such as `cpu` or `cuda:0`; by default a GPU if there is one.

    Raises:
        NotFound: the catalogue has no such model, or several whose ids begin with this text.
        InvalidInput: the device cannot be used.
    """
    root = models or os.environ.get("FOLDWISE_MODELS") or default_state() / "models"
    return load_predictor(Path(root), model, device)
