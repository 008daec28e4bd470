"""A release of the chart in a real cluster, used as people use it: by helm, kubectl and foldwise."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import make_url

from cli.cluster_access import KubeContext, Kubectl
from coordinator.store.database import SESSION_OPTIONS
from helm.generate import CHART
from tests.cluster.control_plane import wait_until
from tests.harness.optuna_projection import load_projected
from tests.harness.programs import program

VALUES = Path(__file__).parent / "values.yaml"
NAME = "foldwise"
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
PATIENCE = 300.0

SMALL = (
    *("--preset", "ckplus-loso", "--set", "trials=2", "--set", "pruning=[]", "--set", "fold_order=fixed"),
    *("--set", "training.width=2", "--set", "training.frame_size=48", "--set", "training.batch_size=8"),
    *("--set", "training.epochs=4", "--set", "economies.stop_when_perfect=false"),
    *("--set", "economies.reuse_folds=false", "--set", "space.temporal_size=[1,3]"),
)
"""Options of `foldwise study create`: a study of a minute on two workers, none of whose folds are left out."""

Manifest = dict[str, Any]


@dataclass
class Release:
    """One namespace with the chart in it."""

    namespace: str

    def image(self, name: str) -> str:
        """What the chart calls an image where its values are the defaults."""
        return f"foldwise/{name}:{VERSION}"

    def note(self, what: str, seen: str) -> None:
        """Say what happened, and how long it took: the table of docs/cluster.md."""
        print(f"\n    {what}: {seen}", flush=True)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments, given=given)

    def helm(self, *arguments: str) -> str:
        return run(program("helm"), "--namespace", self.namespace, *arguments)

    def foldwise(self, *arguments: str) -> str:
        return run(sys.executable, "-m", "cli.main", "--namespace", self.namespace, *arguments)

    def install(self, *arguments: str) -> str:
        own = os.environ.get("VALUES", "")
        values = [f"--values={file}" for file in (VALUES, own) if file]
        return self.helm("upgrade", "--install", NAME, str(CHART), *values, *arguments)

    def apply(self, manifest: Manifest) -> None:
        self.kubectl("apply", "--filename=-", given=json.dumps(manifest))

    def objects(self, kind: str, selector: str = "") -> list[Manifest]:
        found: list[Manifest] = json.loads(
            self.kubectl("get", kind, f"--selector={selector}", "--output=json")
        )["items"]
        return found

    def pods(self, study: str, *phases: str) -> list[Manifest]:
        """Of a study's workers, without those that are being deleted."""
        return [
            pod
            for pod in self.objects("pods", f"foldwise/study={study}")
            if pod["status"].get("phase") in (phases or ("Pending", "Running"))
            and not pod["metadata"].get("deletionTimestamp")
        ]

    def running(self, study: str, number: int) -> list[Manifest]:
        """Wait until so many pods of a study run."""
        found: list[Manifest] = until(lambda: len(pods := self.pods(study, "Running")) == number and pods)
        return found

    def create(self, study: str, *arguments: str) -> None:
        self.foldwise("study", "create", *SMALL, "--name", study, *arguments)

    def study(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.foldwise("study", "show", name, "--json"))
        return found

    def wait_for_rollout(self) -> None:
        for deployment in (NAME, f"{NAME}-dashboard"):
            self.kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={PATIENCE:.0f}s")

    def wait_for_caches(self) -> None:
        """Until preprocessing has filled them."""
        filled = ("--for=condition=complete", f"--timeout={PATIENCE:.0f}s")
        self.kubectl("wait", "job", "--selector=app.kubernetes.io/component=preprocessing", *filled)

    def declare_gpus(self, number: int) -> None:
        """What a device plugin would say of the first node."""
        node = self.objects("nodes")[0]["metadata"]["name"]
        change = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(number)}]
        how = ("--subresource=status", "--type=json", f"--patch={json.dumps(change)}")
        self.kubectl("patch", "node", node, *how)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Rows of the bundled database."""
        psql = ("psql", "--username=foldwise", "--host=/var/run/postgresql", "--no-align", "--tuples-only")
        rows = f"SELECT coalesce(json_agg(found), '[]') FROM ({query}) AS found"
        said = self.kubectl("exec", f"{NAME}-postgresql-0", "--", *psql, f"--command={rows}")
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def now(self) -> str:
        """The database's time."""
        return str(self.ask("SELECT clock_timestamp() AS now")[0]["now"])

    def leases(self, study: str) -> list[dict[str, Any]]:
        """All leases of a study, oldest first, with the names of their workers."""
        return self.ask(
            "SELECT leases.*, trials.number, workers.name AS worker FROM foldwise.leases"
            " JOIN foldwise.trials ON trials.id = leases.trial_id"
            " JOIN foldwise.workers ON workers.id = leases.worker_id"
            f" JOIN foldwise.studies ON studies.id = trials.study_id WHERE studies.name = '{study}'"
            " ORDER BY granted_at"
        )

    def held(self, study: str) -> list[dict[str, Any]]:
        """Leases under way."""
        return [lease for lease in self.leases(study) if not lease["ended_at"]]

    def wait_for_end(self, study: str) -> None:
        until(lambda: self.state(study) == "complete")

    def state(self, study: str) -> str:
        return str(self.ask(f"SELECT state FROM foldwise.studies WHERE name = '{study}'")[0]["state"])

    @contextmanager
    def database_url(self) -> Iterator[str]:
        """Of the bundled database, through a port-forward, while the context lasts."""
        secret = json.loads(self.kubectl("get", "secret", f"{NAME}-postgresql", "--output=json"))
        url = make_url(base64.b64decode(secret["data"]["uri"]).decode())
        with Kubectl(KubeContext(namespace=self.namespace)).forward(f"{NAME}-postgresql", 5432) as forwarded:
            here = url.set(host="127.0.0.1", port=int(forwarded.rpartition(":")[2]))
            # As foldwise connects: the role's own schema is not where Optuna looks for its tables.
            here = here.update_query_dict({"options": SESSION_OPTIONS})
            yield here.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    def check(self, study: str, trials: int = 2) -> None:
        """Every fold is counted once, in our tables and in Optuna's, and nothing is left under way.

        Raises:
            AssertionError: it is not so.
        """
        view = self.study(study)
        folds, clips = view["folds"], view["clips"]
        assert view["state"] == "complete", view["reason"]
        of_study = (
            "FROM foldwise.results JOIN foldwise.trials ON trials.id = results.trial_id"
            f" JOIN foldwise.studies ON studies.id = trials.study_id WHERE studies.name = '{study}'"
        )
        counted = self.ask(f"SELECT number, fold, lease_id, correct, results.clips, confusion {of_study}")
        assert len({(row["number"], row["fold"]) for row in counted}) == len(counted) == trials * folds
        done = [lease["id"] for lease in self.leases(study) if lease["outcome"] == "done"]
        assert sorted(done) == sorted(row["lease_id"] for row in counted)
        assert all(lease["ended_at"] for lease in self.leases(study))
        until(lambda: not self.ask("SELECT seq FROM foldwise.outbox"))
        with self.database_url() as url:
            projected_trials = load_projected(url, study).trials
        assert len(projected_trials) == trials
        for projected in projected_trials:
            own = [row for row in counted if row["number"] == projected.number]
            assert sum(row["clips"] for row in own) == clips
            assert sum(sum(map(sum, row["confusion"])) for row in own) == clips
            assert projected.state.name == "COMPLETE"
            assert projected.value == sum(row["correct"] for row in own) / clips
            assert len(projected.intermediate_values) == folds


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something in the cluster; what was found. Each look costs a program its start: not too often."""
    return wait_until(condition, PATIENCE, pause=0.5)


def run(*command: str, given: str | None = None) -> str:
    """What a program prints.

    Raises:
        AssertionError: it ends with an error, which is told.
    """
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout
