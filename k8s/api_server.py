"""Connects to the Kubernetes API server: its address in the cluster, its certificate and the pod's token."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from pathlib import Path

import httpx

from services.errors import InvalidInput

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder of a pod's token, its namespace and the API server's CA certificate."""


def address_in_cluster(option: str) -> str:
    """URL of the API server of the cluster that this process runs in; an error names `option`, which needs it.

    Raises:
        InvalidInput: this process does not run in a cluster.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise InvalidInput(f"{option} works only inside Kubernetes: KUBERNETES_SERVICE_HOST is not set")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def open_client(
    url: str,
    *,
    option: str,
    timeout: float,
    ca_file: Path | None = None,
    token_file: Path | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> httpx.Client:
    """Open a client of the API server at `url`.

    Args:
        url: such as `https://10.0.0.1:443`.
        option: the command line option that needs it, for errors.
        timeout: seconds to wait for an answer.
        ca_file: certificates that verify the API server; None: the system's.
        token_file: the token to send; read again for each request, because it is replaced every hour.
        certificate: a client's certificate and key, instead of a token.

    Raises:
        InvalidInput: a file cannot be read.
    """
    auth = None if token_file is None else _TokenFile(token_file)
    try:
        trusted = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if certificate is not None:
            trusted.load_cert_chain(*certificate)
        if auth is not None:
            auth.read()
    except OSError as error:
        raise InvalidInput(
            f"cannot read {error.filename or ca_file}: {error.strerror}; "
            f"{option} needs a pod with automountServiceAccountToken"
        ) from error
    return httpx.Client(base_url=url, verify=trusted, auth=auth, trust_env=False, timeout=timeout)


class _TokenFile(httpx.Auth):
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        return self._path.read_text(encoding="ascii").strip()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.read()}"
        yield request
