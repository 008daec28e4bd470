"""Walks a dataset's folders for a reader and accounts for everything in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from preprocessing.datasets.reader import Skipped
from services.errors import InvalidInput, NotFound

ReasonFor = Callable[[Path], str | None]
"""Returns why a file or folder is not used, or None for a general reason."""

_SYSTEM_FILES = {".ds_store", "thumbs.db", "desktop.ini", "__macosx", ".spotlight-v100", ".trashes"}

_FILE_ERRORS = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}


class Tree:
    """Lists folders and records what the reader uses or skips; `finish` skips the rest with a reason.

    It opens no files. Paths without permission, dangling links and special files raise no error.
    """

    def __init__(self, root: Path, *, layout: str) -> None:
        """`layout` is the dataset's name for people.

        Raises:
            NotFound: `root` does not exist.
            InvalidInput: `root` is no folder.
        """
        self.root = Path(os.path.abspath(root.expanduser()))
        self._layout = layout
        self._known: set[Path] = set()
        self._skipped: dict[Skipped, None] = {}
        if not os.path.lexists(self.root):
            raise NotFound(
                f"root is {self.root}, which does not exist; give the folder that holds {layout}.", field="root"
            )
        if not is_folder(self.root):
            raise InvalidInput(
                f"root is {self.root}, which is a file or a link to nothing; "
                f"give the folder that holds {layout}.",
                field="root",
            )

    def entries(self, folder: Path) -> list[Path]:
        """All paths in a folder, sorted by name; a folder that cannot be listed is skipped and gives none.

        Raises:
            OSError: the disk failed, see `raise_if_disk_failed`.
        """
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise_if_disk_failed(folder, error)
            self.skip(folder, f"cannot be listed: {error.strerror}")
            return []
        return [folder / name for name in sorted(names, key=os.fsencode)]

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted by name, without clutter (see `is_clutter`)."""
        return [path for path in self.entries(folder) if is_folder(path) and not is_clutter(path)]

    def files(self, folder: Path) -> list[Path]:
        """The files in a folder, sorted by name, without clutter (see `is_clutter`)."""
        return [path for path in self.entries(folder) if is_file(path) and not is_clutter(path)]

    def walk(
        self, max_depth: int, *, stop_at: Callable[[Path], bool] = lambda _folder: False
    ) -> Iterator[Path]:
        """The root and the folders below it, outermost first; links to a folder above are not followed.

        Args:
            max_depth: levels below the root.
            stop_at: called once for each folder; if it returns True, the folders in it are not visited.
        """
        level = [(self.root, frozenset({os.path.realpath(self.root)}))]
        for _ in range(max_depth + 1):
            below = []
            for folder, above in level:
                yield folder
                if stop_at(folder):
                    continue
                real = [(child, os.path.realpath(child)) for child in self.folders(folder)]
                below += [(child, above | {where}) for child, where in real if where not in above]
            level = below

    def use(self, *paths: Path) -> None:
        """Mark files as part of a sequence, or as a description of one."""
        self._known.update(paths)

    def skip(self, path: Path, reason: str, *, part: str = "") -> None:
        """Skip a file, a folder with everything in it, or `part` of a file; repeated calls are harmless."""
        self._known.add(path)
        self._skipped[Skipped(path=path, reason=reason, part=part)] = None

    def finish(self, reason_for: ReasonFor = lambda _path: None) -> tuple[Skipped, ...]:
        """Skip what was neither used nor skipped, folders as a whole; return everything skipped, by path."""
        holders = {parent for path in self._known for parent in path.parents}
        waiting = [self.root] if self.root not in self._known else []
        while waiting:
            for path in self.entries(waiting.pop()):
                if path in self._known:
                    continue
                if path in holders:
                    waiting.append(path)
                else:
                    self.skip(path, self._reason(path, reason_for))
        return tuple(sorted(self._skipped, key=lambda skip: os.fsencode(skip.path)))

    def _reason(self, path: Path, reason_for: ReasonFor) -> str:
        if path.is_symlink() and not path.exists():
            return "a link to nothing"
        if is_clutter(path):
            return "hidden, or left by an operating system"
        if not is_folder(path) and not is_file(path):
            return "neither a file nor a folder"
        kind = "folder" if is_folder(path) else "file"
        return reason_for(path) or f"a {kind} that is not part of the layout of {self._layout}"


def raise_if_disk_failed(path: Path, error: OSError) -> None:
    """Raise `error` if the disk or network failed; return if the file is missing, forbidden or a folder.

    A failed disk is no property of the dataset: a cache made in spite of it would lack existing frames.

    Raises:
        OSError: `error` itself.
    """
    if error.errno not in _FILE_ERRORS:
        if error.filename is None:  # reading failed, not opening
            error.filename = str(path)
        raise error


def is_clutter(path: Path) -> bool:
    """Whether a path is hidden or a leftover of an operating system, such as `Thumbs.db`."""
    name = path.name.casefold()
    # macOS archives hold a second, empty tree of the same names in __MACOSX, and files that start with ._
    return name.startswith(".") or name in _SYSTEM_FILES or name.endswith(":zone.identifier")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one; False if that cannot be checked."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a path is a regular file or a link to one; False if that cannot be checked."""
    try:
        return path.is_file()
    except OSError:
        return False
