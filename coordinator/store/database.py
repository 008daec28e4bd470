"""Connections, and the schema brought up to date."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from coordinator.store.tables import SCHEMA
from services.errors import InvalidInput, Unavailable

MIGRATION_LOCK = 0x666F6C64_00000001
"""Advisory lock held while migrating, so that two starting replicas do it once."""

DRIVER = "postgresql+psycopg"
"""It prepares what is asked often."""

CONNECT_ARGS = {
    # Of a database without an encoding the driver would hand out bytes, before anyone could say so.
    "client_encoding": "utf8",
    # A role of the name of our schema, as the chart's, would have it in its path, and Optuna's tables in it.
    "options": "-c search_path=public",
}
"""Of every connection, Optuna's too."""

CONNECTIONS_FOR_REQUESTS = 4
"""So many transactions of requests run at once; the others wait for their turn without a connection.

Of more than a few, most would wait for Python, which runs one thread of a process at a time.
"""

CONNECTIONS_BESIDE = 4
"""For the leader, tokens, metrics, events and exports."""


IDLE_SECONDS = 1.0
"""A connection that was used within so long is not tested before it is used again."""


def connect(url: str) -> Engine:
    """An engine whose idle connections are tested before use: a restarted database is no error.

    Raises:
        InvalidInput: `url` is no URL of a PostgreSQL.
    """
    # With the leader's own connection and Optuna's three, a coordinator has 12.
    engine = create_engine(
        with_driver(url),
        pool_size=CONNECTIONS_FOR_REQUESTS,
        max_overflow=CONNECTIONS_BESIDE,
        pool_recycle=1800,
        connect_args=CONNECT_ARGS,
    )
    # SQLAlchemy's own test asks before every use, which is one way more to the database and back.
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_test_idle, engine.dialect))
    return engine


def _note_use(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info["used"] = time.monotonic()


def _test_idle(
    dialect: Dialect, connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    if time.monotonic() - record.info.get("used", math.inf) < IDLE_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def with_driver(url: str) -> str:
    """The URL with our driver, whether it is written `postgresql://`, `postgres://` or names another one.

    Raises:
        InvalidInput: it is no URL of a PostgreSQL.
    """
    try:
        given = make_url(url)
    except ArgumentError:
        given = None
    if given is None or given.get_backend_name() not in {"postgresql", "postgres"}:
        raise InvalidInput(
            "--database-url is no URL of a PostgreSQL; write postgresql://USER:PASSWORD@HOST/NAME",
            field="database_url",
        )
    return given.set(drivername=DRIVER).render_as_string(hide_password=False)


def migrate(engine: Engine) -> None:
    """Bring schema `foldwise` to the newest revision; safe to call from several processes at once.

    Raises:
        Unavailable: the database does not answer.
        InvalidInput: its encoding cannot hold every text.
    """
    try:
        with engine.connect() as connection:
            encoding = connection.scalar(text("SHOW server_encoding"))
            if encoding != "UTF8":
                name = connection.scalar(text("SELECT current_database()"))
                raise InvalidInput(
                    f"the database {name} has the encoding {encoding}, which cannot hold every text; make one "
                    f"with CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0",
                    field="database_url",
                )
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            try:
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
            f"the database does not answer: {str(error.orig).strip().splitlines()[0]}; "
            "start PostgreSQL or correct --database-url"
        ) from error


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
