"""A leader whose machine vanishes from the network, without closing a connection, is followed by another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from cli.local.embedded_postgres import embedded_postgres
from cli.local.postgres_account import account_for
from tests.acceptance.up import wait_for

NAMESPACE = "foldwise-lost"
OUTSIDE, INSIDE = "10.79.0.1", "10.79.0.2"
PORT = 5544


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[None]:
    """A second machine, as far as the network can tell: a namespace behind one link."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root with iproute2 can make a network namespace")
    try:
        ip("netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", "foldwise0", "type", "veth", "peer", "name", "foldwise1", "netns", NAMESPACE)
        ip("addr", "add", f"{OUTSIDE}/30", "dev", "foldwise0")
        ip("link", "set", "foldwise0", "up")
        ip("-n", NAMESPACE, "addr", "add", f"{INSIDE}/30", "dev", "foldwise1")
        ip("-n", NAMESPACE, "link", "set", "foldwise1", "up")
        yield
    finally:
        ip("netns", "del", NAMESPACE)


@contextmanager
def postgres_on_tcp(folder: Path) -> Iterator[str]:
    """PostgreSQL that the other machine can reach."""
    with embedded_postgres(folder / "postgres") as made:
        data = made.data
    account = account_for(folder / "postgres")
    allowed = folder / "pg_hba.conf"
    allowed.write_text(f"host all all {OUTSIDE}/30 trust\n")
    settings = {
        "listen_addresses": OUTSIDE,
        "port": str(PORT),
        "hba_file": str(allowed),
        "unix_socket_directories": "",
    }
    command = [str(account.programs / "postgres"), "-D", str(data)]
    command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **account.process_options())
    try:
        yield f"postgresql://postgres@{OUTSIDE}:{PORT}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()


@contextmanager
def coordinator(url: str, folder: Path, address: str, *prefix: str) -> Iterator[str]:
    tokens = {"FOLDWISE_ADMIN_TOKEN": "a" * 20, "FOLDWISE_WORKER_TOKEN": "w" * 20}
    command = [*prefix, sys.executable, "-m", "cli.main", "coordinator", "--host", address, "--port", "8801"]
    process = subprocess.Popen(
        [*command, "--cache-root", str(folder)],
        env={**os.environ, "FOLDWISE_DATABASE_URL": url, **tokens},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}:8801/readyz"
    finally:
        process.kill()
        process.wait()


def leads(address: str) -> bool | None:
    """Whether the coordinator at this address leads; None while it does not answer."""
    try:
        answer = httpx.get(address, timeout=5, trust_env=False)
    except httpx.TransportError:
        return None
    return answer.json().get("leader") if answer.is_success else None


@pytest.mark.long
@pytest.mark.usefixtures("network")
def test_another_coordinator_leads_once_the_leaders_machine_has_vanished(tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(postgres_on_tcp(tmp_path))
        inside = ("ip", "netns", "exec", NAMESPACE)
        lost = stack.enter_context(coordinator(url, tmp_path, INSIDE, *inside))
        wait_for(lambda: leads(lost))
        other = stack.enter_context(coordinator(url, tmp_path, "127.0.0.1"))
        wait_for(lambda: leads(other) is False)
        ip("-n", NAMESPACE, "link", "set", "foldwise1", "down")
        wait_for(lambda: leads(other))
