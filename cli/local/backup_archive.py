"""The archive of a backup: a tar file whose last member is a manifest with the SHA-256 of all others.

The database is in it as `pg_dump` writes it, so that a later PostgreSQL can read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pydantic import AwareDatetime, Field, ValidationError

from services.contracts import Contract
from services.errors import InvalidInput

DATABASE, TOKENS, MODELS, MANIFEST = "database.pgdump", "tokens.json", "models", "manifest.json"
"""Names of the members; models are files below the folder `MODELS`."""

MAX_MANIFEST_BYTES = 64 * 2**20
"""Maximum bytes of a manifest."""

CHUNK_BYTES = 2**20
"""Bytes read at once."""


class StoredFile(Contract):
    """A member of the archive."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BackupManifest(Contract):
    """Which versions made an archive, and what it contains."""

    format: Literal["foldwise-backup/1"] = "foldwise-backup/1"
    foldwise: str = Field(description="version of the program")
    schema_revision: str | None = Field(description="of the database; null if it has no schema yet")
    postgresql: int = Field(description="major version of the server")
    created_at: AwareDatetime
    caches: tuple[str, ...] = Field(description="clip caches that were there; they are not in the archive")
    files: dict[str, StoredFile] = Field({}, description="all other members by name")


def write_archive(stream: IO[bytes], files: Iterable[tuple[str, Path]], manifest: BackupManifest) -> None:
    """Write files and then the manifest, which lists them; a file that has vanished is left out.

    Args:
        stream: opened for writing.
        files: name in the archive and path of each file.
        manifest: without `files`.

    Raises:
        OSError: a file cannot be read, or changes while it is read; or the archive cannot be written.
    """
    stored: dict[str, StoredFile] = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in files:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                status = os.fstat(file.fileno())
                reader = _HashingReader(file)
                tar.addfile(_member(name, status.st_size, status.st_mode), reader)
                stored[name] = StoredFile(bytes=status.st_size, sha256=reader.sha256.hexdigest())
        listed = manifest.model_copy(update={"files": stored}).model_dump_json(indent=1).encode()
        tar.addfile(_member(MANIFEST, len(listed), 0o600), BytesIO(listed))


class BackupArchive:
    """An archive that was read and checked completely."""

    def __init__(self, tar: tarfile.TarFile, manifest: BackupManifest) -> None:
        self._tar = tar
        self.manifest = manifest

    def names(self) -> list[str]:
        """Names of all members except the manifest."""
        return list(self.manifest.files)

    def extract(self, name: str, target: Path) -> None:
        """Write a member to a new file and flush it to disk.

        Raises:
            InvalidInput: it has changed since it was checked.
            OSError: the file exists, or cannot be written.
        """
        member = self._tar.getmember(name)
        digest = hashlib.sha256()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o755)
        with os.fdopen(descriptor, "wb") as output:
            for chunk in _chunks(self._tar, member):
                digest.update(chunk)
                output.write(chunk)
            output.flush()
            os.fsync(output.fileno())
        if digest.hexdigest() != self.manifest.files[name].sha256:
            raise InvalidInput(f"{name} in the backup changed while it was restored; restore it again")


@contextmanager
def open_archive(source: Path) -> Iterator[BackupArchive]:
    """Open an archive and check all of it: its members, their sizes and their SHA-256.

    Raises:
        InvalidInput: it is no backup, is damaged or cut off, or has members that no backup has.
        OSError: the file cannot be read.
    """
    with source.open("rb") as stream, contextlib.ExitStack() as stack:
        try:
            # Not compressed: a damaged or malicious archive cannot unpack to more than its own size.
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
            archive = BackupArchive(tar, _checked(tar))
        except (_Damaged, tarfile.TarError, EOFError, ValueError) as error:
            raise InvalidInput(
                f"{source} is not a complete backup: {error}; copy it again, or restore another one",
                field="file",
            ) from error
        yield archive


class _Damaged(Exception):
    """What is wrong with an archive."""


class _HashingReader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        return content


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, stat.S_IMODE(mode)
    return member


def _checked(tar: tarfile.TarFile) -> BackupManifest:
    found: dict[str, StoredFile] = {}
    manifest: BackupManifest | None = None
    for member in tar:
        if not member.isreg() or member.issparse() or not _is_allowed(member.name):
            raise _Damaged(f"it has the member {member.name!r}, which no backup has")
        if member.name in found or manifest is not None:
            raise _Damaged(f"it has the member {member.name!r} twice or after the manifest")
        if member.name == MANIFEST:
            manifest = _manifest(tar, member)
            continue
        digest, size = hashlib.sha256(), 0
        for chunk in _chunks(tar, member):
            digest.update(chunk)
            size += len(chunk)
        found[member.name] = StoredFile(bytes=size, sha256=digest.hexdigest())
    if manifest is None:
        raise _Damaged("it is cut off before its manifest")
    for name in sorted(found.keys() | manifest.files.keys()):
        if found.get(name) != manifest.files.get(name):
            raise _Damaged(f"{name} is not as its manifest says")
    if DATABASE not in found:
        raise _Damaged("it has no database")
    return manifest


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BackupManifest:
    if member.size > MAX_MANIFEST_BYTES:
        raise _Damaged(f"its manifest has {member.size} bytes")
    try:
        return BackupManifest.model_validate_json(b"".join(_chunks(tar, member)))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise _Damaged(f"its manifest is not one that this foldwise knows ({where}: {wrong['msg']})") from error


def _is_allowed(name: str) -> bool:
    if name in {DATABASE, TOKENS, MANIFEST}:
        return True
    path = PurePosixPath(name)
    return (
        str(path) == name
        and len(path.parts) > 1
        and path.parts[0] == MODELS
        and ".." not in path.parts
        and "\0" not in name
    )


def _chunks(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise _Damaged(f"{member.name} is not a file")
    while chunk := content.read(CHUNK_BYTES):
        yield chunk
