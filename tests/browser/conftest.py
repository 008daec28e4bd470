"""A coordinator process that can be killed and started again, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from cli.local.ports import bind
from client.connection import Connection
from services.clip_cache import cache_folder, open_cache
from services.contracts import TokenScope
from tests.acceptance.up import wait_for
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, make_token
from tests.harness.simulated_results import learning_result
from tests.harness.simulated_worker import SimulatedWorker
from tests.harness.tiny_cache import FINGERPRINT

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000.0


@dataclass
class Coordinator:
    """`foldwise coordinator` on a port that it has again after a restart."""

    database_url: str
    cache_root: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["coordinator", "--port", str(self.port), "--cache-root", str(self.cache_root)]
        given = {
            "FOLDWISE_DATABASE_URL": self.database_url,
            "FOLDWISE_ADMIN_TOKEN": ADMIN_TOKEN,
            "FOLDWISE_WORKER_TOKEN": WORKER_TOKEN,
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *command],
                env={**os.environ, **given},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._ready)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def post(self, path: str, **given: Any) -> Any:
        answer = httpx.post(f"{self.url}/api/v1{path}", headers=bearer(ADMIN_TOKEN), timeout=60, **given)
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v1{path}", headers=bearer(ADMIN_TOKEN), timeout=60).json()

    def token(self, scope: TokenScope) -> str:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            return make_token(client, scope, f"{scope.value} in a browser").token

    def worker(self, name: str, study: str = "s") -> SimulatedWorker:
        cache = open_cache(cache_folder(self.cache_root, "tiny", FINGERPRINT))
        labels = {clip.clip_id: clip.label for clip in cache.clips()}
        connection = Connection(self.url, WORKER_TOKEN, give_up_after=60)
        return SimulatedWorker(connection, name, study, lambda task: learning_result(task, labels))

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz").is_success
        return False


@pytest.fixture
def coordinator(database_url: str, cache_root: Path, tmp_path: Path) -> Iterator[Coordinator]:
    """With the study `s`: 6 trials of 5 folds, two parameters, both kinds of pruning."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    running = Coordinator(database_url, cache_root, port, tmp_path / "coordinator.log")
    spec = {
        "name": "s",
        "cache": "tiny",
        "trials": 6,
        "space": {"clahe": [True, False], "dropout": {"low": 0.0, "high": 0.5}},
        "pruning": [{"rule": "bound", "threshold": 0.2}, {"rule": "median", "startup_trials": 3}],
        "training": {"frames": 2, "frame_size": 16},
    }
    try:
        running.start()
        running.post("/studies", json=spec)
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install Debian's package")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@dataclass
class Visit:
    """A page, and everything that went wrong on it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def sign_in(self, token: str) -> None:
        self.page.goto(self.url)
        self.page.fill("#token", token)
        self.page.click("button.primary")
        self.page.wait_for_url(f"{self.url}/")

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}{path}")


def visit(browser: Browser, url: str, **look: Any) -> Visit:
    """A fresh browser profile of some look."""
    context: BrowserContext = browser.new_context(**look)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    made = Visit(page, url)

    def failed(request: Request) -> None:
        # Whoever leaves a page ends its stream of events.
        if request.failure != "net::ERR_ABORTED":
            made.complaints.append(f"{request.url}: {request.failure}")

    page.on("console", lambda message: made.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on("requestfailed", failed)
    return made
