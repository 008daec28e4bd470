"""`foldwise migrate`: a database made ready by a process of its own, before coordinators start."""

from __future__ import annotations

from coordinator.optimizer import OptunaProjection
from coordinator.store.database import connect, migrate
from coordinator.store.preparation import let_read, wait_for_database


def bring_up_to_date(database_url: str, *, reader_url: str | None, wait_seconds: float) -> None:
    """Make or change our schema and Optuna's tables; safe to repeat, and to run while coordinators do.

    Args:
        database_url: of a role that may create schemas.
        reader_url: of a role for the dashboard, which may read Optuna's tables from here on; None for none.
        wait_seconds: so long for the database to answer.

    Raises:
        Unavailable: the database does not answer.
        InvalidInput: a URL is wrong, or the reading role cannot be made.
    """
    engine = connect(database_url)
    try:
        wait_for_database(engine, wait_seconds)
        migrate(engine)
        # Makes its tables, so that a dashboard has something to read before the first study.
        OptunaProjection(engine.url.render_as_string(hide_password=False))
        if reader_url is not None:
            let_read(engine, reader_url)
    finally:
        engine.dispose()
