"""From a complete trial to a model: through claims and reports on a real PostgreSQL, and over HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine

from cli.models.train_final import chance_warning
from client.connection import Connection
from coordinator.scheduling import reports
from coordinator.studies import life
from coordinator.studies.final_training import final_spec
from services.clip_cache import cache_folder, open_cache
from services.contracts import ComputePlan, FoldAssignment, FoldResult, StudyState, TrainFinal, WorkerInfo
from services.errors import CacheMismatch, Conflict, InvalidInput, LeaseSuperseded, TokenRefused, WorkerTooOld
from services.folds import GivenFolds
from services.model_card import accuracy_text, card_text
from services.model_catalogue import (
    CARD,
    TEXT,
    add_model,
    find_model,
    list_models,
    read_weights,
    staged_models,
)
from tests.harness.coordinator_harness import Harness, key_of
from tests.harness.served_app import live_coordinator
from tests.harness.simulated_results import make_result
from tests.harness.tiny_cache import FINGERPRINT
from worker.coordinator_client import CoordinatorClient
from worker.final_models import can_keep_models, report_result, report_staged, stage
from worker.training.fit import train_model
from worker.training.pretrained import open_pretrained
from worker.training.training_device import TrainingDevice

SPEC = {
    "protocol": {"kind": "kfold", "k": 2},
    "trials": 1,
    "space": {"dropout": [0.25], "epochs": [4, 8]},
    "training": {"frames": 2, "frame_size": 16, "width": 1, "epochs": 4, "batch_size": 4},
}


@pytest.fixture
def searched(engine: Engine, cache_root: Path) -> Harness:
    """A study `s` of one complete trial of two folds, whose best epochs were 1 and 2."""
    harness = Harness(engine, cache_root)
    harness.create(**SPEC)
    first = harness.must_claim()
    second = harness.report(first, wrong=1).next
    assert second is not None
    with harness.sessions.begin() as session:
        good = harness.result(session, second, wrong=0)
        bad = harness.result(session, second, wrong=2)
    two = good.model_copy(update={"epochs": (*bad.epochs, *good.epochs)})
    _report(harness, second, two)
    return harness


def _report(harness: Harness, assignment: FoldAssignment, result: FoldResult) -> Any:
    with harness.sessions.begin() as session:
        return reports.report(session, key_of(assignment.lease), result, harness.settings)


def _train_final(harness: Harness, **wanted: Any) -> None:
    with harness.sessions.begin() as session:
        spec = final_spec(session, "s", TrainFinal(**wanted))
        life.create(session, spec, harness.settings.cache_root)
    harness.leader.round()


def test_the_best_trial_becomes_a_study_of_all_clips(searched: Harness) -> None:
    _train_final(searched)
    study = searched.study("s-final")
    assert (study.folds, study.clips, study.spec.trials, study.state) == (1, 10, 1, StudyState.RUNNING)
    before = study.spec.cross_validated
    assert before is not None
    assert (before.study, before.trial, before.trials, before.folds) == ("s", 0, 1, 2)
    assert (before.correct, before.clips, before.accuracy) == (9, 10, 0.9)
    assert before.best_epochs == (1, 2)
    # As many as the folds could train for, whatever their best epochs were.
    epochs = searched.trial(0).parameters["epochs"]
    assert study.spec.training.epochs == before.epochs == epochs
    assert searched.trial(0, "s-final").parameters == {"dropout": 0.25, "epochs": epochs}


def test_the_number_of_epochs_can_be_chosen(searched: Harness) -> None:
    with searched.sessions.begin() as session:
        spec = final_spec(session, "s", TrainFinal(epochs=3))
    assert (spec.training.epochs, dict(spec.space.items())["epochs"]) == (3, (3,))
    assert spec.cross_validated is not None
    assert spec.cross_validated.epochs != 3


def test_a_worker_that_cannot_read_by_which_folds_it_was_measured_does_not_get_it(searched: Harness) -> None:
    with searched.sessions.begin() as session:
        spec = final_spec(session, "s", TrainFinal())
        assert spec.cross_validated is not None
        measured = spec.cross_validated.model_copy(update={"protocol": GivenFolds()})
        spec = spec.model_copy(update={"cross_validated": measured})
        life.create(session, spec, searched.settings.cache_root)
    searched.leader.round()
    assert searched.claim(keeps_models=True, protocol=1) is None
    with pytest.raises(WorkerTooOld, match="or a dataset's own split, which workers know from version 2"):
        searched.claim(keeps_models=True, protocol=1, study="s-final")
    assert searched.must_claim(keeps_models=True).study == "s-final"


def test_only_a_worker_that_keeps_models_gets_it(searched: Harness) -> None:
    _train_final(searched)
    assert searched.claim() is None
    with pytest.raises(CacheMismatch, match=r"trains a model to keep.*--models"):
        searched.claim(study="s-final")
    task = searched.must_claim(keeps_models=True)
    assert task.trains_on_all
    assert task.cross_validated is not None
    assert len(task.test_clips) == 10

    labels = [0, 1] * 5
    plain = make_result(task, labels)
    with pytest.raises(InvalidInput, match="model: the result names no model"):
        _report(searched, task, plain)
    # The last epoch is the model's, though the first was better on these clips.
    epochs = (plain.epochs[0], make_result(task, [1 - label for label in labels]).epochs[0])
    model = {"id": f"s-final-{'a' * 12}", "sha256": "a" * 64}
    result = FoldResult.model_validate({**plain.model_dump(), "epochs": epochs, "model": model})
    assert _report(searched, task, result).decision == "complete"
    study = searched.study("s-final")
    assert study.state == StudyState.COMPLETE
    [fold] = searched.folds(0, "s-final")
    assert (fold.best_epoch, fold.correct) == (1, 0)


def test_a_fold_that_leaves_clips_out_has_no_model(engine: Engine, cache_root: Path) -> None:
    harness = Harness(engine, cache_root)
    harness.create(**SPEC)
    task = harness.must_claim(keeps_models=True)
    named = make_result(task, [0] * len(task.test_clips)).model_dump()
    model = {"id": f"s-{'a' * 12}", "sha256": "a" * 64}
    with pytest.raises(InvalidInput, match="model: the result names a model"):
        _report(harness, task, FoldResult.model_validate({**named, "model": model}))


def test_what_cannot_become_a_model_is_refused(engine: Engine, cache_root: Path) -> None:
    harness = Harness(engine, cache_root)
    harness.create(**SPEC)
    with pytest.raises(Conflict, match="no trial of study s is complete"):
        _train_final(harness)
    with pytest.raises(Conflict, match="trial 0 of study s is ready, not complete"):
        _train_final(harness, trial=0)
    for changes in ({"trials": 2}, {"pruning": [{"rule": "median"}]}):
        with pytest.raises(ValueError, match="set trials to 1 and pruning to"):
            harness.create(**{**SPEC, "name": "all", "protocol": {"kind": "all"}, **changes})


# --- The worker's side --------------------------------------------------------------------------------------


@pytest.fixture
def client(searched: Harness) -> Iterator[CoordinatorClient]:
    """A worker's client of a coordinator that has the study `s-final` to run."""
    _train_final(searched)
    settings = replace(searched.settings, lease_seconds=60.0)
    with (
        live_coordinator(settings) as http,
        Connection(str(http.base_url), settings.worker_token or "", give_up_after=5.0) as connection,
    ):
        yield CoordinatorClient(connection, WorkerInfo(id=str(uuid.uuid4()), name="w", device="cpu"))


def _trained(client: CoordinatorClient, cache_root: Path, root: Path) -> tuple[FoldAssignment, FoldResult, Any]:
    task = client.claim(
        study="s-final", caches=[FINGERPRINT], plans=[ComputePlan()], threads=1, keeps_models=True
    )
    assert task is not None
    cache = open_cache(cache_folder(cache_root, "tiny", FINGERPRINT))
    device = TrainingDevice(torch.device("cpu"))
    result, state = train_model(task, cache, device, revision="abc", on_step=lambda _: None)
    named, staged = stage(root, task, cache, result, state)
    assert list_models(root) == [], "it is not in the catalogue before its result counts"
    return task, named, staged


def test_a_model_is_published_with_its_result(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    assert can_keep_models(tmp_path / "models")
    task, result, staged = _trained(client, cache_root, tmp_path / "models")
    report_result(client, task.lease, result, staged, more=False)
    [card] = list_models(tmp_path / "models")
    assert result.model is not None
    assert (card.id, card.sha256) == (result.model.id, result.model.sha256)
    assert card.id.startswith("s-final-")
    assert [file.name for file in (tmp_path / "models").iterdir()] == [card.id]
    assert read_weights(tmp_path / "models", find_model(tmp_path / "models", card.id))
    assert (card.dataset, card.clips, card.subjects) == ("tiny", 10, 5)
    epochs = card.training.epochs
    text = (tmp_path / "models" / card.id / TEXT).read_text()
    assert "In cross-validation (2-fold, by subject) it got 9 of 10 clips correct" in text
    assert "The scores above are optimistic" in text
    assert f"It was trained for {epochs} epochs, as many as each fold." in text
    assert card.cross_validated is not None
    assert card.cross_validated.best_epochs == (1, 2)
    for choice, trained, words in (
        ("best_common", 2, f"after this epoch, of {epochs}, the folds together had their best score"),
        ("validation", 2, f"the mean of the epochs that the folds chose on validation clips, of {epochs}"),
        ("last", 3, f"as was asked for; each fold had {epochs}"),
    ):
        before = card.cross_validated.model_copy(update={"epoch_choice": choice})
        training = card.training.model_copy(update={"epochs": trained})
        other = card_text(card.model_copy(update={"cross_validated": before, "training": training}))
        assert f"It was trained for {trained} epochs" in other
        assert words in other
    # 9 of 10 clips of two classes: the lower end of Wilson's interval is 59.6 %.
    assert accuracy_text(card) == (
        f"{card.id}: 90.00% in cross-validation on tiny (95 % interval 59.58% to 98.21%; guessing: 50.00%)"
    )
    few = card.cross_validated
    assert few is not None
    guessed = few.model_copy(update={"correct": 6, "accuracy": 0.6})
    told = accuracy_text(card.model_copy(update={"cross_validated": guessed}))
    assert told.endswith("it may be no better than guessing")
    assert chance_warning(few, classes=2) is None
    warned = chance_warning(guessed, classes=2)
    assert warned is not None
    assert "contains that of guessing (50.00%)" in warned
    assert len(open_pretrained(tmp_path / "models", card.id).state) > 10


def test_another_worker_finishes_for_one_that_died(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    _, result, _ = _trained(client, cache_root, tmp_path)
    # It died before it could report; then after it had reported and before it could publish.
    report_staged(client, tmp_path)
    [card] = list_models(tmp_path)
    assert result.model is not None
    assert card.id == result.model.id
    assert staged_models(tmp_path) == []
    report_staged(client, tmp_path)
    assert list_models(tmp_path) == [card]


def test_what_a_newer_worker_left_is_reported_if_it_can_be_read_and_stays_if_not(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    _, _, staged = _trained(client, cache_root, tmp_path)
    receipt = json.loads(staged.receipt())
    receipt["result"]["more"] = receipt["more"] = 1
    staged.write_receipt(json.dumps(receipt).encode())
    card = staged.folder / CARD
    known = card.read_text()
    # Who ignores a part of a card could build another network.
    card.write_text(json.dumps({**json.loads(known), "more": 1}))
    report_staged(client, tmp_path)
    card.write_text(known)
    assert len(staged_models(tmp_path)) == 1
    report_staged(client, tmp_path)
    assert len(list_models(tmp_path)) == 1


def test_a_model_outlives_a_refused_token(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path, searched: Harness
) -> None:
    task, result, staged = _trained(client, cache_root, tmp_path)
    with (
        live_coordinator(searched.settings) as http,
        Connection(str(http.base_url), "guess", give_up_after=0) as connection,
    ):
        stranger = CoordinatorClient(connection, WorkerInfo(id="worker-x", name="x", device="cpu"))
        with pytest.raises(TokenRefused):
            report_result(stranger, task.lease, result, staged, more=False)
        report_staged(stranger, tmp_path)
    report_staged(client, tmp_path)
    assert len(list_models(tmp_path)) == 1


def test_a_counted_model_is_published_by_another_worker(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    task, result, _ = _trained(client, cache_root, tmp_path)
    client.report(task.lease, result, more=False)
    assert list_models(tmp_path) == []
    report_staged(client, tmp_path)
    assert len(list_models(tmp_path)) == 1


def test_a_model_whose_result_is_refused_leaves_nothing(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    task, result, staged = _trained(client, cache_root, tmp_path / "one")
    client.release(task.lease)
    again, other, other_staged = _trained(client, cache_root, tmp_path / "two")
    with pytest.raises(LeaseSuperseded):
        report_result(client, task.lease, result, staged, more=False)
    assert list((tmp_path / "one").iterdir()) == []
    report_result(client, again.lease, other, other_staged, more=False)
    assert len(list_models(tmp_path / "two")) == 1


def test_the_same_model_twice_is_there_once(
    client: CoordinatorClient, cache_root: Path, tmp_path: Path
) -> None:
    task, result, staged = _trained(client, cache_root, tmp_path)
    weights = (staged.folder / "weights.safetensors").read_bytes()
    described = staged.card.model_dump(exclude={"id", "sha256"})
    card = add_model(tmp_path, "s-final", weights, described)
    report_result(client, task.lease, result, staged, more=False)
    assert [each.id for each in list_models(tmp_path)] == [card.id]
    assert [file.name for file in tmp_path.iterdir()] == [card.id]
