"""Trained models on a shared volume, by id: a folder with the weights (safetensors) and a card (JSON and text).

A model's id ends with the first digits of its weights' SHA-256, so a name says which bytes are meant. It
appears by one rename, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from services.contracts import TrainedModel
from services.errors import CacheMismatch, InvalidInput, NotFound
from services.model_card import ModelCard, card_text
from services.search_space import first_problem

CARD, TEXT, WEIGHTS = "model.json", "README.md", "weights.safetensors"
ID_DIGITS = 12
PARTIAL_PREFIX, RECEIPT_SUFFIX = ".partial-", ".receipt"


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """A whole model beside the catalogue, not yet in it."""

    root: Path
    card: ModelCard
    folder: Path

    def publish(self) -> None:
        """Put it into the catalogue, in one step; where the same model is there already, that one stays."""
        try:
            self.folder.rename(self.root / self.card.id)
        except OSError:
            if not (self.root / self.card.id / CARD).exists():
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def write_receipt(self, content: bytes) -> None:
        """Note what decides whether it is published, for others to find if this process dies.

        The file is for its owner alone.
        """
        partial = self._receipt.with_suffix(".writing")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(self._receipt)

    def receipt(self) -> bytes:
        """What `write_receipt` noted."""
        return self._receipt.read_bytes()

    @property
    def _receipt(self) -> Path:
        return self.folder.with_name(self.folder.name + RECEIPT_SUFFIX)


def model_id(name: str, weights: bytes) -> TrainedModel:
    """What a model of this name and weights is called."""
    sha256 = hashlib.sha256(weights).hexdigest()
    return TrainedModel(id=f"{name}-{sha256[:ID_DIGITS]}", sha256=sha256)


def stage_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> StagedModel:
    """Write a model beside the catalogue, whole and on the disk.

    Args:
        root: folder of the catalogue, made if missing.
        name: what the id starts with: lower-case letters, digits and dashes.
        weights: a safetensors file.
        describe: the card's fields other than `id` and `sha256`.

    Raises:
        InvalidInput: the name is no model name.
        OSError: the disk refused.
    """
    try:
        known = model_id(name, weights)
        card = ModelCard.model_validate({"id": known.id, "sha256": known.sha256, **describe})
    except ValidationError as error:
        raise InvalidInput(f"model {name!r}: {first_problem(error)}", field="name") from error
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=root))
    try:
        _write(folder / WEIGHTS, weights)
        _write(folder / TEXT, card_text(card).encode())
        _write(folder / CARD, card.model_dump_json(indent=1).encode())
        folder.chmod(0o755)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return StagedModel(root=root, card=card, folder=folder)


def staged_models(root: Path) -> list[StagedModel]:
    """Models beside the catalogue that have a receipt: their process died, or is about to decide on them."""
    found = []
    for receipt in sorted(root.glob(f"{PARTIAL_PREFIX}*{RECEIPT_SUFFIX}")):
        folder = receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX))
        try:
            found.append(StagedModel(root=root, card=_card(folder), folder=folder))
        except (OSError, ValueError):
            # Published or discarded; the receipt was to go next.
            receipt.unlink(missing_ok=True)
    return found


def add_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> ModelCard:
    """Put a model into the catalogue, in one step; the same model again changes nothing.

    Raises:
        InvalidInput, OSError: as `stage_model`.
    """
    staged = stage_model(root, name, weights, describe)
    staged.publish()
    return staged.card


def list_models(root: Path) -> list[ModelCard]:
    """Cards of all models, by id; a folder without a readable card is left out."""
    cards = []
    for folder in sorted(root.glob("[!.]*")):
        try:
            cards.append(_card(folder))
        except (OSError, ValueError):
            continue
    return cards


def find_model(root: Path, model_id: str, *, by_beginning: bool = False) -> ModelCard:
    """The card of a model.

    Args:
        root: folder of the model catalogue.
        model_id: the model's id; a study names it whole, so that it never means another model.
        by_beginning: whether a beginning that only one id has is enough.

    Raises:
        NotFound: the catalogue has no such model.
    """
    cards = {card.id: card for card in list_models(root)}
    if model_id in cards:
        return cards[model_id]
    beginning = [card for card in cards.values() if by_beginning and card.id.startswith(model_id)]
    if len(beginning) == 1:
        return beginning[0]
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
