"""`foldwise pretrain`: train one configuration on all clips of a cache, for studies to start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli.spec_files import read_value
from services.clip_cache import cache_folder, find_cache, open_cache
from services.compute_plans import default_threads
from services.contracts import FoldTask, StudySpec, configure
from services.errors import InvalidInput
from services.folds import AllClips, make_folds, split_hash
from services.model_card import ModelCard, describe
from services.model_catalogue import add_model
from services.revision import running_revision
from services.search_space import PARAMETERS, check_value
from services.seeds import derive_seed
from services.usable_cores import usable_cores
from worker.training.device import choose_device, keep_freed_memory
from worker.training.fit import Progress, train_model
from worker.training.pretrained import pack
from worker.training.training_device import TrainingDevice


def read_parameters(settings: list[str]) -> dict[str, Any]:
    """Read the parameters of a configuration, each written as NAME=VALUE.

    Raises:
        InvalidInput: there is no such parameter, or the value is invalid.
    """
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in PARAMETERS:
            raise InvalidInput(
                f"--parameter {setting!r}: write NAME=VALUE; NAME is one of {', '.join(PARAMETERS)}",
                field="parameter",
            )
        value = read_value("--parameter", setting, text)
        try:
            check_value(name, value)
        except ValueError as error:
            raise InvalidInput(f"--parameter {setting!r}: {error}", field=name) from error
        parameters[name] = value
    return parameters


def pretrain(
    spec: StudySpec,
    parameters: Mapping[str, Any],
    name: str,
    *,
    cache_root: Path,
    models_root: Path,
    device: str | None,
    on_step: Callable[[Progress], None],
) -> ModelCard:
    """Train a model and publish it in the catalogue (paper section 4.3, for c3 and c4).

    Args:
        spec: gives the cache, the training settings, the compute plan and the seed.
        parameters: values of parameters in Table 1; the others have the paper's best values on CK+.
        name: beginning of the model's id.
        cache_root: folder of the clip caches.
        models_root: folder of the model catalogue.
        device: a torch device; None means a GPU if there is one.
        on_step: called after every training step.

    Raises:
        CacheMismatch: there is no such cache, or its clips have another size.
        InvalidInput: the settings do not fit the cache, or the loss became infinite or NaN.
        PlanNotSound: the device runs no plan that the spec allows, or fails its check.
    """
    manifest = find_cache(cache_root, spec.cache)
    cache = open_cache(cache_folder(cache_root, manifest.dataset, manifest.fingerprint))
    folds = make_folds(cache.clips(), AllClips())
    hyperparameters, training = configure(dict(parameters), spec.training)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    training_device = TrainingDevice(chosen, threads=default_threads(usable_cores()))
    plan = training_device.choose_plan(spec.compute)
    task = FoldTask(
        study=name,
        trial=0,
        fold=0,
        fold_name=folds[0].name,
        folds=1,
        hyperparameters=hyperparameters,
        training=training,
        economies=spec.economies,
        compute=plan.compute,
        memory_format=plan.memory_format,
        threads=plan.threads,
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        classes=manifest.classes,
        test_clips=folds[0].test_clips,
        split_hash=split_hash(folds),
        seed=derive_seed("pretrain", spec.seed, hyperparameters.model_dump(mode="json"), manifest.fingerprint),
        study_seed=spec.seed,
        trains_on_all=True,
    )
    result, state = train_model(task, cache, training_device, revision=running_revision(), on_step=on_step)
    label_of = {clip.clip_id: clip.label for clip in cache.clips()}
    labels = tuple(label_of[clip_id] for clip_id in task.test_clips)
    return add_model(models_root, name, pack(state), describe(task, manifest, labels, result))
