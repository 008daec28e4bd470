"""The Kubernetes client against recorded answers, and what REST says of workers with and without a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from sqlalchemy import text

from coordinator.app import create_app
from coordinator.scheduling import workers
from k8s.cluster import Cluster, WatchTooOld
from k8s.logs import lines_of
from k8s.watch import Watched
from services.errors import Conflict, FoldwiseError, NotFound, Unavailable
from tests.harness.coordinator_harness import Harness
from tests.harness.served_app import bearer, served


def item(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}}


def event(kind: str, thing: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": thing}


GONE = {
    "kind": "Status",
    "code": 410,
    "reason": "Expired",
    "message": "too old resource version: 1 (5)",
}
PODS = "/api/v1/namespaces/search/pods"


class Recorded:
    """Answers by method and path, each once, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, str]]] = {}
        self.asked: list[str] = []

    def says(self, what: str, *answers: tuple[int, Any]) -> None:
        self.answers[what] = [(code, a if isinstance(a, str) else json.dumps(a)) for code, a in answers]

    def streams(self, what: str, *streams: list[dict[str, Any]]) -> None:
        self.says(what, *((200, "".join(json.dumps(line) + "\n" for line in lines)) for lines in streams))

    def answer(self, method: str, target: str) -> tuple[int, str]:
        path, _, query = target.partition("?")
        self.asked.append(f"{method} {target}")
        what = f"{'WATCH' if 'watch=true' in query else method} {path}"
        answers = self.answers[what]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def api() -> Iterator[tuple[Recorded, Cluster]]:
    recorded = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = recorded.answer(self.command, self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = respond  # noqa: N815 - names of http.server

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        with closing(Cluster(f"http://127.0.0.1:{listener.server_address[1]}", "search")) as cluster:
            yield recorded, cluster
        listener.shutdown()
        thread.join()


def test_a_group_that_is_not_kubernetes_own_is_spoken_in_the_version_it_prefers(
    api: tuple[Recorded, Cluster],
) -> None:
    recorded, cluster = api
    versions = [{"groupVersion": f"kueue.x-k8s.io/{v}", "version": v} for v in ("v1beta2", "v1beta1")]
    recorded.says("GET /apis/kueue.x-k8s.io", (200, {"versions": versions, "preferredVersion": versions[0]}))
    workloads = "/apis/kueue.x-k8s.io/v1beta2/namespaces/search/workloads"
    recorded.says(f"GET {workloads}", (200, {"items": [item("w", 1)]}))
    recorded.says(f"PATCH {workloads}/w", (200, item("w", 2)))
    assert cluster.list("kueue.x-k8s.io", "workloads")["items"] == [item("w", 1)]
    cluster.patch("kueue.x-k8s.io", "workloads", "w", {"spec": {"active": False}})
    assert recorded.asked == [
        "GET /apis/kueue.x-k8s.io",
        f"GET {workloads}",
        f"PATCH {workloads}/w",
    ], "it is asked for once"


def test_a_watch_goes_on_where_it_ended_and_lists_again_when_that_is_forgotten(
    api: tuple[Recorded, Cluster],
) -> None:
    recorded, cluster = api
    told: Queue[tuple[str, bool]] = Queue()
    recorded.says(
        f"GET {PODS}",
        (200, {"metadata": {"resourceVersion": "1"}, "items": [item("a", 1)]}),
        # While the watch was broken, b went and c came.
        (200, {"metadata": {"resourceVersion": "9"}, "items": [item("a", 1), item("c", 9)]}),
    )
    recorded.streams(
        f"WATCH {PODS}",
        [event("ADDED", item("b", 2)), event("BOOKMARK", item("", 3))],
        [event("MODIFIED", item("a", 4))],
        [event("ERROR", GONE)],
        [event("DELETED", item("c", 10)), event("ADDED", item("last", 11))],
        [],
    )
    watched = Watched(
        cluster, "", "pods", "app=x", on_change=lambda pod, gone: told.put((pod["metadata"]["name"], gone))
    )
    watched.start()
    expected = ["a", "b", "a", ("b", True), "a", "c", ("c", True), "last"]
    for step in expected:
        name, gone = step if isinstance(step, tuple) else (step, False)
        assert told.get(timeout=10) == (name, gone)
    watched.stop()
    assert {pod["metadata"]["name"] for pod in watched.all()} == {"a", "last"}
    watches = [asked for asked in recorded.asked if "watch=true" in asked]
    versions = [asked.partition("resourceVersion=")[2].partition("&")[0] for asked in watches]
    assert versions[:4] == ["1", "3", "4", "9"]
    assert all("labelSelector=app%3Dx" in asked for asked in recorded.asked)
    watched.join(10)


def test_a_watch_that_is_refused_as_too_old_says_so(api: tuple[Recorded, Cluster]) -> None:
    recorded, cluster = api
    recorded.says(f"WATCH {PODS}", (410, GONE))
    with pytest.raises(WatchTooOld):
        list(cluster.watch("", "pods", "1"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(403, FoldwiseError), (404, NotFound), (409, Conflict), (429, Unavailable), (500, Unavailable)],
)
def test_errors_carry_the_api_server_s_words(
    code: int, kind: type[FoldwiseError], api: tuple[Recorded, Cluster]
) -> None:
    recorded, cluster = api
    recorded.says(f"GET {PODS}/x", (code, {"kind": "Status", "message": 'pods "x" is so and so'}))
    with pytest.raises(kind, match='the Kubernetes API server says: pods "x" is so and so'):
        cluster.get("", "pods", "x")


def test_what_is_no_json_is_an_error_too(api: tuple[Recorded, Cluster]) -> None:
    recorded, cluster = api
    recorded.says(f"GET {PODS}/x", (502, "<html>"))
    with pytest.raises(FoldwiseError, match="status 502"):
        cluster.get("", "pods", "x")


def test_nobody_there_is_said_as_such() -> None:
    with closing(Cluster("http://127.0.0.1:1", "search")) as cluster:
        with pytest.raises(Unavailable, match="does not answer"):
            cluster.list("", "pods")
        with pytest.raises(Unavailable, match="does not answer"):
            list(cluster.watch("", "pods", "1"))


def test_deleting_what_is_gone_is_fine_and_other_verbs_are_refused_here(api: tuple[Recorded, Cluster]) -> None:
    recorded, cluster = api
    recorded.says("DELETE /apis/batch/v1/namespaces/search/jobs/x", (404, {"message": "not found"}))
    cluster.delete("batch", "jobs", "x")
    assert recorded.asked[-1].endswith("?propagationPolicy=Background")
    with pytest.raises(AssertionError, match="not among the verbs"):
        cluster.delete("", "pods", "x")


def test_logs_name_their_pods_and_end_with_whoever_reads_them(api: tuple[Recorded, Cluster]) -> None:
    recorded, cluster = api
    recorded.says(f"GET {PODS}/one/log", (200, "first\nsecond\n"))
    recorded.says(f"GET {PODS}/two/log", (400, {"message": "container is waiting to start"}))
    found = list(lines_of(cluster, lambda: ["one", "two"], follow=False, tail=5))
    assert found[:2] == ["one first\n", "one second\n"]
    assert found[2].startswith("two (no log: the Kubernetes API server says: container is waiting")
    assert "tailLines=5" in recorded.asked[0]
    following = lines_of(cluster, lambda: ["one"], follow=True)
    assert [next(following), next(following)] == ["one first\n", "one second\n"]
    assert next(following) == ""
    following.close()
    assert "follow=true" in recorded.asked[-1]


def test_without_a_cluster_studies_have_no_pods_and_all_else_works(harness: Harness) -> None:
    harness.create()
    admin = bearer(harness.settings.admin_token)
    with served(create_app(harness.settings)) as client:
        answer = client.get("/api/v1/studies/s/workers", headers=admin)
        assert answer.json() == {"job": None, "wanted": None, "suspended": False, "stalled": None, "pods": []}
        assert client.get("/api/v1/studies/none/workers", headers=admin).status_code == 404
        resized = client.post("/api/v1/studies/s/workers", headers=admin, json={"workers": 3})
        assert resized.json()["spec"]["workers"] == 3
        refused = client.post("/api/v1/studies/s/workers", headers=admin, json={"workers": -1})
        assert refused.status_code == 422
        logs = client.get("/api/v1/studies/s/logs", headers=admin)
        assert logs.status_code == 409
        assert "starts no workers" in logs.json()["detail"]
        assert client.get("/api/v1/studies/s", headers=admin).json()["stalled"] is None
        harness.must_claim()
        (worker,) = client.get("/api/v1/workers", headers=admin).json()
        assert worker["pod"] is None
        assert client.post("/api/v1/studies/s/stop", headers=admin).status_code == 200
        assert client.post("/api/v1/studies/s/workers", headers=admin, json={"workers": 1}).status_code == 409


@pytest.mark.parametrize(("name", "stranger"), [("pod-1", "pod-1-abcde"), ("pod-1-0", "pod-10")])
@pytest.mark.parametrize(("disrupted", "outcome"), [(True, "released"), (False, "lapsed")])
def test_what_a_pod_held_is_free_when_it_is_gone(
    harness: Harness, name: str, stranger: str, disrupted: bool, outcome: str
) -> None:
    harness.create()
    held = harness.must_claim(name)
    other = harness.must_claim(stranger)
    for count in (1, 0 if disrupted else 1):
        with harness.sessions.begin() as session:
            assert workers.end_worker(session, "pod-1", "uid", disrupted=disrupted) == count
    harness.leader.round()
    found = harness.must_claim("pod-3")
    assert (found.trial, found.fold, found.lease.term) == (held.trial, held.fold, held.lease.term + 1)
    with harness.engine.connect() as connection:
        rows = connection.execute(text("SELECT id, outcome FROM foldwise.leases")).all()
    assert dict(rows) == {held.lease.id: outcome, other.lease.id: None, found.lease.id: None}
