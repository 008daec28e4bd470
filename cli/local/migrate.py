"""`foldwise migrate`: prepare a database in a separate process, before coordinators start."""

from __future__ import annotations

from coordinator.optimizer import create_tables
from coordinator.store.database import MIGRATION_SECONDS, connect, migrate
from coordinator.store.preparation import let_read, wait_for_database


def bring_up_to_date(database_url: str, *, reader_url: str | None, wait_seconds: float) -> None:
    """Create or upgrade foldwise's schema and Optuna's tables; safe to repeat, also while coordinators run.

    Args:
        database_url: URL for a role that can create schemas.
        reader_url: URL for the dashboard's role, which gets permission to read Optuna's tables; None for none.
        wait_seconds: seconds to wait for the database.

    Raises:
        Unavailable: the database does not answer.
        InvalidInput: a URL is wrong, or the dashboard's role cannot be created.
        Conflict: the schema or the tables are those of a newer program.
    """
    engine = connect(database_url, answer_seconds=MIGRATION_SECONDS)
    try:
        wait_for_database(engine, wait_seconds)
        migrate(engine)
        # Create or upgrade Optuna's tables, so that a dashboard can start before the first study.
        create_tables(engine)
        if reader_url is not None:
            let_read(engine, reader_url)
    finally:
        engine.dispose()
