"""A second machine, as far as the network can tell: a network namespace behind one link, which can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from cli.local.embedded_postgres import embedded_postgres
from cli.local.postgres_account import account_for

NAMESPACE = "foldwise-lost"
OUTSIDE, INSIDE = "10.79.0.1", "10.79.0.2"
POSTGRES_PORT, PORT = 5544, 8801
ADMIN, WORKER = "a" * 20, "w" * 20


@contextmanager
def namespace() -> Iterator[None]:
    """The machine exists while the context lasts.

    Raises:
        PermissionError: this user or this system makes no network namespaces.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise PermissionError("only root with iproute2 can make a network namespace")
    try:
        _ip("netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as error:
        raise PermissionError(
            f"no network namespace can be made here: {error.stderr.decode().strip()}"
        ) from error
    try:
        _ip("link", "add", "foldwise0", "type", "veth", "peer", "name", "foldwise1", "netns", NAMESPACE)
        _ip("addr", "add", f"{OUTSIDE}/30", "dev", "foldwise0")
        _ip("link", "set", "foldwise0", "up")
        _ip("-n", NAMESPACE, "addr", "add", f"{INSIDE}/30", "dev", "foldwise1")
        connect()
        yield
    finally:
        # The link goes with the namespace, but later.
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", "foldwise0")
        _ip("netns", "del", NAMESPACE)


def cut() -> None:
    """Nothing gets in or out, and nobody is told."""
    _ip("-n", NAMESPACE, "link", "set", "foldwise1", "down")


def connect() -> None:
    """The machine is back in the network."""
    _ip("-n", NAMESPACE, "link", "set", "foldwise1", "up")


def inside(command: list[str]) -> list[str]:
    """The command, run on the other machine."""
    return ["ip", "netns", "exec", NAMESPACE, *command]


@contextmanager
def postgres_on_tcp(folder: Path) -> Iterator[str]:
    """URL of a PostgreSQL that both machines can reach."""
    with embedded_postgres(folder / "postgres") as made:
        data = made.data
    account = account_for(folder / "postgres")
    allowed = folder / "pg_hba.conf"
    allowed.write_text(f"host all all {OUTSIDE}/30 trust\n")
    settings = {
        "listen_addresses": OUTSIDE,
        "port": str(POSTGRES_PORT),
        "hba_file": str(allowed),
        "unix_socket_directories": "",
    }
    command = [str(account.programs / "postgres"), "-D", str(data)]
    command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **account.process_options())
    try:
        yield f"postgresql://postgres@{OUTSIDE}:{POSTGRES_PORT}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()


@contextmanager
def coordinator(url: str, cache_root: Path, *, lost: bool) -> Iterator[str]:
    """Address of a coordinator on this machine, or on the one that can be lost."""
    address = INSIDE if lost else "127.0.0.1"
    command = [sys.executable, "-m", "cli.main", "coordinator", "--host", address, "--port", str(PORT)]
    command += ["--cache-root", str(cache_root)]
    tokens: Mapping[str, str] = {"FOLDWISE_ADMIN_TOKEN": ADMIN, "FOLDWISE_WORKER_TOKEN": WORKER}
    process = subprocess.Popen(
        inside(command) if lost else command,
        env={**os.environ, "FOLDWISE_DATABASE_URL": url, **tokens},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}:{PORT}"
    finally:
        process.kill()
        process.wait()


def leads(address: str) -> bool | None:
    """Whether the coordinator at this address leads; None while it does not answer."""
    try:
        answer = httpx.get(f"{address}/readyz", timeout=5, trust_env=False)
    except httpx.TransportError:
        return None
    return answer.json().get("leader") if answer.is_success else None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
