"""The datasets that can be read, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.reader import Dataset
from services.errors import InvalidInput

Reader = Callable[[Path], Dataset]

DATASETS: dict[str, Reader] = {"ckplus": read_ckplus}


def read_dataset(name: str, root: Path) -> Dataset:
    """What the reader of that name finds under `root`.

    Raises `InvalidInput` for an unknown name, and whatever the reader raises.
    """
    try:
        read = DATASETS[name]
    except KeyError:
        known = ", ".join(sorted(DATASETS))
        raise InvalidInput(
            f"dataset is {name!r}, which is not known; use one of: {known}.", field="dataset"
        ) from None
    return read(root)
