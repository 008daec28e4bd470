"""The state folder of one machine: database, clip caches, models, tokens, logs, and the running service."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from client.local_service import SERVICE_FILE, Service, running_service
from services.errors import Conflict, InvalidInput

RESTORED = ".restored"
"""Folder with the data of a finished restore, until they are moved to their places."""


class StateFolder:
    """A state folder: the paths in it, its lock, its tokens, and the service that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()

    @property
    def database(self) -> Path:
        """Folder of PostgreSQL's data."""
        return self.folder / "postgres"

    @property
    def caches(self) -> Path:
        """Folder of the clip caches."""
        return self.folder / "caches"

    @property
    def models(self) -> Path:
        """Folder of the model catalogue."""
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        """Folder of the log files, one per process."""
        return self.folder / "logs"

    @property
    def tokens_file(self) -> Path:
        """File with the admin token and the worker token."""
        return self.folder / "tokens.json"

    def has_database(self) -> bool:
        """Whether it has a database, or `lock` will move one here that an interrupted restore has left."""
        return self.database.is_dir() or StateFolder(self.folder / RESTORED).database.is_dir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder until the `with` block ends, so that no second service uses it.

        Raises:
            Conflict: a service already uses the folder.
            InvalidInput: the folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        except OSError as error:
            raise InvalidInput(f"--state {self.folder}: {error.strerror}; choose another folder") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Conflict(
                    f"foldwise already runs on {self.folder}; use it, stop it, or choose another --state"
                ) from error
            try:
                self._finish_restore()
                yield
            finally:
                self._service_file.unlink(missing_ok=True)

    @contextmanager
    def restoring(self) -> Iterator[StateFolder]:
        """A new state folder; its data become those of this one when the `with` block ends without an error.

        This folder must be locked and have no data. If this process is killed in the final move, the next one
        that locks the folder completes it.
        """
        new = StateFolder(self.folder / ".restoring")
        new.remove_data()
        new.folder.mkdir(mode=0o755)
        try:
            yield new
            # From here on the restore is done.
            new.folder.rename(self.folder / RESTORED)
        finally:
            new.remove_data()
        self._finish_restore()

    def remove_data(self) -> None:
        """Delete the folder with everything in it, also root's database elsewhere, which only it links to."""
        if self.database.is_symlink():
            shutil.rmtree(self.database.resolve(), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _finish_restore(self) -> None:
        restored = StateFolder(self.folder / RESTORED)
        if not restored.folder.is_dir():
            return
        for part in (restored.models, restored.tokens_file, restored.database):
            if part.exists():
                target = self.folder / part.name
                if target.is_dir():
                    # Empty: a link, as root's database can be, does not replace a folder.
                    target.rmdir()
                part.rename(target)
        shutil.rmtree(restored.folder)

    def tokens(self) -> tuple[str, str]:
        """The admin token and the worker token, created at the first call; only their owner can read them."""
        path = self.tokens_file
        if not path.exists():
            _write_private(
                path, json.dumps({"admin": secrets.token_urlsafe(24), "worker": secrets.token_urlsafe(24)})
            )
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["admin"], stored["worker"]

    def announce(self, service: Service) -> None:
        """Write the file by which other commands on this machine find the service."""
        _write_private(self._service_file, json.dumps(asdict(service)))

    def service(self) -> Service | None:
        """The service that runs on this folder now, or None."""
        return running_service(self.folder)

    @property
    def _service_file(self) -> Path:
        return self.folder / SERVICE_FILE


def _write_private(path: Path, content: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    temporary.rename(path)
