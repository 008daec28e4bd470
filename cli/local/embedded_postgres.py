"""PostgreSQL from a Python wheel, for one machine and for tests: a child process with a private socket.

Only the wheel's programs are used. The server's locale, encoding and settings do not depend on the user's
environment, and only the user who started it can connect.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from sqlalchemy.engine import URL

from cli.local.child_processes import stop_with_parent
from cli.local.postgres_account import Account, account_for
from services.errors import Conflict, FoldwiseError

SUPERUSER = "postgres"

START_TIMEOUT_SECONDS = 600.0
"""Seconds to wait for PostgreSQL; recovery after a crash can take minutes."""

STOP_TIMEOUT_SECONDS = 60.0
"""Seconds to wait for an orderly shutdown before an immediate one."""

START_TIME_TOLERANCE_SECONDS = 10.0
"""Largest difference between the start time in `postmaster.pid` and that of its process."""

_MAX_SOCKET_FOLDER_BYTES = 80
"""The operating system limits the path of a socket to 103 bytes or more; `/.s.PGSQL.5432.lock` takes 19."""

_SOCKETS_PREFIX = "foldwise-pg-"

_LOG_PREFIX = re.compile(r"^.*? \[\d+\] |^\s+")
"""Time and process id before a message."""

_LOCK_LINES = 8
"""Lines of a complete `postmaster.pid`."""


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[PostgresServer]:
    """Run PostgreSQL on the data in `folder`, which is created if necessary, until the `with` block ends.

    Raises:
        Conflict: another process runs PostgreSQL on this folder.
        FoldwiseError: PostgreSQL does not start; the message names its log.
    """
    with _locked(folder):
        server = PostgresServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
            server.close()


class PostgresServer:
    """PostgreSQL on a data folder. It is a child of this process and stops with it, also after a SIGKILL.

    Create it with `embedded_postgres`, which locks the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder.with_name(f"{folder.name}.log")
        try:
            self._account, self.data = _initialized(folder, self.log)
            self._sockets = _socket_folder(self._account)
        except OSError as error:
            raise FoldwiseError(f"PostgreSQL does not start on {folder}: {error}") from error
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `postgres`, for its superuser; it stays the same after a restart."""
        url = URL.create(
            "postgresql+psycopg",
            username=SUPERUSER,
            database="postgres",
            query={"host": str(self._sockets)},
        )
        return url.render_as_string(hide_password=False)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Raises:
            FoldwiseError: it does not start; the message names its log.
        """
        _end_leftover(self.data)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            began = self.log.stat().st_size if self.log.exists() else 0
            try:
                self._process = self._spawn()
            except OSError as error:
                raise FoldwiseError(f"PostgreSQL does not start on {self.data}: {error}") from error
            while self._process.poll() is None:
                if time.monotonic() > deadline:
                    self.stop()
                    raise FoldwiseError(
                        f"PostgreSQL is not ready after {START_TIMEOUT_SECONDS:g} s; see {self.log}"
                    )
                if _Postmaster.read(self.data).is_ready(self._process.pid):
                    return
                time.sleep(0.02)
            said = _last_message(self.log, began)
            # The processes of a killed server need a moment to notice that it is gone.
            if "shared memory block" not in said or time.monotonic() > deadline:
                raise FoldwiseError(f"PostgreSQL does not start on {self.data}: {said}; see {self.log}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server; repeating it changes nothing."""
        if self._process is not None and self._process.poll() is None:
            _end(psutil.Process(self._process.pid))
            self._process.wait()

    def close(self) -> None:
        """Remove the folder of the socket."""
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._sockets}"',
            "unix_socket_permissions": "0700",
            "port": "5432",
            "hba_file": str(self._sockets / "pg_hba.conf"),
            "ident_file": str(self._sockets / "pg_ident.conf"),
        }
        command = [str(self._account.programs / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with _open_log(self.log) as output:
            return subprocess.Popen(  # noqa: S603 - the wheel's program
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C reaches only this process, which stops the server last.
                start_new_session=True,
                preexec_fn=lambda: stop_with_parent(signal.SIGINT),  # noqa: PLW1509 - no threads run
                **self._account.process_options(),
            )


@dataclass(frozen=True)
class _Postmaster:
    """What `postmaster.pid` says about the server that last ran on a data folder."""

    pid: int | None
    started: float | None
    sockets: str | None
    status: str
    lines: int

    @classmethod
    def read(cls, data: Path) -> _Postmaster:
        try:
            lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        padded = [line.strip() for line in lines] + [""] * _LOCK_LINES
        return cls(
            pid=int(padded[0]) if padded[0].isdecimal() else None,
            started=float(padded[2]) if padded[2].isdecimal() else None,
            sockets=padded[4] or None,
            status=padded[7],
            lines=len(lines),
        )

    def is_ready(self, pid: int) -> bool:
        return (self.pid, self.status) == (pid, "ready")

    def process(self, data: Path) -> psutil.Process | None:
        """The process of this server; None if it has ended, even if another process has its pid now."""
        if not self.pid or self.started is None:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= START_TIME_TOLERANCE_SECONDS
            # A server works in its data folder.
            return process if same and process.cwd() == str(data) else None
        except psutil.Error:
            return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.lock").open("w")
    except OSError as error:
        raise FoldwiseError(
            f"PostgreSQL cannot run on {folder}: {error.strerror}; choose another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"another process runs PostgreSQL on {folder}; stop it first") from error
        yield


def _initialized(folder: Path, log: Path) -> tuple[Account, Path]:
    """The account that the server runs as, and its data folder, created if there is none.

    A data folder appears complete or not at all: `initdb` works in a folder that is then renamed.
    """
    folder = folder.parent.resolve() / folder.name
    account = account_for(folder)
    data = account.data
    if (data / "PG_VERSION").exists():
        return account, data
    if data.exists() and any(data.iterdir()):
        raise FoldwiseError(f"{data} is not a data folder of PostgreSQL; move it away, and start again")
    for leftover in data.parent.glob(f"{glob.escape(data.name)}.initdb-*"):
        _remove(leftover)
    new = Path(tempfile.mkdtemp(prefix=f"{data.name}.initdb-", dir=data.parent))
    account.give(new)
    options = ("--locale=C", "--encoding=UTF8", "--auth=peer", f"--username={SUPERUSER}")
    with _open_log(log) as output:
        began = output.tell()
        done = subprocess.run(  # noqa: S603 - the wheel's program
            [str(account.programs / "initdb"), *options, "-D", str(new)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            preexec_fn=lambda: stop_with_parent(signal.SIGKILL),
            **account.process_options(),
        )
    if done.returncode != 0:
        _remove(new)
        raise FoldwiseError(f"PostgreSQL cannot create its data folder: {_last_message(log, began)}; see {log}")
    if data.exists():
        data.rmdir()
    new.rename(data)
    return account, data


def _remove(folder: Path) -> None:
    # A process of the interrupted `initdb` may still write into it for a moment.
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)


def _end_leftover(data: Path) -> None:
    """Stop a server that an earlier process left on `data`, and make its lock file harmless for a new one."""
    lock = data / "postmaster.pid"
    left = _Postmaster.read(data)
    process = left.process(data)
    if process is not None:
        _end(process)
        left = _Postmaster.read(data)
    if left.lines == 0:
        return
    if left.sockets is not None:
        _remove_socket_folder(Path(left.sockets), data.stat().st_uid)
    if left.lines < _LOCK_LINES or left.pid is None:
        # Written in part: the server had not started any process yet.
        lock.unlink(missing_ok=True)
        return
    # Another process may have the old server's pid now, and PostgreSQL would not start. It ignores the pid of
    # its parent. Without the file, it could not find processes of the old server that still use its memory.
    content = lock.read_text(encoding="utf-8").split("\n", 1)[1]
    with os.fdopen(os.open(lock, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n{content}")


def _end(server: psutil.Process) -> None:
    """End a server: in order, then at once, and finally by force."""
    for stop in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with contextlib.suppress(psutil.Error):
            server.send_signal(stop)
            server.wait(STOP_TIMEOUT_SECONDS)
        if not server.is_running():
            return


def _socket_folder(account: Account) -> Path:
    """A new, private folder for the socket, with a short path and the rules about who may connect."""
    folder = Path(tempfile.mkdtemp(prefix=_SOCKETS_PREFIX, dir=_short_folder()))
    # Peer authentication: the operating system says which user is at the other end of the socket.
    (folder / "pg_hba.conf").write_text("local all all peer map=foldwise\n", encoding="utf-8")
    names = "".join(f'foldwise "{name}" all\n' for name in account.clients)
    (folder / "pg_ident.conf").write_text(names, encoding="utf-8")
    for path in (folder, *folder.iterdir()):
        account.give(path)
    return folder


def _short_folder() -> Path:
    candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 - a private folder is made in it
    for candidate in candidates:
        path = os.path.realpath(candidate)
        short = len(os.fsencode(path)) + len(_SOCKETS_PREFIX) + 9 <= _MAX_SOCKET_FOLDER_BYTES
        if short and not set(path) & set('",') and os.access(path, os.W_OK | os.X_OK):
            return Path(path)
    raise FoldwiseError(
        f"no temporary folder has a path short enough for a socket; tried {', '.join(candidates)}; set TMPDIR"
    )


def _remove_socket_folder(folder: Path, owner: int) -> None:
    # The name comes from a file: remove only what this module makes.
    with contextlib.suppress(OSError):
        status = folder.lstat()
        if folder.name.startswith(_SOCKETS_PREFIX) and stat.S_ISDIR(status.st_mode) and status.st_uid == owner:
            shutil.rmtree(folder)


def _open_log(path: Path) -> IO[bytes]:
    # Opened before the server changes its user, so that it can write into a folder that it cannot read.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")


def _last_message(log: Path, began: int) -> str:
    """The last errors in what was written to the log after position `began`."""
    with log.open("rb") as file:
        file.seek(began)
        lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
    marks = ("FATAL:", "PANIC:", "ERROR:", "HINT:", "error:", "invalid", "could not")
    errors = [_LOG_PREFIX.sub("", line) for line in lines if any(mark in line for mark in marks)]
    return "; ".join(errors[-3:] or lines[-1:] or ["it has logged nothing"])
