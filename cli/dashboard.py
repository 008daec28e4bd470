"""Optuna's dashboard, on loopback only and without the right to write: it has no login."""

from __future__ import annotations

import contextlib

import optuna
import optuna_dashboard

from cli.embedded_postgres import embedded_postgres
from cli.serve import bind
from cli.state import StateFolder
from coordinator.optimizer import OptunaProjection
from coordinator.store.database import connect, migrate
from services.errors import NotFound


def serve_dashboard(state: StateFolder, database_url: str | None, port: int) -> None:
    """Serve the studies of a database, or of a state folder whether or not a service runs on it.

    Raises:
        InvalidInput, Unavailable: the port is occupied, or the database does not answer.
        NotFound: the state folder holds no database.
    """
    with contextlib.ExitStack() as stack:
        listener = bind("127.0.0.1", port)
        port = listener.getsockname()[1]
        listener.close()
        if database_url is None:
            service = state.service()
            if service is not None:
                database_url = service.database_url
            elif state.database.is_dir():
                stack.enter_context(state.hold())
                database_url = stack.enter_context(embedded_postgres(state.database))
            else:
                raise NotFound(
                    f"{state.folder} holds no database yet; run `foldwise demo` or `foldwise up` first"
                )
        engine = connect(database_url)
        migrate(engine)
        engine.dispose()
        url = engine.url.render_as_string(hide_password=False)
        # Optuna's tables must be there before they are read; after this nothing is written.
        OptunaProjection(url)
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={
                "pool_pre_ping": True,
                "connect_args": {"options": "-c default_transaction_read_only=on"},
            },
        )
        print(f"Optuna's dashboard: http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
        optuna_dashboard.run_server(storage, host="127.0.0.1", port=port)
