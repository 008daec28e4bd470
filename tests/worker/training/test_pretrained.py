"""Models of the catalogue: made from all clips, found by id, and the start of other folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cli.models.pretrain import pretrain, read_parameters
from services.clip_cache import ClipCache
from services.contracts import FoldTask, StudySpec
from services.errors import CacheMismatch, InvalidInput, NotFound
from services.model_card import ModelCard, card_text
from services.model_catalogue import WEIGHTS, find_model, list_models, read_weights
from services.model_config import ModelConfig
from tests.harness.fold_tasks import CPU, TINY, assign, write_cache
from worker.training.fit import run_fold
from worker.training.model import EmotionNet
from worker.training.network import seeded_model
from worker.training.pretrained import open_pretrained
from worker.training.processor import processor_name
from worker.training.training_device import TrainingDevice

SHORT = TINY.model_copy(update={"epochs": 2})


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    """A catalogue with one model, trained on another set with as many classes, under another name."""
    root = tmp_path_factory.mktemp("other")
    write_cache(root / "caches", subjects=2, clips_of_class=2, size=16, dataset="moving")
    card = _pretrain(root / "caches", root / "models", "moving")
    return root / "models", card


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return write_cache(tmp_path_factory.mktemp("caches"), subjects=4, clips_of_class=2, size=16)


def _pretrain(caches: Path, models: Path, name: str, **parameters: Any) -> ModelCard:
    spec = StudySpec(name="any", cache="moving", training=SHORT)
    return pretrain(
        spec, parameters, name, cache_root=caches, models_root=models, device="cpu", on_step=lambda _: None
    )


def _task(cache: ClipCache, card: ModelCard, **hyperparameters: Any) -> FoldTask:
    training = SHORT.model_copy(update={"pretrained": card.id})
    return assign(cache, training, **{"clahe": True, **hyperparameters})


def _initial(task: FoldTask) -> EmotionNet:
    return seeded_model(ModelConfig.of_task(task), seed=task.seed, device=CPU)


def test_a_model_says_what_it_is_and_is_found_again(other: tuple[Path, ModelCard]) -> None:
    models, card = other
    assert card.id == f"moving-{card.sha256[:12]}"
    assert (card.dataset, card.clips, card.classes) == ("moving", 12, ("right", "down", "brighter"))
    assert card.hyperparameters.temporal_size == 3
    assert find_model(models, card.id) == card
    assert f"cpu ({processor_name()}), torch" in card_text(card)
    assert [each.id for each in list_models(models)] == [card.id]
    with pytest.raises(NotFound, match=rf"no model 'none-{'0' * 12}' .*; there are: {card.id}"):
        find_model(models, f"none-{'0' * 12}")


def test_the_same_training_gives_the_same_model(other: tuple[Path, ModelCard], tmp_path: Path) -> None:
    models, card = other
    again = _pretrain(models.parent / "caches", tmp_path, "moving")
    assert (again.id, again.loss, again.training_accuracy) == (card.id, card.loss, card.training_accuracy)
    assert read_weights(tmp_path, again) == read_weights(models, card)


def test_a_fold_starts_from_everything_but_the_last_layer(
    other: tuple[Path, ModelCard], cache: ClipCache
) -> None:
    models, card = other
    task = _task(cache, card)
    pretrained = open_pretrained(models, card.id)
    fresh = _initial(task).state_dict()
    model = _initial(task)
    pretrained.load_into(model, dataset=task.dataset)
    for name, value in model.state_dict().items():
        expected = fresh if name in {"classifier.7.weight", "classifier.7.bias"} else pretrained.state
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(fresh["classifier.7.weight"], pretrained.state["classifier.7.weight"])


def test_a_pretrained_fold_runs_and_repeats(other: tuple[Path, ModelCard], cache: ClipCache) -> None:
    models, card = other
    task, pretrained = _task(cache, card), open_pretrained(models, card.id)
    device = TrainingDevice(CPU)
    first, again = (
        run_fold(task, cache, device, revision=None, on_step=lambda _: None, pretrained=pretrained)
        for _ in range(2)
    )
    scratch = run_fold(assign(cache, SHORT, clahe=True), cache, device, revision=None, on_step=lambda _: None)
    assert first.epochs == again.epochs
    assert first.epochs != scratch.epochs


def test_another_number_of_classes_gets_a_new_last_layer(
    other: tuple[Path, ModelCard], cache: ClipCache
) -> None:
    models, card = other
    task = _task(cache, card).model_copy(update={"classes": ("a", "b", "c", "d", "e")})
    model = _initial(task)
    open_pretrained(models, card.id).load_into(model, dataset=task.dataset)
    assert model.classifier[-1].out_features == 5


def test_a_model_of_the_clips_under_test_is_refused(other: tuple[Path, ModelCard], cache: ClipCache) -> None:
    models, card = other
    task = _task(cache, card).model_copy(update={"dataset": card.dataset})
    with pytest.raises(InvalidInput, match="was trained on moving, the set this study tests on"):
        open_pretrained(models, card.id).load_into(_initial(task), dataset=task.dataset)


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [({"temporal_size": 5}, "temporal_size"), ({"second_conv_layer": True}, "second_conv_layer")],
)
def test_another_architecture_is_named(
    other: tuple[Path, ModelCard], cache: ClipCache, hyperparameters: dict[str, Any], field: str
) -> None:
    models, card = other
    task = _task(cache, card, **hyperparameters)
    with pytest.raises(InvalidInput) as caught:
        open_pretrained(models, card.id).load_into(_initial(task), dataset=task.dataset)
    assert caught.value.field == field


def test_a_fold_without_its_model_is_refused(other: tuple[Path, ModelCard], cache: ClipCache) -> None:
    _, card = other
    with pytest.raises(InvalidInput, match=f"starts from model {card.id}, which was not loaded"):
        run_fold(_task(cache, card), cache, TrainingDevice(CPU), revision=None, on_step=lambda _: None)


def test_changed_weights_are_refused(other: tuple[Path, ModelCard], tmp_path: Path) -> None:
    models, _ = other
    card = _pretrain(models.parent / "caches", tmp_path, "spoilt")
    with (tmp_path / card.id / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CacheMismatch, match="has changed since it was written"):
        open_pretrained(tmp_path, card.id)


def test_a_bad_name_is_refused_and_leaves_nothing(other: tuple[Path, ModelCard], tmp_path: Path) -> None:
    models, _ = other
    with pytest.raises(InvalidInput, match="model 'No Name'"):
        _pretrain(models.parent / "caches", tmp_path, "No Name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["temporal_size=4", "nothing=1", "temporal_size", "dropout=high", "dropout=["])
def test_bad_parameters_are_named(word: str) -> None:
    with pytest.raises(InvalidInput, match="--parameter"):
        read_parameters([word])


def test_parameters_are_read() -> None:
    assert read_parameters(["temporal_size=5", "clahe=false", "activation=Mish", "dropout=0.25"]) == {
        "temporal_size": 5,
        "clahe": False,
        "activation": "Mish",
        "dropout": 0.25,
    }
