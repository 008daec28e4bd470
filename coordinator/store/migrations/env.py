"""Alembic's entry point: runs on the connection that `coordinator.store.database.migrate` hands over."""

from typing import Any

from alembic import context

from coordinator.store.tables import SCHEMA, Base


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    # Optuna keeps its tables in the default schema; they are not ours to compare or drop.
    return kind != "schema" or name == SCHEMA


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table="schema_version",
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=_ours,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
