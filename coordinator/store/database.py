"""Connections to the database, and migrating its schema."""

from __future__ import annotations

import math
import time
from functools import partial

from alembic import command
from sqlalchemy import Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from coordinator.store.deadlines import bound
from coordinator.store.revisions import alembic_config, refuse_newer, revision_of
from coordinator.store.tables import SCHEMA
from services.errors import InvalidInput, Unavailable

MIGRATION_LOCK = 0x666F6C64_00000001
"""Advisory lock held during a migration, so that replicas that start together do it once."""

DRIVER = "postgresql+psycopg"
"""psycopg prepares statements that run often."""

_VANISHED = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Seconds and attempts after which a machine that no longer answers counts as vanished, 25 seconds in all."""

_UNANSWERED_MS = 25_000
"""Milliseconds that sent data may stay unanswered."""

SESSION_OPTIONS = " ".join(
    (
        # The chart's role has the name of our schema, so Optuna's tables would go into it by default.
        "-c search_path=public",
        # The database then ends the session of a machine that has vanished, and with it its locks; the
        # database's own default is two hours.
        *(f"-c tcp_{name}={value}" for name, value in _VANISHED.items()),
        f"-c tcp_user_timeout={_UNANSWERED_MS}",
    )
)
"""Settings of every session, as options of PostgreSQL's command line."""

CONNECT_ARGS: dict[str, str | int] = {
    # From a database without an encoding the driver would return bytes, before `migrate` can reject it.
    "client_encoding": "utf8",
    "options": SESSION_OPTIONS,
    "connect_timeout": 10,
    # As for the sessions, if the database's machine vanishes.
    **_VANISHED,
    "tcp_user_timeout": _UNANSWERED_MS,
}
"""Arguments of every connection."""

CONNECTIONS_FOR_REQUESTS = 4
"""Transactions of requests that run at once; further ones wait without a connection.

With more than a few, most would wait for Python, which runs one thread of a process at a time.
"""

CONNECTIONS_BESIDE = 4
"""Connections for events and exports, beside those for requests."""

POOL_SECONDS = 10.0
"""Seconds to wait for a free connection of a pool."""

ANSWER_SECONDS = 20.0
"""Seconds to wait for the database's answer to a statement of a request."""

LONG_SECONDS = 600.0
"""Seconds to wait for a statement of an import or a deletion, which can touch hundreds of thousands of rows."""

IDLE_SECONDS = 10.0
"""Seconds after which the database ends a session that does nothing inside a transaction.

A coordinator that was stopped or cut off may hold locks in it, for which the leader and other requests wait.
"""

MIGRATION_SECONDS = 3600.0
"""Seconds to wait for a statement of a migration, which can rewrite whole tables."""

UNTESTED_SECONDS = 1.0
"""Seconds since its last use after which a connection is tested before it is used again."""


def connect(
    url: str,
    *,
    connections: int = CONNECTIONS_FOR_REQUESTS,
    overflow: int = CONNECTIONS_BESIDE,
    answer_seconds: float = ANSWER_SECONDS,
    lock_seconds: float | None = None,
) -> Engine:
    """An engine whose idle connections are tested before use, so that a restarted database causes no error.

    Args:
        url: of the database.
        connections: number of connections that stay open.
        overflow: number of further connections under load.
        answer_seconds: maximum wait for each answer of the database, in seconds.
        lock_seconds: maximum wait for a lock of another transaction, in seconds; None: as for an answer.

    Raises:
        InvalidInput: `url` is not the URL of a PostgreSQL.
    """
    engine = create_engine(
        with_driver(url),
        pool_size=connections,
        max_overflow=overflow,
        pool_timeout=POOL_SECONDS,
        pool_recycle=1800,
        connect_args=CONNECT_ARGS,
    )
    bound(engine, answer_seconds=answer_seconds, idle_seconds=IDLE_SECONDS, lock_seconds=lock_seconds)
    # SQLAlchemy's own test runs before every use, which is one more round trip to the database.
    event.listen(engine, "checkin", _record_use)
    event.listen(engine, "checkout", partial(_test_idle, engine.dialect))
    return engine


def with_driver(url: str) -> str:
    """The URL with our driver, whether it begins with `postgresql://` or `postgres://` or names another driver.

    Raises:
        InvalidInput: it is not the URL of a PostgreSQL.
    """
    try:
        given = make_url(url)
    except ArgumentError:
        given = None
    if given is None or given.get_backend_name() not in {"postgresql", "postgres"}:
        raise InvalidInput(
            "--database-url is not the URL of a PostgreSQL; write postgresql://USER:PASSWORD@HOST/NAME",
            field="database_url",
        )
    return given.set(drivername=DRIVER).render_as_string(hide_password=False)


def migrate(engine: Engine) -> None:
    """Bring the schema `foldwise` to the newest revision; several processes may call it at once.

    Raises:
        Unavailable: the database does not answer.
        InvalidInput: its encoding cannot hold every text.
        Conflict: the schema is newer than this program.
    """
    try:
        with engine.connect() as connection:
            encoding = connection.scalar(text("SHOW server_encoding"))
            if encoding != "UTF8":
                name = connection.scalar(text("SELECT current_database()"))
                raise InvalidInput(
                    f"the database {name} has the encoding {encoding}, which cannot hold every text; create "
                    f"one with CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0",
                    field="database_url",
                )
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            try:
                refuse_newer(revision_of(connection))
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
                connection.commit()
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
                connection.commit()
    except OperationalError as error:
        raise Unavailable(
            f"the database does not answer: {first_line(error)}; start PostgreSQL or correct --database-url"
        ) from error


def first_line(error: SQLAlchemyError) -> str:
    """What the database or its driver said, in one line."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_locked(error: Exception) -> bool:
    """Whether another transaction held a lock for too long."""
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) == "55P03"


def database_is_gone(error: SQLAlchemyError) -> bool:
    """Whether an error means that the database does not answer; otherwise one statement was wrong."""
    if not isinstance(error, DBAPIError):
        # No connection was free in time.
        return isinstance(error, PoolTimeoutError)
    if error.connection_invalidated:
        return True
    # Class 08: connection; 53: out of disk, memory or connections; 57P: shut down or starting. An operational
    # error without a code comes from the connection itself.
    code: str | None = getattr(error.orig, "sqlstate", None)
    if code is None:
        return isinstance(error, OperationalError | InterfaceError)
    return code.startswith(("08", "53", "57P"))


def _record_use(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info["used"] = time.monotonic()


def _test_idle(
    dialect: Dialect, connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    if time.monotonic() - record.info.get("used", math.inf) < UNTESTED_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error
