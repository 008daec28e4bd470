"""Connections that do not wait for the database without end.

A frozen database enforces no time limit, and the kernel of its machine or a proxy still
acknowledges data for it. So each wait for an answer has a limit on this side too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Dialect, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

_SERVER_SHARE = 0.8
"""Share of the limit after which the database itself cancels a statement, with an error that says so."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed if an answer takes longer than `answer_seconds`."""

    answer_seconds: float | None = None
    """Seconds to wait for each answer; None waits without end."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """See psycopg: waits for the answer to one command.

        Raises:
            psycopg.OperationalError: there was no answer in time; the connection is closed.
        """
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.answer_seconds is None or self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            # The answer can still come, so this connection is of no further use.
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the database did not answer within {self.answer_seconds:g} s"
            ) from error


def bound(
    engine: Engine, *, answer_seconds: float, idle_seconds: float, lock_seconds: float | None = None
) -> None:
    """Limit the waits of each connection of an engine; the database cancels statements a little earlier.

    Args:
        engine: a new engine, without connections.
        answer_seconds: maximum wait for each answer; `allow` makes exceptions.
        idle_seconds: seconds after which the database ends a session that does nothing inside a transaction;
            `allow_pauses` makes exceptions.
        lock_seconds: maximum wait for a lock; None: as for an answer.
    """
    limits = f"-c statement_timeout={_server_ms(answer_seconds)}"
    limits += f" -c idle_in_transaction_session_timeout={int(1000 * idle_seconds)}"
    if lock_seconds is not None:
        limits += f" -c lock_timeout={int(1000 * lock_seconds)}"

    def connect(
        _dialect: Dialect, _record: ConnectionPoolEntry, arguments: Sequence[Any], parameters: dict[str, Any]
    ) -> BoundedConnection:
        options = f"{parameters.get('options', '')} {limits}"
        connection = BoundedConnection.connect(*arguments, **{**parameters, "options": options})
        connection.answer_seconds = answer_seconds
        return connection

    def reset(connection: DBAPIConnection | None, _record: ConnectionPoolEntry) -> None:
        if isinstance(connection, BoundedConnection):
            connection.answer_seconds = answer_seconds

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkin", reset)


def allow(session: Session | Connection, seconds: float) -> None:
    """Set the limit of each further statement of a transaction, for work that is known to take long."""
    connection = session.connection() if isinstance(session, Session) else session
    connection.execute(
        text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": str(_server_ms(seconds))}
    )
    driver = connection.connection.driver_connection
    assert isinstance(driver, BoundedConnection)  # noqa: S101 - every engine is made by `connect`
    driver.answer_seconds = seconds


def allow_pauses(session: Session, seconds: float) -> None:
    """Let a transaction do nothing for this long, because it waits for its client."""
    session.execute(
        text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)"),
        {"limit": str(int(1000 * seconds))},
    )


def _server_ms(seconds: float) -> int:
    return int(1000 * seconds * _SERVER_SHARE)
