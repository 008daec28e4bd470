"""No wait for the database is without end: not on its side, and not on ours if it enforces nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from coordinator.store.database import connect, database_is_gone
from coordinator.store.deadlines import BoundedConnection, allow, allow_pauses


@contextmanager
def engine_of(database_url: str, *, answer_seconds: float) -> Iterator[Engine]:
    engine = connect(database_url, connections=1, overflow=0, answer_seconds=answer_seconds)
    try:
        yield engine
    finally:
        engine.dispose()


def let_the_server_enforce_nothing(session: Session) -> None:
    session.execute(text("SET LOCAL statement_timeout = 0"))


def test_the_database_cancels_a_statement_that_takes_too_long(database_url: str) -> None:
    with engine_of(database_url, answer_seconds=0.5) as engine, Session(engine) as session:
        with pytest.raises(OperationalError, match="statement timeout"):
            session.execute(text("SELECT pg_sleep(60)"))
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1


def test_an_answer_that_does_not_come_closes_the_connection(database_url: str) -> None:
    with engine_of(database_url, answer_seconds=0.5) as engine:
        with Session(engine) as session:
            let_the_server_enforce_nothing(session)
            first = session.scalar(text("SELECT pg_backend_pid()"))
            with pytest.raises(OperationalError, match=r"did not answer within 0\.5 s") as caught:
                session.execute(text("SELECT pg_sleep(60)"))
            assert database_is_gone(caught.value)
        with Session(engine) as session:
            assert session.scalar(text("SELECT pg_backend_pid()")) != first


def test_a_commit_has_a_limit_too(database_url: str) -> None:
    with engine_of(database_url, answer_seconds=0.5) as engine, Session(engine) as session:
        session.execute(text("CREATE TABLE slow (id int PRIMARY KEY)"))
        session.execute(
            text(
                "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql"
                " AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
            )
        )
        session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER sleeps AFTER INSERT ON slow"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep()"
            )
        )
        session.commit()
        session.execute(text("INSERT INTO slow VALUES (1)"))
        let_the_server_enforce_nothing(session)
        with pytest.raises(OperationalError, match="did not answer"):
            session.commit()


def test_long_work_gets_its_own_limit_and_the_next_user_of_the_connection_does_not(database_url: str) -> None:
    with engine_of(database_url, answer_seconds=0.5) as engine:
        with Session(engine) as session:
            allow(session, 60)
            session.execute(text("SELECT pg_sleep(0.8)"))
        with Session(engine) as session:
            driver = session.connection().connection.driver_connection
            assert isinstance(driver, BoundedConnection)
            assert driver.answer_seconds == 0.5
            with pytest.raises(OperationalError, match="statement timeout"):
                session.execute(text("SELECT pg_sleep(60)"))


def test_a_session_that_stops_inside_a_transaction_is_ended(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.store.database.IDLE_SECONDS", 0.2)
    with engine_of(database_url, answer_seconds=5) as stopping, Session(stopping) as session:
        session.execute(text("SELECT pg_advisory_xact_lock(1)"))
        with engine.connect() as other:
            # Waits for the lock that the stopped transaction holds.
            other.execute(text("SELECT pg_advisory_xact_lock(1)"))
        with pytest.raises(DBAPIError, match="idle-in-transaction") as caught:
            session.execute(text("SELECT 1"))
        assert database_is_gone(caught.value)
        session.rollback()
        allow_pauses(session, 60)
        time.sleep(0.5)
        session.execute(text("SELECT 1"))
