"""Workers that show a service account's token: reviewed by an API server over HTTPS, their pod noted."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from k8s import token_review
from k8s.token_review import ServiceAccount, TokenReviewer
from services.contracts import TokenScope
from services.errors import InvalidInput, Unavailable
from tests.harness.served_app import ADMIN_TOKEN, bearer, served

AUDIENCE = "foldwise-coordinator"
POD = "8d2c5a5e-3f0c-4f0e-9a53-0f6f1c0d9f11"
OWN = "token-of-the-coordinators-service-account"
GOOD, UNBOUND, NO_AUDIENCE, OTHER_AUDIENCE, OTHER_ACCOUNT, PERSON, EXPIRED = (
    f"eyJhbGciOiJSUzI1NiJ9.{name}.c2lnbmF0dXJl"
    for name in ("good", "unbound", "no-audience", "other-audience", "other-account", "person", "expired")
)


def user(name: str = "system:serviceaccount:search:foldwise-worker", pod: str | None = POD) -> dict[str, Any]:
    """As Kubernetes describes who a token is."""
    extra = {"authentication.kubernetes.io/pod-name": ["w-0"], "authentication.kubernetes.io/pod-uid": [pod]}
    groups = ["system:serviceaccounts", "system:authenticated"]
    return {"username": name, "uid": "u", "groups": groups} | ({"extra": extra} if pod else {})


ANSWERS: dict[str, dict[str, Any]] = {
    GOOD: {"authenticated": True, "user": user(), "audiences": [AUDIENCE]},
    UNBOUND: {"authenticated": True, "user": user(pod=None), "audiences": [AUDIENCE]},
    # A server that knows nothing of audiences leaves them out.
    NO_AUDIENCE: {"authenticated": True, "user": user()},
    OTHER_AUDIENCE: {"authenticated": True, "user": user(), "audiences": ["https://kubernetes.default.svc"]},
    OTHER_ACCOUNT: {
        "authenticated": True,
        "user": user("system:serviceaccount:search:default"),
        "audiences": [AUDIENCE],
    },
    PERSON: {"authenticated": True, "user": user("search/foldwise-worker"), "audiences": [AUDIENCE]},
    EXPIRED: {"error": "token has expired"},
}


@dataclass
class ApiServer:
    """The part of Kubernetes' API server that reviews tokens."""

    url: str = ""
    status: int = 201
    reviewed: list[str] = field(default_factory=list)
    refused: int = 0
    folder: Path = Path()

    def reviewer(self, **given: Any) -> TokenReviewer:
        wanted: dict[str, Any] = {
            "audience": AUDIENCE,
            "accounts": ["search/foldwise-worker"],
            "token_file": self.folder / "token",
            "ca_file": self.folder / "ca.crt",
            **given,
        }
        return TokenReviewer(self.url, **wanted)

    def answer(self, path: str, authorization: str | None, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
        assert (asked["apiVersion"], asked["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
        assert asked["spec"]["audiences"] == [AUDIENCE]
        if authorization != f"Bearer {(self.folder / 'token').read_text()}" or self.status >= 400:
            self.refused += 1
            return max(self.status, 401), {"kind": "Status", "status": "Failure"}
        self.reviewed.append(asked["spec"]["token"])
        status = ANSWERS.get(asked["spec"]["token"], {"error": "invalid bearer token"})
        return self.status, asked | {"metadata": {"creationTimestamp": None}, "status": status}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("serviceaccount"))


def make_certificate(folder: Path) -> Path:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=digitalSignature,keyCertSign"),
            *("-keyout", str(folder / "tls.key"), "-out", str(folder / "ca.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def api_server(certificate: Path) -> Iterator[ApiServer]:
    (certificate / "token").write_text(OWN)
    server = ApiServer(folder=certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = server.answer(self.path, self.headers["Authorization"], asked)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that does not trust the certificate hangs up."""

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "ca.crt", certificate / "tls.key")
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        server.url = f"https://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


@pytest.fixture
def reviewer(api_server: ApiServer) -> Iterator[TokenReviewer]:
    reviewer = api_server.reviewer()
    yield reviewer
    reviewer.close()


def test_only_tokens_of_the_account_and_the_audience_are_good(reviewer: TokenReviewer) -> None:
    assert reviewer.review(GOOD) == ServiceAccount(name="search/foldwise-worker", pod_uid=POD)
    assert reviewer.review(UNBOUND) == ServiceAccount(name="search/foldwise-worker", pod_uid=None)
    for token in (NO_AUDIENCE, OTHER_AUDIENCE, OTHER_ACCOUNT, PERSON, EXPIRED, "a.b.c"):
        assert reviewer.review(token) is None, token


def test_the_reviewers_own_token_is_read_again_when_it_was_replaced(
    api_server: ApiServer, reviewer: TokenReviewer
) -> None:
    assert reviewer.review(GOOD) is not None
    (api_server.folder / "token").write_text("the next hour's token")
    assert reviewer.review(GOOD) is not None
    assert api_server.refused == 0


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_api_server_that_reviews_nothing_is_not_a_refused_token(
    api_server: ApiServer, reviewer: TokenReviewer, status: int
) -> None:
    api_server.status = status
    with pytest.raises(Unavailable, match="did not review the token"):
        reviewer.review(GOOD)


def test_a_server_of_another_certificate_is_told_no_token(api_server: ApiServer, tmp_path: Path) -> None:
    other = make_certificate(tmp_path)
    reviewer = api_server.reviewer(ca_file=other / "ca.crt")
    with pytest.raises(Unavailable, match="does not answer"):
        reviewer.review(GOOD)
    reviewer.close()
    assert (api_server.reviewed, api_server.refused) == ([], 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accounts": []}, "token-review-account is missing"),
        ({"accounts": ["foldwise-worker"]}, "no NAMESPACE/NAME"),
        ({"accounts": ["search/"]}, "no NAMESPACE/NAME"),
        ({"token_file": Path("/no/such/token")}, "cannot read /no/such/token"),
        ({"ca_file": Path("/no/such/ca.crt")}, "cannot read /no/such/ca.crt"),
    ],
)
def test_settings_that_cannot_work_are_said_at_the_start(
    api_server: ApiServer, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        api_server.reviewer(**given)


def test_the_cluster_is_found_where_kubernetes_says_it_is(
    api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidInput, match="only inside Kubernetes"):
        TokenReviewer.in_cluster(AUDIENCE, ["search/foldwise-worker"])
    host, _, port = api_server.url.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(token_review, "SERVICE_ACCOUNT", api_server.folder)
    reviewer = TokenReviewer.in_cluster(AUDIENCE, ["search/foldwise-worker"])
    assert reviewer.review(GOOD) is not None
    reviewer.close()


# --- Behind the coordinator -------------------------------------------------------------------------------


@contextmanager
def coordinator(settings: CoordinatorSettings, reviewer: TokenReviewer | None) -> Iterator[httpx.Client]:
    with served(create_app(replace(settings, worker_token=None), reviewer=reviewer)) as client:
        yield client


def claim(client: httpx.Client, token: str) -> int:
    asked = {
        "worker": {"id": "worker-one", "name": "one", "device": "cpu"},
        "caches": ["f" * 64],
        "wait_seconds": 0,
    }
    headers = {**bearer(token), "Idempotency-Key": str(uuid.uuid4())}
    return client.post("/api/v1/claims", headers=headers, json=asked).status_code


def test_a_pod_claims_and_its_uid_is_noted(
    settings: CoordinatorSettings, api_server: ApiServer, reviewer: TokenReviewer
) -> None:
    with coordinator(settings, reviewer) as client:
        assert [claim(client, GOOD) for _ in range(5)] == [204] * 5
        # Remembered for a minute: the API server serves the whole cluster.
        assert api_server.reviewed == [GOOD]
        workers = client.get("/api/v1/workers", headers=bearer(ADMIN_TOKEN)).json()
        assert [(worker["name"], worker["pod_uid"]) for worker in workers] == [("one", POD)]
        assert claim(client, OTHER_ACCOUNT) == 401
        for scope_needed in ("/api/v1/studies", "/api/v1/tokens", "/metrics"):
            assert client.get(scope_needed, headers=bearer(GOOD)).status_code == 403
        before = len(api_server.reviewed)
        ours = "fw_0123456789ab_" + "x" * 43
        assert [claim(client, token) for token in (ours, "guess", "a.b")] == [401] * 3
        assert len(api_server.reviewed) == before, "no token but Kubernetes' own is sent to its API server"
        api_server.status = 500
        assert claim(client, UNBOUND) == 503
        assert claim(client, GOOD) == 204


def test_without_the_option_a_pods_token_is_refused(settings: CoordinatorSettings) -> None:
    with coordinator(settings, None) as client:
        assert claim(client, GOOD) == 401
        made = {"name": "worker", "scope": TokenScope.WORKER.value}
        token = client.post("/api/v1/tokens", headers=bearer(ADMIN_TOKEN), json=made).json()["token"]
        assert claim(client, token) == 204
