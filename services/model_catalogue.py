"""The model catalogue on a shared volume: a folder per model, with weights (safetensors) and card (JSON, text).

A model's id ends with the first digits of its weights' SHA-256, so it identifies the bytes. A model appears by
one rename, complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from services.contracts import TrainedModel
from services.errors import CacheMismatch, InvalidInput, NotFound
from services.model_card import ModelCard, card_text
from services.search_space import first_problem

CARD, TEXT, WEIGHTS = "model.json", "README.md", "weights.safetensors"
ID_DIGITS = 12
"""Hexadecimal digits of the weights' SHA-256 in an id."""

PARTIAL_PREFIX, RECEIPT_SUFFIX = ".partial-", ".receipt"


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """A complete model beside the catalogue, not yet published."""

    root: Path
    card: ModelCard
    folder: Path

    def publish(self) -> None:
        """Move it into the catalogue in one step; if the same model is already there, that one stays."""
        try:
            self.folder.rename(self.root / self.card.id)
        except OSError:
            if not (self.root / self.card.id / CARD).exists():
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._receipt.unlink(missing_ok=True)

    def write_receipt(self, content: bytes) -> None:
        """Store what decides whether it is published, so that another process can decide if this one dies.

        Only the owner can read the file (mode 0600).
        """
        partial = self._receipt.with_suffix(".writing")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(self._receipt)

    def receipt(self) -> bytes:
        """The content that `write_receipt` stored."""
        return self._receipt.read_bytes()

    @property
    def _receipt(self) -> Path:
        return self.folder.with_name(self.folder.name + RECEIPT_SUFFIX)


def model_id(name: str, weights: bytes) -> TrainedModel:
    """Id and hash of a model with this name and these weights."""
    sha256 = hashlib.sha256(weights).hexdigest()
    return TrainedModel(id=f"{name}-{sha256[:ID_DIGITS]}", sha256=sha256)


def stage_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> StagedModel:
    """Write a model beside the catalogue, complete and flushed to disk.

    Args:
        root: folder of the catalogue; it is created if it does not exist.
        name: start of the id: lower-case letters, digits and dashes.
        weights: content of a safetensors file.
        describe: the card's fields except `id` and `sha256`.

    Raises:
        InvalidInput: the name or a field is invalid.
        OSError: writing failed.
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
    """Models beside the catalogue that have a receipt: their process died, or is still deciding."""
    found = []
    for receipt in sorted(root.glob(f"{PARTIAL_PREFIX}*{RECEIPT_SUFFIX}")):
        folder = receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX))
        try:
            found.append(StagedModel(root=root, card=_card(folder), folder=folder))
        except FileNotFoundError:
            # Published or discarded; only the receipt is left.
            receipt.unlink(missing_ok=True)
        except (OSError, ValueError):
            # A newer worker can perhaps read it.
            continue
    return found


def add_model(root: Path, name: str, weights: bytes, describe: Mapping[str, object]) -> ModelCard:
    """Put a model into the catalogue in one step; adding the same model again changes nothing.

    Args:
        root, name, weights, describe: as for `stage_model`.

    Raises:
        InvalidInput, OSError: as for `stage_model`.
    """
    staged = stage_model(root, name, weights, describe)
    staged.publish()
    return staged.card


def list_models(root: Path) -> list[ModelCard]:
    """Cards of all models, sorted by id, without folders that have no readable card."""
    cards = []
    for folder in sorted(root.glob("[!.]*")):
        try:
            cards.append(_card(folder))
        except (OSError, ValueError):
            continue
    return cards


def model_files(root: Path) -> Iterator[Path]:
    """The files of all models, also of staged ones with a receipt: for a copy made while workers go on.

    A model may be published during the copy. Its files then follow at its new place, and without the receipt a
    copy ignores those at the old place. Results that wait in `.unreported` are left out: their folds run again.
    """
    for receipt in sorted(root.glob(f"{PARTIAL_PREFIX}*{RECEIPT_SUFFIX}")):
        yield from sorted(receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX)).glob("*"))
        yield receipt
    for folder in sorted(root.glob("[!.]*")):
        yield from sorted(path for path in folder.rglob("*") if path.is_file())


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
    """Reject a model that has seen the subjects it would be tested on.

    Datasets are compared by name: the same set, preprocessed differently, has another fingerprint but the same
    faces.

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
        CacheMismatch: the file is missing, or its SHA-256 is not that of the card.
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
