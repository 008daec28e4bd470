"""PostgreSQL's own `pg_dump` and `pg_restore`, from the wheel, on an embedded server."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from sqlalchemy import make_url

from cli.local.child_processes import stop_with_parent
from cli.local.postgres_account import ENVIRONMENT, programs_for
from services.errors import FoldwiseError


def dump_database(url: str, data: Path, target: Path) -> None:
    """Write one consistent state of a database to a file, while others use the database.

    Args:
        url: of an embedded server.
        data: its data folder.
        target: file to write, in PostgreSQL's custom format.

    Raises:
        FoldwiseError: it fails.
    """
    _run("pg_dump", url, data, "--format=custom", f"--file={target}")


def load_database(url: str, data: Path, source: Path) -> None:
    """Create everything that `dump_database` has written, in one transaction.

    Args:
        url: of an embedded server whose database is empty.
        data: its data folder.
        source: the file to read.

    Raises:
        FoldwiseError: it fails.
    """
    _run("pg_restore", url, data, "--single-transaction", "--exit-on-error", "--no-owner", str(source))


def _run(program: str, url: str, data: Path, *options: str) -> None:
    server = make_url(url)
    done = subprocess.run(  # noqa: S603 - the wheel's program
        [
            str(programs_for(data) / program),
            *("--no-password", "--host", str(server.query["host"])),
            *("--username", str(server.username), "--dbname", str(server.database)),
            *options,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        umask=0o077,
        preexec_fn=lambda: stop_with_parent(signal.SIGKILL),
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise FoldwiseError(said[0] if said else f"{program} ended with exit code {done.returncode}")
