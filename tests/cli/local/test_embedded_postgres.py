"""The embedded PostgreSQL starts for every user, path, locale and leftover, and only for its user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text

from cli.local import postgres_account
from cli.local.embedded_postgres import PostgresServer, embedded_postgres
from cli.local.postgres_account import account_for
from services.errors import Conflict, FoldwiseError
from tests.acceptance.up import wait_for

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")

RUN = """
import sys, time
from pathlib import Path
from cli.local.embedded_postgres import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def ask(server: PostgresServer, statement: str) -> object:
    with psycopg.connect(make_url(server.url).set(drivername="postgresql").render_as_string()) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def has_ended(pid: int) -> bool:
    # A process whose parent has not asked for its exit code yet is a zombie.
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def start_once(folder: Path) -> PostgresServer:
    with embedded_postgres(folder) as server:
        assert ask(server, "SELECT 1") == 1
    return server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a table, stopped in order."""
    folder = tmp_path_factory.mktemp("made") / "postgres"
    with embedded_postgres(folder) as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE kept AS SELECT 42 AS answer"))
        engine.dispose()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "postgres"
    shutil.copytree(made, copy)
    for path in (copy, *copy.rglob("*")):
        shutil.chown(path, made.stat().st_uid, made.stat().st_gid)
    copy.chmod(0o700)
    return copy


@pytest.mark.parametrize(
    "name",
    ["my state", "a'b\"c&d;e$HOME`f`%20+,(g)#?", "gesichter-ü-顔", "d" * 200, "-D"],
    ids=lambda name: name[:9],
)
def test_any_path(tmp_path: Path, name: str) -> None:
    with embedded_postgres(tmp_path / name / "postgres") as server:
        assert ask(server, "SHOW data_directory") == str(tmp_path / name / "postgres")
        assert server.data.is_relative_to(tmp_path)


def test_the_users_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "LC_CTYPE": "UTF-8",
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGOPTIONS": "-c nonsense=1",
        "LD_LIBRARY_PATH": "/nowhere",
        "TZ": "Nowhere/Nothing",
    }.items():
        monkeypatch.setenv(variable, value)
    with embedded_postgres(tmp_path / "postgres") as server:
        for variable in ("PGOPTIONS", "PGPORT"):
            monkeypatch.delenv(variable)
        assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C"
        assert ask(server, "SHOW server_encoding") == "UTF8"


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_any_umask_gives_private_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with embedded_postgres(tmp_path / "postgres") as server:
            sockets = Path(str(make_url(server.url).query["host"]))
            assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
        assert not sockets.exists()
    finally:
        os.umask(before)


def test_a_long_temporary_folder_does_not_lengthen_the_socket(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert start_once(folder).data == folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with PostgreSQL."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


LEFT = {
    "pid of another process": "{pid}\n{data}\n{now}\n5432\n/nowhere\n\n  1 2\nready   \n",
    "pid and start time of another process": "{pid}\n{data}\n{started}\n5432\n/nowhere\n\n  1 2\nready   \n",
    "pid of no process": "4194000\n{data}\n{now}\n5432\n/nowhere\n\n  1 2\nready   \n",
    "four lines": "{pid}\n{data}\n{now}\n5432\n",
    "empty": "",
    "nonsense": "nonsense\n" * 8,
}


@pytest.mark.parametrize("left", LEFT)
def test_any_lock_file_left_behind(folder: Path, bystander: subprocess.Popen[bytes], left: str) -> None:
    lock = folder / "postmaster.pid"
    started = int(psutil.Process(bystander.pid).create_time())
    lock.write_text(
        LEFT[left].format(pid=bystander.pid, data=folder, now=int(time.time()) - 86400, started=started)
    )
    shutil.chown(lock, folder.stat().st_uid, folder.stat().st_gid)
    with embedded_postgres(folder) as server:
        assert ask(server, "SELECT answer FROM kept") == 42
    assert bystander.poll() is None, "no signal goes to a process that is not PostgreSQL"


@pytest.mark.parametrize("victim", ["parent", "server"])
def test_killed_and_started_again(folder: Path, victim: str) -> None:
    with run(folder) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid if victim == "server" else process.pid, signal.SIGKILL)
        if victim == "server":
            process.kill()
        process.wait()
    with embedded_postgres(folder) as server:
        assert ask(server, "SELECT answer FROM kept") == 42
        assert has_ended(pid), "one server at a time"


def test_a_server_that_was_left_running_is_stopped_first(folder: Path) -> None:
    # As after a SIGKILL of its parent where the kernel cannot tell it.
    with embedded_postgres(folder) as left:
        pid = left.pid
        (folder.with_name("postgres.lock")).unlink()
        with embedded_postgres(folder) as server:
            assert ask(server, "SELECT answer FROM kept") == 42
            assert server.pid != pid
            assert has_ended(pid)


@pytest.mark.parametrize("delay", [0.0, 0.3, 0.7])
def test_interrupted_in_its_first_start(tmp_path: Path, delay: float) -> None:
    interrupt(tmp_path / "postgres", delay)
    start_once(tmp_path / "postgres")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["postgres", "postgres.lock", "postgres.log"]


@pytest.mark.long
@pytest.mark.parametrize("turn", range(20))
def test_interrupted_at_any_moment_of_its_first_start(tmp_path: Path, turn: int) -> None:
    interrupt(tmp_path / "postgres", turn * 0.1)
    start_once(tmp_path / "postgres")


def interrupt(folder: Path, delay: float) -> None:
    """Kill a first start `delay` seconds after `initdb` has begun."""
    with run(folder) as process:
        wait_for(lambda: list(folder.parent.glob("postgres.initdb-*")))
        time.sleep(delay)
        process.kill()


def run(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], stdout=subprocess.PIPE, text=True)


def test_one_folder_has_one_server(folder: Path) -> None:
    with (
        embedded_postgres(folder),
        pytest.raises(Conflict, match="another process runs PostgreSQL on"),
        embedded_postgres(folder),
    ):
        pass


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "letter.txt").write_text("keep me")
    with (
        pytest.raises(FoldwiseError, match="is not a data folder of PostgreSQL"),
        embedded_postgres(tmp_path / "postgres"),
    ):
        pass
    assert (tmp_path / "postgres" / "letter.txt").read_text() == "keep me"


def test_data_of_another_version_are_refused(folder: Path) -> None:
    (folder / "PG_VERSION").write_text("99\n")
    with pytest.raises(FoldwiseError, match="data of PostgreSQL '99'"), embedded_postgres(folder):
        pass


def test_why_it_does_not_start_is_said(folder: Path) -> None:
    with (folder / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = nonsense\n")
    with pytest.raises(FoldwiseError, match=r'invalid value for parameter "shared_buffers".*postgres\.log'):
        start_once(folder)


@ROOT_ONLY
def test_another_user_cannot_connect(folder: Path) -> None:
    # Data folders of earlier versions trust every user.
    (folder / "pg_hba.conf").write_text("local all all trust\n")
    with embedded_postgres(folder) as server:
        sockets = str(make_url(server.url).query["host"])

        def connect_as_nobody() -> str:
            program = str(account_for(folder).programs / "psql")
            done = subprocess.run(
                [program, "--host", sockets, "--username", "postgres", "--command", "SELECT 1"],
                user="nobody",
                group="nogroup",
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode != 0
            return done.stderr

        assert "Permission denied" in connect_as_nobody()
        subprocess.run(["chmod", "--recursive", "a+rwx", sockets], check=True)
        assert "Peer authentication failed" in connect_as_nobody()


@ROOT_ONLY
def test_root_changes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_account, "ROOTS_FOLDER", tmp_path / "var")
    private = tmp_path / "private"
    (private / "state").mkdir(parents=True)
    private.chmod(0o700)
    before = os.umask(0o077)
    try:
        with embedded_postgres(private / "state" / "postgres") as server:
            assert server.data.parent == tmp_path / "var"
            assert pwd.getpwuid(server.data.stat().st_uid).pw_name == postgres_account.SERVER_USER
            assert psutil.Process(server.pid).uids().effective == server.data.stat().st_uid
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        again = start_once(private / "state" / "postgres")
        assert again.data == server.data
        link = private / "state" / "link"
        link.symlink_to(private / "elsewhere")
        with pytest.raises(FoldwiseError, match=r"links to .*/elsewhere, where the user pgserver"):
            start_once(link)
    finally:
        os.umask(before)


@ROOT_ONLY
def test_root_needs_no_readable_installation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_account, "ROOTS_FOLDER", tmp_path / "var")
    monkeypatch.setattr(postgres_account, "_runs", lambda *_: False)
    with embedded_postgres(folder) as server:
        assert Path(psutil.Process(server.pid).exe()).is_relative_to(tmp_path / "var")
    for path in (tmp_path / "var").rglob("*"):
        assert path.stat().st_mode & 0o005, path


@ROOT_ONLY
def test_two_users_at_once(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(theirs, nobody.pw_uid, nobody.pw_gid)
    with embedded_postgres(tmp_path / "ours" / "postgres"):
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
                start_once(theirs / "postgres")
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (theirs / "postgres").stat().st_uid == nobody.pw_uid


def test_nothing_listens_on_the_network(folder: Path) -> None:
    with embedded_postgres(folder) as server:
        kinds = {connection.family for connection in psutil.Process(server.pid).net_connections("inet")}
        assert socket.AF_INET not in kinds
