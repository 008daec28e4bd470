"""The way to the Kubernetes API server: its address as pods know it, whom to trust, and a pod's own token."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from pathlib import Path

import httpx

from services.errors import InvalidInput

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own token, its namespace and the API server's CA certificate."""


def address_in_cluster(option: str) -> str:
    """The URL of the API server of the cluster that this process runs in; `option` is what needs it.

    Raises:
        InvalidInput: it runs in none.
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
    """A client of the API server at `url`.

    Args:
        url: such as `https://10.0.0.1:443`.
        option: what it is for, named where a file is missing.
        timeout: seconds to wait for an answer.
        ca_file: the certificates that the API server is checked by; None for the system's.
        token_file: read again for each call, since it is replaced every hour; or
        certificate: a client's certificate and key.

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
