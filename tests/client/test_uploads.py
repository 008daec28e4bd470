"""A long file may take the coordinator long; a short one may not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from client import connection
from client.connection import Connection
from services.errors import Unavailable


class SlowCoordinator(BaseHTTPRequestHandler):
    """Reads a body in chunks, works for a second, and answers."""

    def do_POST(self) -> None:
        while int(self.rfile.readline(), 16):
            while (line := self.rfile.readline()) and not line.endswith(b"\r\n"):
                pass
        time.sleep(1.0)
        with suppress(BrokenPipeError):
            self.send_response(201)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowCoordinator) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_time_for_an_answer_grows_with_the_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STREAM_TIMEOUT", httpx.Timeout(0.3))
    monkeypatch.setattr(connection, "ANSWER_SECONDS_PER_MIB", 10.0)
    (tmp_path / "long").write_bytes(b"x" * 2**20)
    (tmp_path / "short").write_bytes(b"x")
    with Connection(url, "token", give_up_after=0) as client:
        with (tmp_path / "long").open("rb") as file:
            assert client.upload("/studies/import", file) == {}
        with (tmp_path / "short").open("rb") as file, pytest.raises(Unavailable, match="timed out"):
            client.upload("/studies/import", file)
