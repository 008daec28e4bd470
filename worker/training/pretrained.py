"""A model of the catalogue as the start of a fold's network (paper section 4.3, c3 and c4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor, nn

from services.contracts import FoldTask
from services.errors import InvalidInput
from services.model_card import ModelCard
from services.model_catalogue import check_other_dataset, find_model, read_weights
from worker.training.model import EmotionNet, build_model

ARCHITECTURE = ("activation", "temporal_size", "pooling_layer", "second_conv_layer")
SHAPE = ("width", "frames", "frame_size", "batch_norm", "pool_counts_padding")


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A card and its weights."""

    card: ModelCard
    state: dict[str, Tensor]

    def load_into(self, model: nn.Module, task: FoldTask) -> None:
        """Copy everything but the last layer, which keeps its fresh weights: other sets have other classes.

        Raises:
            InvalidInput: the model was trained on the fold's own dataset, or is another architecture.
        """
        check_other_dataset(self.card, task.dataset)
        for ours, theirs, names in (
            (task.hyperparameters, self.card.hyperparameters, ARCHITECTURE),
            (task.training, self.card.training, SHAPE),
        ):
            for name in names:
                if getattr(ours, name) != getattr(theirs, name):
                    raise InvalidInput(
                        f"{name} is {getattr(ours, name)!r}, model {self.card.id} has "
                        f"{getattr(theirs, name)!r}; fix it in the study's space or training settings",
                        field=name,
                    )
        own = model.state_dict()
        last = [name for name in own if name.startswith("classifier.")][-2:]
        model.load_state_dict({**own, **{k: v for k, v in self.state.items() if k not in last}})


def open_pretrained(root: Path, model_id: str) -> PretrainedModel:
    """Read a model from the catalogue.

    Raises:
        NotFound: it is not there.
        CacheMismatch: its weights are missing or have changed.
    """
    card = find_model(root, model_id)
    return PretrainedModel(card=card, state=load(read_weights(root, card)))


def open_model(root: Path, model_id: str, *, skip_dead_taps: bool = True) -> tuple[ModelCard, EmotionNet]:
    """A model of the catalogue as it was trained, ready to predict, on the CPU.

    Args:
        root: folder of the catalogue.
        model_id: of the model.
        skip_dead_taps: compute it the short way, or as plain 3D convolutions; equal but for rounding.

    Raises:
        NotFound: it is not there.
        CacheMismatch: its weights are missing or have changed.
    """
    kept = open_pretrained(root, model_id)
    card, training = kept.card, kept.card.training
    model = build_model(
        card.hyperparameters,
        width=training.width,
        classes=len(card.classes),
        frames=training.frames,
        frame_size=training.frame_size,
        bn_momentum=training.bn_momentum,
        batch_norm=training.batch_norm,
        pool_counts_padding=training.pool_counts_padding,
        skip_dead_taps=skip_dead_taps,
    )
    model.load_state_dict(kept.state)
    return card, model.eval()


def pack(state: dict[str, Tensor]) -> bytes:
    """A network's state as a safetensors file."""
    return save(state)
