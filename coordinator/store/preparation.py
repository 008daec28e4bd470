"""Prepares a database for coordinators and dashboards, in its own process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError, SQLAlchemyError

from coordinator.store.database import first_line
from coordinator.store.revisions import newest_revision, refuse_newer, revision_of
from services.errors import InvalidInput, Unavailable

log = structlog.get_logger()

RETRY_SECONDS = 1.0
"""Seconds between two tries to connect."""


def wait_for_database(engine: Engine, seconds: float) -> None:
    """Return as soon as the database answers.

    Args:
        engine: of the database.
        seconds: to wait for it; 0 tries once.

    Raises:
        Unavailable: it did not answer within `seconds`.
    """
    trouble = ""
    for _ in _tries(seconds):
        try:
            with engine.connect():
                return
        except OperationalError as error:
            trouble = first_line(error)
    waited = f"did not answer for {seconds:g} s" if seconds else "does not answer"
    raise Unavailable(f"the database {waited}: {trouble}; start it or correct its URL")


def wait_for_schema(engine: Engine, seconds: float) -> None:
    """Return as soon as the schema has the revision that this program was written for.

    Args:
        engine: of the database.
        seconds: to wait for it; 0 tries once.

    Raises:
        Unavailable: the schema did not have it within `seconds`.
        Conflict: the schema belongs to a newer program.
    """
    head = newest_revision()
    trouble = ""
    for _ in _tries(seconds):
        is_first = not trouble
        try:
            with engine.connect() as connection:
                found = revision_of(connection)
        except (OperationalError, ProgrammingError) as error:
            trouble = first_line(error)
        else:
            if found == head:
                return
            refuse_newer(found)
            trouble = f"its revision is {found}, not {head}" if found else "the database has none yet"
        if is_first:
            log.info("waiting_for_schema", trouble=trouble)
    raise Unavailable(f"the schema was not ready for {seconds:g} s: {trouble}; run `foldwise migrate`")


def let_read(engine: Engine, reader_url: str) -> None:
    """Let the role of `reader_url` read Optuna's tables, also later ones, and none of ours.

    A role that does not exist is created with the password of the URL.

    Raises:
        InvalidInput: the URL names no role, or the role is missing and our role cannot create it.
    """
    try:
        url = make_url(reader_url)
    except ArgumentError as error:
        raise InvalidInput(
            "the dashboard's database URL is not a URL", field="dashboard_database_url"
        ) from error
    if not url.username:
        raise InvalidInput("the dashboard's database URL names no role", field="dashboard_database_url")
    with engine.begin() as connection:
        if url.username == connection.scalar(text("SELECT current_user")):
            return
        role = engine.dialect.identifier_preparer.quote(url.username)
        known = connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": url.username})
        if not known:
            try:
                _create_role(connection, url.username, url.password or "")
            except SQLAlchemyError as error:
                raise InvalidInput(
                    f"the role {url.username} of the dashboard does not exist and cannot be created: "
                    f"{first_line(error)}; create it, then run `foldwise migrate` again",
                    field="dashboard_database_url",
                ) from error
        connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {role}"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        connection.execute(text(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {role}"))


def _create_role(connection: Connection, name: str, password: str) -> None:
    # CREATE ROLE takes no parameters, so PostgreSQL itself quotes the name and the password.
    statement = connection.scalar(
        text("SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', CAST(:name AS text), CAST(:password AS text))"),
        {"name": name, "password": password},
    )
    connection.execution_options(no_parameters=True).exec_driver_sql(str(statement))


def _tries(seconds: float) -> Iterator[None]:
    """Yield once at least, then every `RETRY_SECONDS` until the time is over."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        time.sleep(RETRY_SECONDS)
        yield
