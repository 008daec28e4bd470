"""`foldwise report` over REST with a token to read, its every number computed again from the tables."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from client.study_client import StudyClient
from coordinator.scheduling import reports
from coordinator.settings import CoordinatorSettings
from report.write import write_report
from services.contracts import FoldAssignment
from tests.harness.coordinator_harness import Harness, key_of
from tests.harness.served_app import study_client
from tests.harness.simulated_results import make_result

READ_TOKEN = "read-token-of-this-test"
SPACE = {"clahe": [True, False], "temporal_size": [1, 3], "dropout": {"low": 0.0, "high": 0.5}}
EPOCHS = 4
CLASSES = ["anger", "happy"]


@pytest.fixture
def client(settings: CoordinatorSettings) -> Iterator[StudyClient]:
    # The harness leads.
    with study_client(replace(settings, read_token=READ_TOKEN, leader_interval=60), READ_TOKEN) as client:
        yield client


def search(harness: Harness, **given: Any) -> None:
    """A study of which each trial has its own skill; trial 2 has the parameters of trial 1."""
    configuration = {"clahe": True, "temporal_size": 3, "dropout": 0.25}
    spec = {
        "trials": 8,
        "space": SPACE,
        "enqueue": [{**configuration, "dropout": 0.1}, configuration, configuration],
        "protocol": {"kind": "kfold", "k": 3},
        "training": {"frames": 2, "frame_size": 16, "width": 4, "epochs": EPOCHS},
        "economies": {"stop_when_perfect": False},
        "pruning": [{"rule": "median", "startup_trials": 2, "warmup_folds": 1}],
        "feedback_delay": 1,
        **given,
    }
    harness.create(**spec)


def run(harness: Harness, *, folds: int | None = None, epochs: int = EPOCHS) -> None:
    """Let a worker run all folds, or so many."""
    done = 0
    while folds is None or done < folds:
        assignment = harness.claim()
        if assignment is None:
            harness.leader.round()
            assignment = harness.claim()
        if assignment is None:
            return
        report(harness, assignment, epochs)
        done += 1


def report(harness: Harness, assignment: FoldAssignment, epochs: int) -> None:
    draw = np.random.default_rng(assignment.trial * 100 + assignment.fold)
    skill = (0.75, 0.9, 0.9, 0.3, 0.8, 0.5, 0.95, 0.6)[assignment.trial % 8]
    with harness.sessions.begin() as session:
        # The true labels are those of a clip's name.
        labels = [CLASSES.index(clip.split("_")[1]) for clip in assignment.test_clips]
        guesses = [[y if draw.random() < skill else 1 - y for y in labels] for _ in range(epochs)]
        made = make_result(
            assignment,
            guesses[0],
            seconds=10.0 + assignment.trial + assignment.fold / 8,
            clip_passes=7 * (assignment.fold + 1),
            device="cpu" if assignment.fold else "NVIDIA H200",
            processor="Chip 9",
        )
        epoch = made.epochs[0]
        result = made.model_copy(
            update={"epochs": tuple(epoch.model_copy(update={"predicted": tuple(guess)}) for guess in guesses)}
        )
        reports.report(session, key_of(assignment.lease), result, harness.settings)


def query(engine: Engine, statement: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)))


def read_csv(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page_text(folder: Path) -> str:
    """What a person reads: no tags, single spaces."""
    page = re.sub(r"<style>.*?</style>", "", (folder / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def test_every_number_of_a_report_is_that_of_the_database(
    harness: Harness, client: StudyClient, tmp_path: Path
) -> None:
    search(harness)
    run(harness)
    write_report(client, "s", tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    trials = query(
        harness.engine, "SELECT number, state, value, parameters FROM foldwise.trials ORDER BY number"
    )
    states = {state: sum(t.state == state for t in trials) for state in numbers["trials"]}
    assert numbers["trials"] == states
    assert states["complete"] >= 4
    assert states["pruned"] >= 2
    listed = read_csv(tmp_path, "trials")
    assert [(int(t["Trial"]), t["State"]) for t in listed] == [(t.number, t.state) for t in trials]
    assert [float(t["Dropout"]) for t in listed] == [t.parameters["dropout"] for t in trials]
    best = max((t for t in trials if t.state == "complete"), key=lambda t: (t.value, -t.number))
    said = check_scores(harness.engine, best, numbers["shown"], tmp_path)
    said += check_account(harness.engine, trials, numbers["account"])

    page = page_text(tmp_path)
    for words in (*said, "selected on its own test clips: it is the best of 8 trials"):
        assert words in page
    assert "literature" not in page.lower()
    assert not re.search(r'(src|href)="(?!data:)', (tmp_path / "report.html").read_text()), (
        "nothing is beside it"
    )
    provenance = {row["What"]: row["Value"] for row in read_csv(tmp_path, "provenance")}
    assert provenance["device"] == "NVIDIA H200, cpu (Chip 9)"
    for figure in ("convergence", "searched-architecture", "architecture", "confusion-by-true-class"):
        assert (tmp_path / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "figures" / f"{figure}.svg").read_text()
    assert r"\toprule" in (tmp_path / "tables" / "parameters.tex").read_text()


def check_scores(engine: Engine, best: Any, shown: dict[str, Any], folder: Path) -> list[str]:
    """From the predictions as they were sent and the labels of the split; what the page must say of them."""
    folds = query(
        engine,
        f"""SELECT f.clip_ids, f.labels, r.payload, r.reused_from FROM foldwise.results r
        JOIN foldwise.trials t ON t.id = r.trial_id JOIN foldwise.study_folds f ON f.fold = r.fold
        WHERE t.number = {best.number} ORDER BY r.fold""",  # noqa: S608 - a number of ours
    )
    right = [
        [sum(y == p for y, p in zip(f.labels, e["predicted"], strict=True)) for e in f.payload["epochs"]]
        for f in folds
    ]
    pairs: list[tuple[int, int]] = []
    of_subject: dict[str, list[tuple[int, int]]] = {}
    for fold, epochs in zip(folds, right, strict=True):
        predicted = fold.payload["epochs"][epochs.index(max(epochs))]["predicted"]
        for clip, pair in zip(fold.clip_ids, zip(fold.labels, predicted, strict=True), strict=True):
            pairs.append(pair)
            of_subject.setdefault(clip.split("_")[0], []).append(pair)
    correct, clips = sum(y == p for y, p in pairs), len(pairs)
    assert (shown["number"], shown["complete"], shown["clips"]) == (best.number, True, 10)
    assert (shown["correct"], shown["scores"][0]["value"]) == (correct, best.value)
    assert best.value == correct / clips
    assert shown["confusion"] == [[pairs.count((i, j)) for j in range(2)] for i in range(2)]
    assert [int(row["happy"]) for row in read_csv(folder, "confusion-counts")] == [
        row[1] for row in shown["confusion"]
    ]
    recalls = [shown["confusion"][i][i] / sum(shown["confusion"][i]) for i in range(2)]
    assert shown["scores"][1]["value"] == pytest.approx(sum(recalls) / 2)
    assert [float(row["Recall"]) for row in read_csv(folder, "classes")] == pytest.approx(recalls)

    # Wilson's interval solves (p - x)^2 = z^2 x (1 - x) / n.
    for end in shown["scores"][0]["wilson"]:
        assert (best.value - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / clips, abs=1e-6)
    # The bootstrap, drawn again by another generator, subject by subject.
    draw = np.random.default_rng(1)
    shares = np.asarray([np.mean([y == p for y, p in own]) for own in of_subject.values()])
    again = np.quantile(shares[draw.integers(0, 5, (20_000, 5))].mean(axis=1), [0.025, 0.975])
    assert shown["scores"][0]["bootstrap"] == pytest.approx(again, abs=0.03)
    assert shown["resampled"] == "5 subjects"

    totals = np.sum(right, axis=0)
    assert [r["correct"] for r in shown["readings"]] == [sum(map(max, right)), totals.max(), totals[-1]]
    assert [r["epoch"] for r in shown["readings"]] == [None, int(totals.argmax()) + 1, EPOCHS]
    wilson = shown["scores"][0]["wilson"]
    return [
        f"accuracy of the best trial {percent(best.value)} {correct} of {clips} clips",
        f"{percent(wilson[0])} to {percent(wilson[1])}",
        f"last epoch {EPOCHS} {totals[-1]} {percent(totals[-1] / clips)}",
    ]


def check_account(engine: Engine, trials: list[Any], account: dict[str, Any]) -> list[str]:
    """Every fold of every trial once; what the page must say of them."""
    results = query(
        engine,
        """SELECT t.number, t.state, r.reused_from, r.payload FROM foldwise.results r
        JOIN foldwise.trials t ON t.id = r.trial_id""",
    )
    own = [r for r in results if r.reused_from is None]
    seconds = dict.fromkeys(("NVIDIA H200", "cpu"), 0.0)
    for r in own:
        seconds[r.payload["provenance"]["device"]] += r.payload["provenance"]["seconds"]
    assert account["seconds"] == pytest.approx(seconds)
    assert (account["run"], account["reused"]) == (len(own), len(results) - len(own))
    assert account["reused"] == 3
    assert account["folds"] == 3 * len(trials) == account["run"] + account["reused"] + account["pruned"]
    assert (account["abandoned"], account["to_come"]) == (0, 0)
    assert account["clip_passes"] == sum(r.payload["provenance"]["clip_passes"] for r in own)
    assert (account["epochs_run"], account["epochs_allowed"]) == (EPOCHS * len(own),) * 2
    saved = 0.0
    for trial in trials:
        times = [r.payload["provenance"]["seconds"] for r in results if r.number == trial.number]
        if trial.state == "pruned":
            saved += (3 - len(times)) * math.fsum(times) / len(times)
    [rule] = account["rules"]
    pruned = sum(trial.state == "pruned" for trial in trials)
    assert (rule["rule"], rule["trials"]) == ("median", pruned)
    assert rule["seconds_saved"] == pytest.approx(saved)
    return [f"run {len(own)}", f"median {pruned} {account['pruned']}"]


def test_a_study_without_a_complete_trial_gets_an_honest_report(
    harness: Harness, client: StudyClient, tmp_path: Path
) -> None:
    search(harness, pruning=[{"rule": "bound", "threshold": 1.0}], trials=3)
    write_report(client, "s", tmp_path)
    page = page_text(tmp_path)
    assert "No trial is complete and none was pruned, so there is no result to show yet" in page
    assert json.loads((tmp_path / "report.json").read_text())["account"]["to_come"] == 6

    # One trial: every fold gets one clip wrong, so its first ends it.
    harness.report(harness.must_claim(), wrong=1)
    found = write_report(client, "s", tmp_path)
    page = page_text(tmp_path)
    assert "No trial is complete, so the study has no accuracy" in page
    assert "correctly. Its other folds were not run, so this is not an estimate of its accuracy" in page
    assert found.shown is not None
    assert (found.shown.complete, found.shown.resampled) == (False, None)
    assert all(score.wilson is None and score.bootstrap is None for score in found.shown.scores)
    assert [r.not_recorded is None for r in found.shown.readings] == [True, False, False]
    assert "95 % interval, over clips" not in page
    assert [row["Was"] for row in read_csv(tmp_path, "folds")] == ["run", "not run", "not run"]


def test_epochs_that_an_early_stop_cut_are_not_recorded_and_subjects_can_be_unknown(
    harness: Harness, client: StudyClient, tmp_path: Path
) -> None:
    search(harness, trials=1, enqueue=[])
    run(harness, epochs=EPOCHS - 1)
    with harness.engine.begin() as connection:
        # As in a study that was imported where its clips are not.
        connection.execute(text("UPDATE foldwise.studies SET fingerprint = repeat('0', 64)"))
    found = write_report(client, "s", tmp_path)
    assert found.shown is not None
    assert found.data.subjects is None
    assert found.shown.resampled == "3 folds"
    assert "not recorded: 3 of 3 folds ended before their last epoch" in page_text(tmp_path)
    assert read_csv(tmp_path, "best-epoch")[2]["Accuracy"].startswith("not recorded")


def test_folds_beyond_a_verdict_enter_no_figure(harness: Harness, client: StudyClient, tmp_path: Path) -> None:
    search(
        harness,
        trials=1,
        enqueue=[],
        workers_per_trial=2,
        pruning=[{"rule": "bound", "threshold": 1.0}],
    )
    first, helped = harness.must_claim("w1"), harness.must_claim("w2")
    assert (first.fold, helped.fold) == (0, 1)
    harness.report(helped, wrong=len(helped.test_clips), more=False)
    assert harness.report(first, wrong=1, more=False).decision == "pruned"
    [trial] = client.trials("s")
    clips = len(first.test_clips)
    assert (trial.folds_done, trial.folds_beyond_verdict, trial.clips) == (1, 1, clips)
    assert (trial.correct, trial.running_accuracy) == (clips - 1, (clips - 1) / clips)
    assert [fold.beyond_verdict for fold in client.folds("s", 0)] == [False, True, False]
    confusion = client.confusion("s", 0)
    assert sum(map(sum, confusion.counts)) == clips
    write_report(client, "s", tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert (numbers["shown"]["correct"], numbers["shown"]["clips"]) == (clips - 1, clips)
    assert sum(map(sum, numbers["shown"]["confusion"])) == clips
    account = numbers["account"]
    assert (account["run"], account["pruned"], account["to_come"]) == (2, 1, 0)
