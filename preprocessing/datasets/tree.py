"""A dataset's folders as a reader walks them, with an account of everything in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from preprocessing.datasets.reader import Skipped
from services.errors import InvalidInput, NotFound

ReasonFor = Callable[[Path], str | None]
"""The reason why a file or folder is not used, or None where a general one will do."""

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
    """Lists folders and keeps account: what a reader neither uses nor skips, `finish` skips with a reason.

    Nothing is opened. What is forbidden, dangles or is neither a file nor a folder raises nothing.
    """

    def __init__(self, root: Path, *, layout: str) -> None:
        """`layout` is the dataset's name for people.

        Raises `NotFound` where `root` is not there and `InvalidInput` where it is no folder.
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
        """Everything in a folder, by name; a folder that cannot be listed is skipped and empty.

        Raises `OSError` where the disk fails, see `raise_if_disk_failed`.
        """
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise_if_disk_failed(folder, error)
            self.skip(folder, f"cannot be listed: {error.strerror}")
            return []
        return [folder / name for name in sorted(names, key=os.fsencode)]

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, by name, but not hidden ones and those that operating systems leave."""
        return [path for path in self.entries(folder) if is_folder(path) and not is_clutter(path)]

    def files(self, folder: Path) -> list[Path]:
        """The files in a folder, by name, but not those that operating systems leave."""
        return [path for path in self.entries(folder) if is_file(path) and not is_clutter(path)]

    def use(self, *paths: Path) -> None:
        """Says that these are part of a sequence or tell something about one."""
        self._known.update(paths)

    def skip(self, path: Path, reason: str, *, part: str = "") -> None:
        """Leaves out a file, a folder with all that is in it, or `part` of a file; it may be said twice."""
        self._known.add(path)
        self._skipped[Skipped(path=path, reason=reason, part=part)] = None

    def finish(self, reason_for: ReasonFor = lambda _path: None) -> tuple[Skipped, ...]:
        """All that was left out, by path; what nobody has spoken of yet is skipped here, folders as a whole."""
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
    """Return where a file cannot be read by its own fault: it is gone, a folder, forbidden.

    Raises `error` where the disk or the network failed: that is no property of the dataset, and a cache made
    in spite of it would lack frames that are there.
    """
    if error.errno not in _FILE_ERRORS:
        if error.filename is None:  # it failed while it was read, not when it was opened
            error.filename = str(path)
        raise error


def is_clutter(path: Path) -> bool:
    """Whether it is hidden, or of the kind that operating systems leave beside people's files."""
    name = path.name.casefold()
    # macOS archives carry a second, hollow tree of the same names in __MACOSX, and files that start with ._
    return name.startswith(".") or name in _SYSTEM_FILES or name.endswith(":zone.identifier")


def is_folder(path: Path) -> bool:
    """Whether it is a folder or a link to one; no error says it is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether it is a regular file or a link to one; no error says it is not."""
    try:
        return path.is_file()
    except OSError:
        return False
