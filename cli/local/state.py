"""The state folder of one machine: database, caches, tokens, logs, and who runs on it now."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import platformdirs

from client.local_service import SERVICE_FILE, Service, running_service
from services.errors import Conflict, InvalidInput


class StateFolder:
    """Names of everything below a state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()

    @property
    def database(self) -> Path:
        """PostgreSQL's data."""
        return self.folder / "postgres"

    @property
    def caches(self) -> Path:
        """Clip caches."""
        return self.folder / "caches"

    @property
    def models(self) -> Path:
        """The model catalogue."""
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.folder / "logs"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only service on this folder.

        Raises:
            Conflict: another one runs on it.
            InvalidInput: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise InvalidInput(f"--state {self.folder}: {error.strerror}; choose another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Conflict(
                    f"foldwise runs already on {self.folder}; use it, end it, or choose another --state"
                ) from error
            try:
                yield
            finally:
                self._service_file.unlink(missing_ok=True)

    def tokens(self) -> tuple[str, str]:
        """The admin and worker token of this folder, made at the first call; readable by the owner alone."""
        path = self.folder / "tokens.json"
        if not path.exists():
            _write_private(
                path, json.dumps({"admin": secrets.token_urlsafe(24), "worker": secrets.token_urlsafe(24)})
            )
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["admin"], stored["worker"]

    def announce(self, service: Service) -> None:
        """Let other commands on this machine find the service."""
        _write_private(self._service_file, json.dumps(asdict(service)))

    def service(self) -> Service | None:
        """The service that runs on this folder now, if one does."""
        return running_service(self.folder)

    @property
    def _service_file(self) -> Path:
        return self.folder / SERVICE_FILE


def measurements_file() -> Path:
    """What workers of this machine have measured of its devices."""
    return Path(platformdirs.user_cache_dir("foldwise")) / "measurements.json"


def _write_private(path: Path, content: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    temporary.rename(path)
