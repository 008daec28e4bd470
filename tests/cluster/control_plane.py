"""A real Kubernetes control plane without nodes: etcd, API server, controller manager, scheduler.

Jobs make their pods, quotas refuse them, and the scheduler says why it cannot place them. No container runs: a
test plays the kubelet by writing a pod's status. `tests/cluster/build-kubernetes` builds the programs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import platformdirs

from k8s.cluster import Cluster

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
START_SECONDS = 60.0


def folder_of_programs() -> Path | None:
    """Where the programs lie, or None where they were never built."""
    given = os.environ.get("FOLDWISE_KUBERNETES_PROGRAMS")
    folder = Path(given) if given else Path(platformdirs.user_cache_dir("foldwise")) / "kubernetes"
    return folder if all((folder / name).exists() for name in PROGRAMS) else None


def why_not() -> str | None:
    """Why there can be none on this machine, or None."""
    if shutil.which("etcd") is None:
        return "etcd is not installed (Debian: etcd-server)"
    if folder_of_programs() is None:
        return "no Kubernetes control plane; `make control-plane` builds one with Go"
    return None


@dataclass
class ControlPlane:
    """A running one, and its administrator's client."""

    url: str
    folder: Path
    admin: httpx.Client

    def namespace(self, name: str) -> None:
        self.must("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def must(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        answer = self.admin.request(method, path, json=body, headers={"Content-Type": kind})
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer.json()

    def token(self, namespace: str, account: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.must("POST", path, {"spec": {"audiences": None}})["status"]["token"])

    def as_account(self, namespace: str, account: str) -> Cluster:
        """A client with the rights of a service account."""
        file = self.folder / f"{namespace}-{account}.token"
        file.write_text(self.token(namespace, account))
        return Cluster(self.url, namespace, token_file=file, ca_file=self.folder / "ca.crt")

    def set_status(self, namespace: str, pod: str, status: dict[str, Any]) -> None:
        """What a kubelet would say of a pod."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        self.must("PATCH", path, {"status": status}, "application/strategic-merge-patch+json")

    def kubeconfig(self) -> Path:
        return self.folder / "admin.conf"


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Run one in `folder` while the context lasts."""
    programs = folder_of_programs()
    assert programs is not None
    make_certificates(folder)
    with contextlib.ExitStack() as running:
        client, peer, port, manager, scheduler = (_free_port() for _ in range(5))
        etcd = f"http://127.0.0.1:{client}"
        _run(
            running,
            folder,
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )
        url = f"https://127.0.0.1:{port}"
        _run(
            running,
            folder,
            str(programs / "kube-apiserver"),
            f"--etcd-servers={etcd}",
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--client-ca-file={folder / 'ca.crt'}",
            f"--tls-cert-file={folder / 'server.crt'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--service-account-key-file={folder / 'server.key'}",
            f"--service-account-signing-key-file={folder / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            # Pods of Jobs come without the tokens that only a kubelet would mount.
            "--disable-admission-plugins=ServiceAccount",
        )
        write_kubeconfig(folder, "admin", url)
        common = [f"--kubeconfig={folder / 'admin.conf'}", "--leader-elect=false", "--bind-address=127.0.0.1"]
        wait_for_api_server(folder, url)
        _run(
            running,
            folder,
            str(programs / "kube-controller-manager"),
            *common,
            f"--secure-port={manager}",
            f"--service-account-private-key-file={folder / 'server.key'}",
            f"--root-ca-file={folder / 'ca.crt'}",
            "--use-service-account-credentials",
        )
        _run(running, folder, str(programs / "kube-scheduler"), *common, f"--secure-port={scheduler}")
        admin = running.enter_context(open_admin(folder, url))
        plane = ControlPlane(url=url, folder=folder, admin=admin)
        wait_until(
            lambda: admin.get("/api/v1/namespaces/default/serviceaccounts/default").is_success, START_SECONDS
        )
        yield plane


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, pause: float = 0.05) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)
    return found


def wait_for_api_server(folder: Path, url: str) -> None:
    with open_admin(folder, url) as admin:

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return admin.get("/readyz").is_success
            return False

        wait_until(ready, START_SECONDS)


def open_admin(folder: Path, url: str) -> httpx.Client:
    trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    trusted.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    return httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=30)


def _run(running: contextlib.ExitStack, folder: Path, program: str, *arguments: str) -> None:
    log = running.enter_context((folder / f"{Path(program).name}.log").open("w"))
    process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=folder)

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    running.callback(end)


def make_certificates(folder: Path, *, node: str | None = None, address: str = "127.0.0.1") -> None:
    """Of the API server at `address`, its administrator and, where it is named, a node's kubelet."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new_key = ("req", "-nodes", "-newkey", "rsa:2048", "-subj")
    usage = ("-addext", "keyUsage=digitalSignature,keyCertSign")
    openssl(*new_key, "/CN=ca", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", *usage)
    names = f"subjectAltName=IP:{address},DNS:localhost,DNS:kubernetes.default.svc,IP:10.96.0.1"
    wanted = [
        ("server", "/CN=kube-apiserver", f"{names}\nextendedKeyUsage=serverAuth"),
        ("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth"),
    ]
    if node is not None:
        of_node = f"subjectAltName=IP:{address},DNS:{node}\nextendedKeyUsage=serverAuth,clientAuth"
        wanted.append(("kubelet", f"/O=system:nodes/CN=system:node:{node}", of_node))
    for name, subject, extensions in wanted:
        (folder / f"{name}.ext").write_text(extensions)
        openssl(*new_key, subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed_by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        own = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", f"{name}.ext")
        openssl("x509", "-req", *signed_by, *own)


def write_kubeconfig(folder: Path, who: str, url: str) -> Path:
    """A kubeconfig for one of the certificates."""
    file = folder / f"{who}.conf"
    file.write_text(
        f"""apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: {url}, certificate-authority: {folder / "ca.crt"}}}}}]
users:
  - {{name: u, user: {{client-certificate: {folder / f"{who}.crt"}, client-key: {folder / f"{who}.key"}}}}}
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
    )
    return file


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
