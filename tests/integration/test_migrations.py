"""The schema that migrations make is the schema the code declares."""

from __future__ import annotations

from alembic import command
from sqlalchemy import Engine, inspect, text

from coordinator.optimizer import OptunaProjection
from coordinator.store.database import alembic_config, migrate
from coordinator.store.tables import SCHEMA


def test_migrations_leave_nothing_to_change_even_beside_optunas_tables(engine: Engine) -> None:
    OptunaProjection(engine.url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.check(config)


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    tables = inspect(engine).get_table_names(schema=SCHEMA)
    assert {"studies", "trials", "folds", "leases", "results", "outbox", "schema_version"} <= set(tables)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM foldwise.schema_version")) == 1
