"""The revisions of the schema that this program knows, and the one that a database has."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from coordinator.store.tables import SCHEMA
from services.errors import Conflict

VERSION_TABLE = "schema_version"
"""Table in our schema that holds the database's revision."""

RETURN = "run the newer foldwise again, or restore the database from before its upgrade"
"""What to do about a database that a newer foldwise has migrated."""


def alembic_config() -> Config:
    """Alembic's configuration, made without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def newest_revision() -> str:
    """The revision that this program was written for."""
    return str(_scripts().get_current_head())


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's schema; None if it has no schema yet."""
    exists = text("SELECT to_regclass(:name) IS NOT NULL")
    if not connection.scalar(exists, {"name": f"{SCHEMA}.{VERSION_TABLE}"}):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.{VERSION_TABLE}"))  # noqa: S608
    return found


def refuse_newer(revision: str | None, what: str = "the database's schema", what_to_do: str = RETURN) -> None:
    """Refuse a schema that a newer foldwise has migrated, because this program would misread it.

    Args:
        revision: of the schema; None means that there is none yet.
        what: the schema in words, for the message.
        what_to_do: the end of the message.

    Raises:
        Conflict: this program does not know the revision.
    """
    if revision is None:
        return
    scripts = _scripts()
    try:
        scripts.get_revision(revision)
    except CommandError as error:
        raise Conflict(
            f"{what} has revision {revision}, this program knows revisions up to {scripts.get_current_head()}: "
            f"{what_to_do}"
        ) from error


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())
