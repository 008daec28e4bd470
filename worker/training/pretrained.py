"""A model of the catalogue as the start of a fold's network (paper section 4.3, c3 and c4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from services.contracts import Economies
from services.errors import InvalidInput
from services.model_card import ModelCard
from services.model_catalogue import check_other_dataset, find_model, read_weights
from worker.training.model import EmotionNet, build_model


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A card and its weights."""

    card: ModelCard
    state: dict[str, Tensor]

    def load_into(self, model: EmotionNet, *, dataset: str) -> None:
        """Copy all weights except those of the last layer, which depends on the dataset's classes.

        Args:
            model: the network of a fold.
            dataset: that the fold tests on.

        Raises:
            InvalidInput: the model was trained on `dataset`, or its configuration does not fit.
        """
        check_other_dataset(self.card, dataset)
        theirs = self.card.configuration().values_for_weights()
        for name, value in model.config.values_for_weights().items():
            if value != theirs[name]:
                raise InvalidInput(
                    f"{name} is {value!r}, model {self.card.id} has {theirs[name]!r}; change it in the study's "
                    "space or training settings",
                    field=name,
                )
        own = model.state_dict()
        last = [name for name in own if name.startswith("classifier.")][-2:]
        model.load_state_dict({**own, **{k: v for k, v in self.state.items() if k not in last}})


def open_pretrained(root: Path, model_id: str) -> PretrainedModel:
    """Read a model from the catalogue.

    Raises:
        NotFound: the catalogue has no such model.
        CacheMismatch: its weights are missing or have changed.
    """
    card = find_model(root, model_id)
    return PretrainedModel(card=card, state=load(read_weights(root, card)))


def open_model(root: Path, model_id: str, *, skip_dead_taps: bool = True) -> tuple[ModelCard, EmotionNet]:
    """A model of the catalogue as it was trained, ready to predict, on the CPU.

    Args:
        root: folder of the catalogue.
        model_id: of the model.
        skip_dead_taps: leave out kernel taps that only meet padding; otherwise plain 3D convolutions are
            computed. Both give the same logits, up to rounding.

    Raises:
        NotFound: the catalogue has no such model.
        CacheMismatch: its weights are missing or have changed.
    """
    stored = open_pretrained(root, model_id)
    model = build_model(stored.card.configuration(Economies(skip_dead_taps=skip_dead_taps)))
    model.load_state_dict(stored.state)
    return stored.card, model.eval()


def pack(state: dict[str, Tensor]) -> bytes:
    """A network's state as the bytes of a safetensors file."""
    return save(state)
