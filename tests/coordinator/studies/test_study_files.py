"""A study out to a file and in again: nothing lost, nothing believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from cli.commands.study.edit import app as study_app
from cli.commands.study.edit import delete
from coordinator.scheduling import trials
from coordinator.studies import life
from coordinator.studies.export_file import export_lines
from coordinator.studies.import_file import import_study
from services.contracts import FoldAssignment, StudyState
from services.errors import CacheMismatch, Conflict, InvalidInput
from services.seeds import sha256_of
from tests.harness.coordinator_harness import Harness, LeaderWithoutOptuna, SteppedLeader
from tests.harness.optuna_projection import load_projected
from tests.harness.served_app import live_coordinator

SPACE = {"temporal_size": [1, 3, 5], "clahe": [True, False]}
A = {"temporal_size": 1, "clahe": True}
B = {"temporal_size": 3, "clahe": True}


def exported(harness: Harness, name: str = "s") -> list[bytes]:
    with harness.sessions() as session:
        return list(export_lines(session, name))


def imported(harness: Harness, lines: list[bytes], name: str | None = None) -> None:
    with harness.sessions.begin() as session:
        import_study(session, lines, harness.settings.cache_root, name)
    harness.leader.round()


@pytest.fixture
def elsewhere(harness: Harness, tmp_path: Path) -> Harness:
    """Another coordinator on the same database server, with no clip cache."""
    return Harness(harness.engine, tmp_path)


@pytest.fixture
def ended(harness: Harness) -> Harness:
    """A study with a complete, a reused, a pruned and a failed trial."""
    harness.leader = LeaderWithoutOptuna(harness.engine, replace(harness.settings, ask_ahead=4))
    harness.create(
        space=SPACE,
        enqueue=[A, A, B, {"temporal_size": 5, "clahe": False}],
        trials=4,
        pruning=[{"rule": "bound", "threshold": 0.8}],
        seed=5,
    )
    assignment: FoldAssignment | None = harness.must_claim()
    while assignment is not None and assignment.trial < 3:
        assignment = harness.report(assignment, wrong=2 if assignment.trial == 2 else 0).next
    with harness.sessions.begin() as session:
        trial_id = session.scalar(text("SELECT id FROM foldwise.trials WHERE number = 3"))
        assert trial_id is not None
        trials.cancel_trial(session, trial_id, "enough")
    study = harness.study()
    assert study.state == StudyState.COMPLETE
    assert [harness.trial(n).state.value for n in range(4)] == ["complete", "complete", "pruned", "cancelled"]
    assert {fold.reused_from for fold in harness.folds(1)} == {0}
    return harness


def test_a_study_exported_imported_and_exported_is_the_same_but_for_its_name(
    ended: Harness, elsewhere: Harness
) -> None:
    SteppedLeader(ended.engine, ended.settings).round()
    first = exported(ended)
    imported(elsewhere, first, "t")
    second = exported(elsewhere, "t")
    assert second[0] == first[0].replace(b'"name":"s"', b'"name":"t"', 1)
    assert second[1:] == first[1:]
    head = json.loads(first[0])
    assert (head["format"], head["trials"], len(first)) == ("foldwise-study/1", 4, 5)

    assert elsewhere.study("t").model_copy(update={"name": "s", "spec": None}) == ended.study().model_copy(
        update={"spec": None}
    )
    for number in range(4):
        assert elsewhere.trial(number, "t") == ended.trial(number)
        assert elsewhere.confusion(number, "t") == ended.confusion(number)
    assert [fold.reused_from for fold in elsewhere.folds(1, "t")] == [0] * 5
    ours, theirs = (load_projected(ended.settings.database_url, name).trials for name in ("s", "t"))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.state, a.params, a.values, a.intermediate_values, a.user_attrs) == (
            b.state,
            b.params,
            b.values,
            b.intermediate_values,
            b.user_attrs,
        )


def test_an_imported_study_can_be_given_more_trials_where_its_cache_is(ended: Harness) -> None:
    imported(ended, exported(ended), "t")
    with ended.sessions.begin() as session:
        life.set_budget(session, "t", 5)
    ended.leader.round()
    assignment: FoldAssignment | None = ended.must_claim(study="t")
    while assignment is not None:
        assert assignment.trial == 4
        assignment = ended.report(assignment).next
    assert ended.study("t").state == StudyState.COMPLETE

    ended.create(name="warm", space=SPACE, trials=6, warm_start={"study": "s"}, start=False)
    warm = exported(ended, "warm")
    assert len(json.loads(warm[0])["inherited"]) == 3
    imported(ended, warm, "u")
    assert exported(ended, "u")[0] == warm[0].replace(b'"name":"warm"', b'"name":"u"', 1)


def test_a_study_under_way_is_paused_and_goes_on_from_there(harness: Harness, elsewhere: Harness) -> None:
    harness.create(trials=3, space=SPACE, protocol={"kind": "kfold", "k": 2})
    with harness.sessions.begin() as session:
        life.enqueue(session, "s", [A])
    held = harness.report(harness.must_claim()).next
    assert held is not None
    lines = exported(harness)
    with pytest.raises(CacheMismatch, match="is running and needs the clip cache tiny/"):
        imported(elsewhere, lines, "t")
    imported(harness, lines, "t")
    assert harness.study("t").state == StudyState.PAUSED
    assert [fold.state.value for fold in harness.folds(0, "t")] == ["done", "pending"]
    again = exported(harness, "t")
    assert again[0] == lines[0].replace(b'"name":"s"', b'"name":"t"', 1).replace(b'"running"', b'"paused"', 1)
    assert again[1:] == lines[1:]
    with harness.sessions.begin() as session:
        life.resume(session, "t")
    assignment: FoldAssignment | None = harness.must_claim("w2", study="t")
    assert assignment is not None
    assert (assignment.trial, assignment.fold) == (0, 1)
    while assignment is not None:
        assignment = harness.report(assignment).next
        harness.leader.round()
    assert harness.study("t").state == StudyState.COMPLETE
    assert harness.trial(2, "t").parameters == A


Change = Callable[[list[Any]], None]


def put(line: int, path: str, value: Any) -> Change:
    """A file in which one value is another."""

    def change(lines: list[Any]) -> None:
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
        where = lines[line - 1]
        for key in parents:
            where = where[key]
        where[last] = value

    return change


def forge(lines: list[Any]) -> None:
    """Better predictions, with a hash that fits them."""
    result = lines[1]["folds"][0]["result"]
    result["payload"]["epochs"][0]["predicted"] = [1, 0]
    result["sha256"] = sha256_of(result["payload"])


def rescore(lines: list[Any]) -> None:
    """Other predictions with hash, scores and confusion that fit; the trial's value does not."""
    forge(lines)
    lines[1]["folds"][0]["result"].update(correct=0, confusion=[[0, 1], [1, 0]])


CHANGED: list[tuple[Change, str]] = [
    (put(1, "format", "foldwise-study/2"), "line 1: format"),
    (put(1, "split_hash", "0" * 64), "line 1: split_hash: is not that of these folds"),
    (put(1, "folds.0.labels", [0]), "line 1: folds.0.labels"),
    (put(1, "folds.0.labels", [0, 2]), "line 1: folds.0.labels"),
    (put(1, "spec.protocol", {"kind": "holdout"}), "line 1: folds: must be as many as the protocol says"),
    (put(1, "trials", 3), "the study is complete"),
    (put(1, "spec.trials", 3), "line 1: spec: enqueue has 4 configurations"),
    (put(1, "spec.colour", 1), "line 1: spec.colour"),
    (put(2, "number", 1), "line 2: number: is 1; 0 comes next"),
    (put(2, "parameters.temporal_size", 9), "line 2: parameters: do not fit the space"),
    (put(2, "value", 0.9), "line 2: value: is not the score of its folds"),
    (put(2, "value", None), "line 2: value"),
    (put(2, "state", "running"), "line 2: state"),
    (put(2, "folds.0.result", None), "line 2: folds.0.result"),
    (
        put(2, "folds.0.result.sha256", "0" * 64),
        "line 2: folds.0.result.sha256: is not that of",
    ),
    (put(2, "folds.0.result.correct", 1), "line 2: folds.0.result.correct"),
    (put(2, "folds.0.result.best_epoch", 1), "line 2: folds.0.result.best_epoch"),
    (put(2, "folds.0.result.confusion", [[1, 0], [1, 0]]), "line 2: folds.0.result.confusion"),
    (put(2, "folds.0.result.payload.provenance.seed", 1), "line 2: folds.0.result: provenance.seed"),
    (put(2, "folds.0.result.payload.epochs", []), "line 2: folds.0.result: epochs"),
    (put(2, "folds.0.result.received_at", "2026-11-22T00:00:00"), "line 2: folds.0.result"),
    (put(3, "folds.0.result.reused_from", 2), "line 3: folds.0.result.reused_from: trial 2 did not run it"),
    (put(3, "folds.0.result.reused_from", 9), "line 3: folds.0.result.reused_from"),
    (put(4, "pruned", None), "line 4: pruned"),
    (forge, "line 2: folds.0.result.correct"),
    (rescore, "line 2: value: is not the score of its folds"),
    (lambda lines: lines.pop(), "line 5: the file ends after 3 of 4 trials"),
    (lambda lines: lines.append(lines[-1]), "the file has more lines after 4 trials"),
    (lambda lines: lines.insert(0, {}), "line 1: "),
    (lambda lines: lines.clear(), "line 1: the file is empty"),
]


def test_a_file_that_was_changed_is_refused_whole_and_the_line_is_named(ended: Harness) -> None:
    file = exported(ended)
    with pytest.raises(Conflict, match="import it under another name"):
        imported(ended, file)
    for junk in (b"\n", b"\xff\xfe", b"{", b"[1]"):
        with pytest.raises(InvalidInput, match=r"^line 1: "):
            imported(ended, [junk], "t")
    for change, words in CHANGED:
        lines = [json.loads(line) for line in file]
        change(lines)
        with pytest.raises(InvalidInput) as refused:
            imported(ended, [json.dumps(line).encode() for line in lines], "t")
        assert words in refused.value.message
        with ended.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM foldwise.studies")) == 1


def test_validation_clips_are_in_the_file_and_older_files_have_none(harness: Harness) -> None:
    harness.create(trials=1, epoch_choice="validation", protocol={"kind": "kfold", "k": 2})
    held: FoldAssignment | None = harness.must_claim()
    while held is not None:
        held = harness.report(held).next
    lines = exported(harness)
    imported(harness, lines, "t")
    assert exported(harness, "t")[0] == lines[0].replace(b'"name":"s"', b'"name":"t"', 1)
    fold = json.loads(lines[0])["folds"][0]
    assert len(fold["validation_clip_ids"]) == len(fold["validation_labels"]) == 2
    for value, problem in (
        (fold["validation_clip_ids"][:1], "folds.0.validation_labels: there must be one for each"),
        (fold["clip_ids"][:2], "folds.0.validation_clip_ids: a clip is used twice"),
        ([], "folds.0.validation_labels"),
    ):
        changed = [json.loads(line) for line in lines]
        changed[0]["folds"][0]["validation_clip_ids"] = value
        with pytest.raises(InvalidInput, match=problem):
            imported(harness, [json.dumps(line).encode() for line in changed], "u")
    without = json.loads(lines[0])
    del without["folds"][0]["validation_clip_ids"], without["folds"][0]["validation_labels"]
    with pytest.raises(InvalidInput, match="validation_clip_ids: must choose the epoch"):
        imported(harness, [json.dumps(without).encode(), *lines[1:]], "u")
    without["spec"]["epoch_choice"] = "last"
    without["folds"][1] = {key: without["folds"][1][key] for key in ("name", "clip_ids", "labels")}
    with pytest.raises(InvalidInput, match="has 2 validation predictions, the fold has 0"):
        imported(harness, [json.dumps(without).encode(), *lines[1:]], "u")

    harness.create(name="older")
    assert set(json.loads(exported(harness, "older")[0])["folds"][0]) == {"name", "clip_ids", "labels"}


def test_files_over_rest_and_by_commands(
    ended: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.jsonl"
    monkeypatch.setenv("FOLDWISE_TOKEN", ended.settings.admin_token)
    with live_coordinator(ended.settings) as client:
        url = ["--url", str(client.base_url)]

        def foldwise(*words: str) -> str:
            outcome = CliRunner().invoke(study_app, [*words, *url], catch_exceptions=False)
            assert outcome.exit_code == 0
            return outcome.stdout

        answer = client.get("/api/v1/studies/s/export")
        assert answer.headers["content-type"].startswith("application/jsonl")
        assert answer.content == b"".join(exported(ended))
        assert "import it with" in foldwise("export", "s", "--out", str(file))
        assert file.read_bytes() == answer.content
        assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]

        assert "study t is complete" in foldwise("import", str(file), "--name", "t")
        assert client.get("/api/v1/studies/t").json()["folds_done"] == ended.study().folds_done
        taken = client.post("/api/v1/studies/import", content=answer.content)
        assert (taken.status_code, taken.json()["field"]) == (409, "name")
        large = client.post("/api/v1/studies/import", content=b"x" * (17 * 2**20))
        assert (large.status_code, large.json()["type"]) == (422, "urn:foldwise:invalid-input")
        assert client.get("/api/v1/studies/none/export").status_code == 404

        assert "t is running with 4 of 8 trials" in foldwise("budget", "t", "8")
        words = ["enqueue", "t", "--parameter", "temporal_size=5", "--parameter", "clahe=true"]
        assert "as trial " in foldwise(*words)
        printed = foldwise("clone", "s", "c", "--set", "seed=9", "--set", "start=false", "--json")
        cloned = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        assert (cloned["state"], cloned["spec"]["seed"], cloned["spec"]["trials"]) == ("draft", 9, 4)
        assert "c is deleted" in foldwise("delete", "c", "--confirm", "c")
        terminal, keyboard = os.openpty()
        with os.fdopen(keyboard) as typed, os.fdopen(terminal, "wb", buffering=0) as hands:
            monkeypatch.setattr("sys.stdin", typed)
            hands.write(b"S\n")
            with pytest.raises(InvalidInput, match="confirm it with its name"):
                delete("s", url=str(client.base_url))
            assert "keep a copy first with: foldwise study export s" in capsys.readouterr().out
            hands.write(b"t\n")
            with pytest.raises(Conflict, match="t is running"):
                delete("t", url=str(client.base_url))
        with pytest.raises(InvalidInput, match="--confirm s"):
            foldwise("delete", "s")
        refused = client.delete("/api/v1/studies/s")
        assert (refused.status_code, refused.json()["field"]) == (422, "confirm")
        assert client.get("/api/v1/studies/s").status_code == 200


def test_lists_are_filtered_and_paged_by_the_last_item(ended: Harness) -> None:
    for name in ("a", "b"):
        ended.create(name=name, start=name == "b")
    held = ended.must_claim("w7")
    with live_coordinator(ended.settings) as client:

        def names(**params: Any) -> list[str]:
            return [study["name"] for study in client.get("/api/v1/studies", params=params).json()]

        def numbers(study: str = "s", **params: Any) -> list[int]:
            return [t["number"] for t in client.get(f"/api/v1/studies/{study}/trials", params=params).json()]

        assert names() == ["s", "a", "b"]
        assert (names(limit=2), names(after="a"), names(after="b")) == (["s", "a"], ["b"], [])
        assert (names(state="draft"), names(state="complete", after="s")) == (["a"], [])
        assert client.get("/api/v1/studies", params={"after": "x"}).status_code == 404

        assert numbers() == [0, 1, 2, 3]
        assert numbers(order="value") == [0, 1, 2, 3]
        with ended.engine.begin() as connection:
            connection.execute(text("UPDATE foldwise.trials SET value = 0.5 WHERE number = 0 AND study_id = 1"))
        paged: list[int] = []
        while page := numbers(order="value", limit=1, after=paged[-1] if paged else -1):
            paged += page
        assert paged == [1, 0, 2, 3]
        assert numbers(order="value", state="pruned", after=1) == [2]
        assert numbers("b", worker="w7") == [held.trial]
        assert numbers("b", worker="w8") == []
