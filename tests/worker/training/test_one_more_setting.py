"""A new setting of the network reaches all that depends on it: tried on a copy of the code that has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.harness.source_copy import PACKAGES, PROJECT, copy_package

CHANGES = (
    # The setting of a study.
    (
        "services/contracts/training.py",
        "    augmentation: Augmentation = Augmentation()\n",
        "    augmentation: Augmentation = Augmentation()\n    negative_slope: float = 0.01\n",
    ),
    # The field of the configuration.
    (
        "services/model_config.py",
        "    skip_dead_taps: bool\n",
        "    skip_dead_taps: bool\n    negative_slope: float\n",
    ),
    (
        "services/model_config.py",
        "            skip_dead_taps=economies.skip_dead_taps,\n",
        "            skip_dead_taps=economies.skip_dead_taps,\n"
        "            negative_slope=training.negative_slope,\n",
    ),
    # What it changes in the network. Shapes stay, so that weights of another slope could be loaded unnoticed.
    (
        "worker/training/model.py",
        "        activation = ACTIVATIONS[config.activation]\n",
        "        def activation() -> nn.Module:\n            return nn.LeakyReLU(config.negative_slope)\n",
    ),
)
"""File, code, code with the setting. A developer who adds a setting edits these places and no others."""

SCENARIO = """
import json, sys
from pathlib import Path

from cli.models.pretrain import pretrain
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.model_config import ModelConfig
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from worker.training.network import seeded_model
from worker.training.pretrained import open_model, open_pretrained
from worker.training.training_device import TrainingDevice

root = Path(sys.argv[1])
cache = write_cache(root / "caches", subjects=3, clips_of_class=2, size=16)


def task(slope):
    training = TINY.model_copy(update={"epochs": 1, "negative_slope": slope})
    return assign(cache, training, activation="leaky ReLU")


def build(slope):
    each = task(slope)
    return seeded_model(ModelConfig.of_task(each), seed=each.seed, device=CPU)


device = TrainingDevice(CPU)
found = {
    "on one device": [run(task(slope), cache, device=device).epochs[0].loss for slope in (0.01, 0.5)],
    "alone": [run(task(slope), cache).epochs[0].loss for slope in (0.01, 0.5)],
}
write_cache(root / "others", subjects=2, clips_of_class=2, size=16, dataset="others")
models = root / "models"
card = pretrain(
    StudySpec(name="any", cache="others", training=task(0.5).training),
    {"activation": "leaky ReLU"},
    "others",
    cache_root=root / "others",
    models_root=models,
    device="cpu",
    on_step=lambda _: None,
)
found["stored"] = json.loads((models / card.id / "model.json").read_text())["training"]["negative_slope"]
found["described"] = "| negative_slope | 0.5 |" in (models / card.id / "README.md").read_text()
found["opened"] = open_model(models, card.id)[1].features[2].negative_slope
pretrained = open_pretrained(models, card.id)
pretrained.load_into(build(0.5), dataset="blobs")
try:
    pretrained.load_into(build(0.01), dataset="blobs")
except InvalidInput as error:
    found["refused"] = error.field
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario saw on the changed copy."""
    root = tmp_path_factory.mktemp("copy")
    copied = {change[0].partition("/")[0] for change in CHANGES}
    for package in (*PACKAGES, "tests"):
        if package in copied:
            copy_package(package, root)
        else:
            (root / package).symlink_to(PROJECT / package)
    for file, code, changed in CHANGES:
        text = (root / file).read_text()
        assert text.count(code) == 1, f"{file} has {text.count(code)} times {code!r}"
        (root / file).write_text(text.replace(code, changed))
    (root / "scenario.py").write_text(SCENARIO)
    outcome = subprocess.run(
        [sys.executable, "scenario.py", str(root)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    result: dict[str, Any] = json.loads(outcome.stdout.splitlines()[-1])
    return result


def test_folds_that_differ_only_in_it_train_different_networks_on_one_device(found: dict[str, Any]) -> None:
    alone = found["alone"]
    assert alone[0] != alone[1]
    assert found["on one device"] == alone, "the second fold trained the network of the first"


def test_a_models_card_stores_it_and_the_model_is_rebuilt_with_it(found: dict[str, Any]) -> None:
    assert (found["stored"], found["described"], found["opened"]) == (0.5, True, 0.5)


def test_weights_of_another_value_are_refused(found: dict[str, Any]) -> None:
    assert found.get("refused") == "negative_slope"
