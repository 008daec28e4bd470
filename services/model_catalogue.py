"""The model catalogue on a shared volume: a folder per model, with weights (safetensors) and card (JSON, text).

A model's id ends with the first digits of the SHA-256 of its weights, so the id identifies the bytes. A model
is published by one rename, completely or not at all.
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
PARTIAL, RECEIPT = ".partial-", ".receipt"


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """A complete model that is stored beside the catalogue and not published yet."""

    root: Path
    card: ModelCard
    folder: Path

    def publish(self) -> None:
        """Move the model into the catalogue by one rename; if it is already there, keep that one."""
        try:
            self.folder.rename(self.root / self.card.id)
        except OSError:
            if not (self.root / self.card.id / CARD).exists():
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the model without publishing it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def keep_receipt(self, content: bytes) -> None:
        """Write what another process needs to decide about publishing the model if this process dies.

        Only the file's owner can read it.
        """
        partial = self._receipt.with_suffix(".writing")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(self._receipt)

    def receipt(self) -> bytes:
        """The content that `keep_receipt` wrote."""
        return self._receipt.read_bytes()

    @property
    def _receipt(self) -> Path:
        return self.folder.with_name(self.folder.name + RECEIPT)


def model_id(name: str, weights: bytes) -> TrainedModel:
    """The id of a model with this name and these weights."""
    sha256 = hashlib.sha256(weights).hexdigest()
    return TrainedModel(id=f"{name}-{sha256[:ID_DIGITS]}", sha256=sha256)


def stage_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> StagedModel:
    """Write a complete model beside the catalogue and sync it to the disk.

    Args:
        root: folder of the catalogue; created if missing.
        name: beginning of the id: lower-case letters, digits and dashes.
        weights: content of a safetensors file.
        describe: the card's fields other than `id` and `sha256`.

    Raises:
        InvalidInput: the name is not a valid model name.
        OSError: the files cannot be written.
    """
    try:
        known = model_id(name, weights)
        card = ModelCard.model_validate({"id": known.id, "sha256": known.sha256, **describe})
    except ValidationError as error:
        raise InvalidInput(f"model {name!r}: {first_problem(error)}", field="name") from error
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=root))
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
    """Models beside the catalogue that have a receipt: their process died, or will soon decide about them."""
    found = []
    for receipt in sorted(root.glob(f"{PARTIAL}*{RECEIPT}")):
        folder = receipt.with_name(receipt.name.removesuffix(RECEIPT))
        try:
            found.append(StagedModel(root=root, card=_card(folder), folder=folder))
        except (OSError, ValueError):
            # The model was published or discarded, and only its receipt remains.
            receipt.unlink(missing_ok=True)
    return found


def add_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> ModelCard:
    """Publish a model in the catalogue by one rename; adding the same model again changes nothing.

    Raises:
        InvalidInput, OSError: as `stage_model`.
    """
    staged = stage_model(root, name, weights, describe)
    staged.publish()
    return staged.card


def list_models(root: Path) -> list[ModelCard]:
    """Cards of all models, sorted by id; folders without a readable card are skipped."""
    cards = []
    for folder in sorted(root.glob("[!.]*")):
        try:
            cards.append(_card(folder))
        except (OSError, ValueError):
            continue
    return cards


def find_model(root: Path, model_id: str, *, by_beginning: bool = False) -> ModelCard:
    """Find the card of a model.

    Args:
        root: folder of the model catalogue.
        model_id: the model's id.
        by_beginning: whether a unique beginning of the id is enough. A study must name the whole id, so that it
            never means another model.

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
    """Reject a model that was trained on the subjects on which it would be tested.

    Datasets are compared by name: preprocessed with other settings, a dataset has another fingerprint but the
    same faces.

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
    """Read the weights file of a model.

    Raises:
        CacheMismatch: the file cannot be read, or its SHA-256 differs from the card.
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
