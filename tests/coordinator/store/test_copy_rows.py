"""COPY fails as any other statement does, so that requests answer as they do for those."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from coordinator.store.copy_rows import copy_rows
from coordinator.store.database import database_is_gone
from coordinator.store.tables import DeletedStudyRow


def test_rows_are_part_of_the_transaction(engine: Engine) -> None:
    name = 'a\\b\t"c"\n\\N'
    with Session(engine) as session:
        copy_rows(session, DeletedStudyRow, ("name",), [(name,), ("é",)])
        assert [row.name for row in session.query(DeletedStudyRow).order_by("name")] == [name, "é"]
        session.rollback()
        assert session.query(DeletedStudyRow).count() == 0


def test_a_row_that_is_there_already_is_an_integrity_error(engine: Engine) -> None:
    with Session(engine) as session, pytest.raises(IntegrityError, match="pk_deleted_studies"):
        copy_rows(session, DeletedStudyRow, ("name",), [("a",), ("a",)])


def test_a_lost_connection_is_an_operational_error(engine: Engine) -> None:
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        with pytest.raises(OperationalError) as lost:
            copy_rows(session, DeletedStudyRow, ("name",), [("a",)])
        assert database_is_gone(lost.value)
