"""Trained models on a shared volume, by id: a folder with a card (JSON) and the weights (safetensors).

A model's id ends with the first digits of its weights' SHA-256, so a name says which bytes are meant.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import Field, ValidationError

from services.contracts import Contract, ModelId, TrainingSettings
from services.errors import CacheMismatch, InvalidInput, NotFound
from services.search_space import Hyperparameters, first_problem

CARD = "model.json"
WEIGHTS = "weights.safetensors"
ID_DIGITS = 12


class ModelCard(Contract):
    """What a model is and what it was trained on."""

    id: ModelId
    sha256: str = Field(description="of the weights file")
    dataset: str
    fingerprint: str = Field(description="of the clip cache it was trained on")
    classes: tuple[str, ...]
    clips: int
    hyperparameters: Hyperparameters
    training: TrainingSettings
    seed: int
    loss: float | None = Field(description="mean training loss of the last epoch")


def add_model(root: Path, name: str, weights: bytes, describe: dict[str, object]) -> ModelCard:
    """Put a model into the catalogue, in one step; the same model again changes nothing.

    Args:
        root: folder of the catalogue, made if missing.
        name: what the id starts with: lower-case letters, digits and dashes.
        weights: a safetensors file.
        describe: the card's fields other than `id` and `sha256`.

    Raises:
        InvalidInput: the name is no model name.
    """
    sha256 = hashlib.sha256(weights).hexdigest()
    try:
        card = ModelCard.model_validate({"id": f"{name}-{sha256[:ID_DIGITS]}", "sha256": sha256, **describe})
    except ValidationError as error:
        raise InvalidInput(f"model {name!r}: {first_problem(error)}", field="name") from error
    folder = root / card.id
    if folder.exists():
        return card
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        _write(partial / WEIGHTS, weights)
        _write(partial / CARD, card.model_dump_json(indent=1).encode())
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return card


def list_models(root: Path) -> list[ModelCard]:
    """Cards of all models, by id; a folder without a readable card is left out."""
    cards = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            cards.append(_card(folder))
        except (OSError, ValueError):
            continue
    return cards


def find_model(root: Path, model_id: str) -> ModelCard:
    """The card of a model.

    Raises:
        NotFound: it is not in the catalogue.
    """
    cards = {card.id: card for card in list_models(root)}
    if model_id in cards:
        return cards[model_id]
    known = ", ".join(cards) or "none"
    raise NotFound(f"there is no model {model_id!r} in {root}; there are: {known}", field="training.pretrained")


def check_other_dataset(card: ModelCard, dataset: str) -> None:
    """Refuse a model that has seen the subjects it would be tested on.

    By the dataset's name: the same set prepared otherwise has another fingerprint and the same faces.

    Raises:
        InvalidInput: the model was trained on `dataset`.
    """
    if card.dataset == dataset:
        raise InvalidInput(
            f"model {card.id} was trained on {dataset}, the set this study tests on; pretrain on another "
            "dataset",
            field="training.pretrained",
        )


def read_weights(root: Path, card: ModelCard) -> bytes:
    """The weights file of a model.

    Raises:
        CacheMismatch: the file is missing, or not the one its card names.
    """
    file = root / card.id / WEIGHTS
    try:
        weights = file.read_bytes()
    except OSError as error:
        raise CacheMismatch(f"cannot read {file}: {error.strerror}", field="training.pretrained") from error
    if hashlib.sha256(weights).hexdigest() != card.sha256:
        raise CacheMismatch(f"{file} has changed since it was written", field="training.pretrained")
    return weights


def _card(folder: Path) -> ModelCard:
    return ModelCard.model_validate(json.loads((folder / CARD).read_bytes()))


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
