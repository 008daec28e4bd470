"""Everything on one machine, as a person runs it: real processes and signals, the database read after."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.local.embedded_postgres import embedded_postgres
from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from tests.acceptance.up import Up, foldwise, foldwise_here, wait_for
from tests.harness.optuna_projection import load_projected


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with one cache: 4 synthetic subjects, 10 frames of 32 x 32."""
    root = tmp_path_factory.mktemp("faces")
    write_ckplus_tree(root / "tree", subjects=4, seed=1)
    preprocess("ckplus", root / "tree", root / "caches", settings=ClipSettings(frame_size=32), processes=1)
    return root / "caches"


@pytest.fixture
def state(tmp_path: Path, faces: Path) -> Path:
    """A state folder that `up` finds the cache in."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "caches").symlink_to(faces)
    return folder


COUNTED_ONCE = """
    SELECT t.number, count(r.fold), count(DISTINCT r.fold), sum(r.clips), min(s.fold_count), min(s.clips)
    FROM foldwise.trials t JOIN foldwise.studies s ON s.id = t.study_id
    JOIN foldwise.results r ON r.trial_id = t.id
    WHERE t.state = 'complete' GROUP BY t.number ORDER BY t.number
"""


def test_one_worker_runs_cross_validations_that_optuna_agrees_with_and_that_people_steer(state: Path) -> None:
    with Up(state, workers=1) as up:
        up.create("first")
        study = up.wait_until_over("first")
        assert study["state"] == "complete"
        assert up.query(COUNTED_ONCE) == [(0, 4, 4, 28, 4, 28), (1, 4, 4, 28, 4, 28)]

        done = re.findall(r"fold_done .*trial=(\d+) fold=(\d+)/4", up.log("worker-1"))
        assert done == [(str(trial), str(fold)) for trial in range(2) for fold in range(1, 5)]

        wait_for(lambda: not up.query("SELECT 1 FROM foldwise.outbox"))
        projected = load_projected(up.service()["database_url"], "first")
        best = study["best"]
        assert (projected.best_trial.number, projected.best_value) == (best["number"], best["value"])
        assert projected.best_params == best["parameters"]

        shown = json.loads(up.study("show", "first", "--json"))
        assert (len(shown.pop("digest")), shown.pop("depends_on")) == (64, [])
        assert shown == study
        picture = state / "confusion.png"
        text = up.study("show", "first", "--confusion", str(picture))
        assert "complete" in text
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "first" in up.study("list")

        up.create("steered", "trials=50")
        wait_for(lambda: up.show("steered")["folds_done"] >= 1)
        assert "steered is paused" in up.study("pause", "steered")
        wait_for(lambda: not up.query("SELECT 1 FROM foldwise.leases WHERE outcome IS NULL"))
        paused = up.show("steered")["folds_done"]
        assert "steered is running" in up.study("resume", "steered")
        wait_for(lambda: up.show("steered")["folds_done"] > paused)
        up.study("stop", "steered")
        wait_for(lambda: up.show("steered")["trials"]["running"] == 0)
        stopped = up.show("steered")
        assert (stopped["state"], stopped["trials"]["ready"]) == ("stopped", 0)
    assert up.process.returncode == 75
    assert "Traceback" not in up.output
    assert not (state / "service.json").exists()

    with Up(state, workers=0) as again:
        assert again.show("first") == study, "the next `up` finds the study as it was"


def test_a_killed_worker_costs_one_fold_a_killed_coordinator_none_and_nothing_counts_twice(
    state: Path,
) -> None:
    with Up(state, workers=2) as up:
        up.create("killed", "training.epochs=12")
        wait_for(lambda: "fold_done" in up.log("worker-1"))
        up.worker("worker-1").send_signal(signal.SIGKILL)
        up.coordinator().send_signal(signal.SIGKILL)
        study = up.wait_until_over("killed")
        assert (study["state"], study["trials"]["complete"]) == ("complete", 2)
        assert up.query(COUNTED_ONCE) == [(number, 4, 4, 28, 4, 28) for number in range(2)]
        outcomes = dict(up.query("SELECT outcome, count(*) FROM foldwise.leases GROUP BY outcome"))
        assert outcomes["done"] == 8
        assert outcomes.get("lapsed", 0) <= 1
        assert up.log("worker-1").count("worker_started") == 2, "the supervisor started it again"
    assert "worker-1 ended (killed by SIGKILL)" in up.output
    assert "the coordinator ended (killed by SIGKILL); restarting it" in up.output


@pytest.mark.long
def test_sigterm_and_drain_give_the_fold_back_at_once(state: Path) -> None:
    with Up(state, workers=1) as up:
        up.create("released", "training.epochs=500", "economies.stop_when_perfect=false")
        wait_for(lambda: up.query("SELECT 1 FROM foldwise.leases WHERE step > 0"))
        up.worker("worker-1").send_signal(signal.SIGTERM)
        wait_for(lambda: up.query("SELECT 1 FROM foldwise.leases WHERE outcome = 'released'"))
        holds = "SELECT worker_id FROM foldwise.leases WHERE outcome IS NULL AND step > 0"
        wait_for(lambda: up.query(holds))
        [(again,)] = up.query(holds)
        assert (
            "ends with its next heartbeat"
            in foldwise("workers", "drain", again, "--now", "--state", str(state)).stdout
        )
        wait_for(lambda: up.query("SELECT count(*) FROM foldwise.leases WHERE outcome = 'released'") == [(2,)])
        assert up.query("SELECT count(*) FROM foldwise.leases WHERE outcome = 'lapsed'") == [(0,)]
        assert "stopped" in up.study("stop", "released")


@pytest.mark.long
def test_a_worker_started_before_its_coordinator_waits_for_it(tmp_path: Path, state: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "early.log"
    with log.open("w") as output:
        early = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli.main", "worker", "--url", url, "--threads", "1"),
                *("--cache-root", str(state / "caches")),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FOLDWISE_TOKEN": "worker-token", "PYTHONUNBUFFERED": "1"},
        )
        try:
            wait_for(lambda: "coordinator_unreachable" in log.read_text())
            assert early.poll() is None
            with embedded_postgres(tmp_path / "pg") as server, coordinator(server.url, state, port):
                seen = {"FOLDWISE_TOKEN": "admin-token"}
                arguments = ["--preset", "ckplus-loso", "--set", "trials=1", "--set", "training.frame_size=32"]
                arguments += ["--set", "training.epochs=6", "--set", "training.width=2", "--url", url]
                arguments += ["--set", "training.augmentation={}", "--set", "economies.stop_when_perfect=false"]
                created = foldwise("study", "create", *arguments, **seen)
                assert created.returncode == 0, created.stderr
                wait_for(lambda: "fold_done" in log.read_text())
                # From here on it trains the next fold, whose result finds no coordinator.
                before = log.read_text().count("coordinator_unreachable")
            wait_for(lambda: log.read_text().count("coordinator_unreachable") > before + 4)
            assert early.poll() is None, "a coordinator that ends does not end its workers"
            early.terminate()
            assert early.wait(timeout=30) == 75
            assert "result_not_handed_in" in log.read_text()
        finally:
            early.kill()
            early.wait()


class coordinator:  # noqa: N801 - reads as the context it is
    """A running `foldwise coordinator`."""

    def __init__(self, database_url: str, state: Path, port: int) -> None:
        self._port = port
        self._arguments = ["--cache-root", str(state / "caches"), "--port", str(port)]
        self._environment = {
            **os.environ,
            "FOLDWISE_DATABASE_URL": database_url,
            "FOLDWISE_ADMIN_TOKEN": "admin-token",
            "FOLDWISE_WORKER_TOKEN": "worker-token",
        }

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "coordinator", *self._arguments], env=self._environment
        )
        wait_for(self._ready)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(timeout=30) == 0

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def quiet_up(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Iterator[Up]:
    """One `up` without workers for the tests of bad input."""
    folder = tmp_path_factory.mktemp("quiet") / "state"
    folder.mkdir()
    (folder / "caches").symlink_to(faces)
    with Up(folder, workers=0) as up:
        yield up


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["preprocess", "--dataset", "fer2013", "--root", "."], 2, "use one of: ckplus"),
        (["preprocess", "--dataset", "ckplus", "--root", "/no/such/folder"], 2, "/no/such/folder"),
        (["preprocess", "--dataset", "ckplus", "--root", "."], 2, "cohn-kanade-images"),
        (["preprocess", "--dataset", "ckplus", "--root", ".", "--detector", "haar"], 2, ""),
        (["study", "create", "--preset", "nope"], 2, "ckplus-loso"),
        (["study", "create"], 2, "--preset"),
        (["study", "create", "--preset", "demo", "--set", "trials=many"], 2, "trials"),
        (["study", "create", "--preset", "demo", "--set", "training.widht=2"], 2, "training.widht"),
        (["study", "create", "--preset", "demo", "--space", "SPACE"], 2, "unknown option 'relu' of activation"),
        (["study", "create", "--preset", "demo", "--space", "/no/such/file"], 2, "/no/such/file"),
        (["study", "create", "--preset", "ckplus-loso"], 64, "training.frame_size is 112, the cache"),
        (["study", "create", "--preset", "oulu-10fold"], 64, "no clip cache 'oulu-casia'"),
        (["study", "show", "nothing"], 2, "no study 'nothing'"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    quiet_up: Up, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "space.yaml").write_text("activation: [relu]\n")
    arguments = [str(tmp_path / "space.yaml") if part == "SPACE" else part for part in arguments]
    if arguments[0] == "study":
        arguments += ["--state", str(quiet_up.state)]
    run = foldwise_here(*arguments)
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert re.fullmatch(r"foldwise: .+\n", run.stderr), run.stderr


def test_a_refused_token_ends_people_and_workers_for_good(quiet_up: Up) -> None:
    url = quiet_up.service()["url"]
    for arguments in (
        ["study", "list", "--url", url],
        ["worker", "--url", url, "--cache-root", str(quiet_up.state / "caches")],
    ):
        run = foldwise(*arguments, FOLDWISE_TOKEN="guess")
        assert run.returncode == 64
        assert "unknown or was revoked" in run.stderr
        assert "Traceback" not in run.stderr + run.stdout


@pytest.mark.long
def test_a_worker_whose_cache_does_not_match_ends_for_good(quiet_up: Up, tmp_path: Path) -> None:
    quiet_up.create("elsewhere")
    service = quiet_up.service()
    run = foldwise(
        *("worker", "--url", service["url"], "--cache-root", str(tmp_path), "--study", "elsewhere"),
        FOLDWISE_TOKEN=service["worker_token"],
    )
    assert run.returncode == 64
    assert "which this worker cannot read" in run.stderr


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("postgresql://127.0.0.1:9/x", 75, "database does not answer"),
        ("nonsense", 2, "not the URL of a PostgreSQL"),
        pytest.param("sqlite://", 2, "not the URL of a PostgreSQL", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("command", ["coordinator", "dashboard"])
def test_a_database_that_is_not_there_is_said_in_a_line(command: str, url: str, code: int, words: str) -> None:
    caches = ["--cache-root", "/tmp"] if command == "coordinator" else []  # noqa: S108 - nothing is read there
    tokens = {"FOLDWISE_ADMIN_TOKEN": "a", "FOLDWISE_WORKER_TOKEN": "w"}
    run = foldwise(command, "--database-url", url, "--port", "0", *caches, **tokens)
    assert (run.returncode, words in run.stderr) == (code, True), run.stderr
    assert re.fullmatch(r"foldwise: .+\n", run.stderr), run.stderr


def test_an_occupied_port_or_folder_is_said_in_a_line(quiet_up: Up, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments in (
            ["up", "--state", str(tmp_path / "other"), "--port", port],
            ["dashboard", "--state", str(quiet_up.state), "--port", port],
        ):
            run = foldwise(*arguments)
            assert (run.returncode, "choose another with --port" in run.stderr) == (2, True), run.stderr
    run = foldwise("up", "--state", str(quiet_up.state), "--port", "0")
    assert (run.returncode, "already runs" in run.stderr) == (1, True), run.stderr


def test_the_dashboard_shows_the_study_that_runs(quiet_up: Up) -> None:
    quiet_up.create("shown")
    # The leader creates Optuna's tables with the first study that it projects.
    wait_for(
        lambda: quiet_up.query("SELECT 1 FROM pg_tables WHERE tablename = 'studies' AND schemaname = 'public'")
    )
    wait_for(lambda: quiet_up.query("SELECT 1 FROM studies WHERE study_name = 'shown'"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "dashboard", "--state", str(quiet_up.state), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert dashboard.stdout is not None
        assert f"http://127.0.0.1:{port}/" in dashboard.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        shown: dict[str, int] = {}

        def answers() -> bool:
            try:
                summaries = httpx.get(f"{address}/api/studies", trust_env=False).json()["study_summaries"]
            except httpx.TransportError:
                return False
            shown.update({study["study_name"]: study["study_id"] for study in summaries})
            return True

        wait_for(answers)
        assert "shown" in shown
        httpx.delete(f"{address}/api/studies/{shown['shown']}", trust_env=False)
        assert quiet_up.query("SELECT 1 FROM studies WHERE study_name = 'shown'"), "it may only read"
    finally:
        dashboard.terminate()
        dashboard.communicate(timeout=30)


def test_it_says_which_version_it_is() -> None:
    assert re.fullmatch(r"foldwise \d+\.\d+\.\d+(, revision \S+)?\n", foldwise("--version").stdout)
