"""Backup and restore of one machine's state folder: database, model catalogue and tokens.

Clip caches are not part of a backup, because they can be made again. An archive and a restored state folder
appear complete or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cli.local.backup_archive import (
    DATABASE,
    MODELS,
    TOKENS,
    BackupArchive,
    BackupManifest,
    open_archive,
    write_archive,
)
from cli.local.embedded_postgres import embedded_postgres
from cli.local.postgres_account import NEWEST
from cli.local.postgres_programs import dump_database, load_database
from cli.local.state import StateFolder
from coordinator.store.database import connect
from coordinator.store.revisions import refuse_newer, revision_of
from services.clip_cache import list_caches
from services.errors import Conflict, InvalidInput, NotFound
from services.model_catalogue import model_files


def back_up(state: StateFolder, target: Path) -> BackupManifest:
    """Write an archive of a state folder, whether or not a service runs on it.

    Only its owner can read the file, because it contains tokens.

    Args:
        state: the state folder.
        target: file to write.

    Raises:
        NotFound: the state folder has no database.
        InvalidInput: the file exists already.
        Conflict: another command uses the state folder.
        FoldwiseError: PostgreSQL does not start, or cannot write the database to a file.
        OSError: the file cannot be written.
    """
    if target.exists():
        raise InvalidInput(f"{target} exists already; choose another name for the backup", field="file")
    if not state.has_database():
        raise NotFound(f"{state.folder} has no database yet; give the --state of `foldwise up`")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        dump, archive = Path(name) / DATABASE, Path(name) / "archive"
        with _database_url(state) as url:
            # The models after the database: a result that counts then has its model in the archive.
            dump_database(url, state.database.resolve(), dump)
            revision, postgresql = _versions(url)
        manifest = BackupManifest(
            foldwise=version("foldwise"),
            schema_revision=revision,
            postgresql=postgresql,
            created_at=datetime.now(UTC),
            caches=tuple(f"{cache.dataset}/{cache.fingerprint}" for cache in list_caches(state.caches)),
        )
        with os.fdopen(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            write_archive(stream, _files(state, dump), manifest)
            stream.flush()
            os.fsync(stream.fileno())
        archive.rename(target)
    return manifest


def restore(state: StateFolder, source: Path) -> BackupManifest:
    """Restore an archive into a state folder that has no data yet; nothing is written before all is checked.

    Raises:
        InvalidInput: the archive is damaged or is not a backup.
        Conflict: a newer foldwise made the archive, a service runs, or the state folder has data already.
        FoldwiseError: PostgreSQL does not start, or cannot read the database.
        OSError: a file cannot be read or written.
    """
    with open_archive(source) as archive:
        _refuse_newer(source, archive.manifest)
        if state.service() is not None:
            raise Conflict(
                f"foldwise runs on {state.folder}; stop it and move its data away, or choose another --state"
            )
        with state.lock():
            _refuse_data(state)
            with state.restoring() as new:
                _fill(new, archive)
        return archive.manifest


@contextmanager
def _database_url(state: StateFolder) -> Iterator[str]:
    service = state.service()
    if service is not None:
        yield service.database_url
        return
    with state.lock(), embedded_postgres(state.database) as server:
        yield server.url


def _versions(url: str) -> tuple[str | None, int]:
    """The revision of the schema, and the major version of PostgreSQL."""
    engine = connect(url)
    try:
        with engine.connect() as connection:
            number = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
            return revision_of(connection), int(number) // 10_000
    finally:
        engine.dispose()


def _files(state: StateFolder, dump: Path) -> Iterator[tuple[str, Path]]:
    yield DATABASE, dump
    yield TOKENS, state.tokens_file
    for path in model_files(state.models):
        yield f"{MODELS}/{path.relative_to(state.models)}", path


def _refuse_newer(source: Path, manifest: BackupManifest) -> None:
    refuse_newer(
        manifest.schema_revision,
        f"the database in {source}",
        f"restore it with foldwise {manifest.foldwise} or newer",
    )
    if manifest.postgresql > NEWEST:
        raise Conflict(
            f"{source} is from PostgreSQL {manifest.postgresql}, this program has {NEWEST}; restore it with "
            f"foldwise {manifest.foldwise} or newer"
        )


def _refuse_data(state: StateFolder) -> None:
    found = [
        path.name
        for path in (state.database, state.models, state.tokens_file)
        if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir()))
    ]
    if found:
        raise Conflict(
            f"{state.folder} already has data ({', '.join(found)}); restore into another --state, or move them "
            "away first"
        )


def _fill(new: StateFolder, archive: BackupArchive) -> None:
    new.models.mkdir()
    for name in archive.names():
        path = new.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        archive.extract(name, path)
    dump = new.folder / DATABASE
    with embedded_postgres(new.database) as server:
        load_database(server.url, new.database.resolve(), dump)
    dump.unlink()
