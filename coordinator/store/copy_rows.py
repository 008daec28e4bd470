"""Insert many rows of one table with COPY, which takes a fraction of the time of single inserts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql
from pydantic_core import to_json
from sqlalchemy import JSON, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator.store.tables import Base


def copy_rows(
    session: Session, kind: type[Base], columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Insert rows in the session's transaction; its pending objects are flushed first.

    Args:
        session: an open transaction.
        kind: class of the table.
        columns: names of the columns that are given; the others get their defaults.
        rows: values in the order of `columns`; those of JSON columns as Python objects.

    Raises:
        DBAPIError: as from a statement of SQLAlchemy.
    """
    session.flush()
    table = kind.__table__
    if not isinstance(table, Table):
        raise TypeError(f"{kind.__name__} is not a table")
    is_json = [isinstance(table.c[name].type, JSON) for name in columns]
    connection = session.connection().connection.driver_connection
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(f"{connection!r} is not a connection of psycopg")
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(str(table.schema), table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(
                    [
                        to_json(value).decode() if encoded else value
                        for value, encoded in zip(row, is_json, strict=True)
                    ]
                )
    except psycopg.Error as error:
        if connection.broken:
            # So that the rollback does not try to use it.
            session.connection().invalidate(error)
        raise DBAPIError.instance(
            statement.as_string(),
            None,
            error,
            psycopg.Error,
            connection_invalidated=connection.broken,
            dialect=session.get_bind().dialect,
        ) from error
