"""Secrets from a file or the environment; never from arguments, which every user of a machine can read."""

from __future__ import annotations

import os
from pathlib import Path

from services.errors import InvalidInput, NotFound


def read_secret(variable: str, *, what: str) -> str:
    """Read the file that `<variable>_FILE` names, otherwise the value of `<variable>`.

    Args:
        variable: name of the environment variable.
        what: a description of the secret for error messages, such as "the admin token".

    Raises:
        InvalidInput: neither is set, or the value is empty.
        NotFound: the file cannot be read.
    """
    path = os.environ.get(f"{variable}_FILE")
    if path:
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
            raise NotFound(f"{variable}_FILE={path}: {reason}", field=variable) from error
    else:
        value = os.environ.get(variable, "").strip()
    if not value:
        raise InvalidInput(f"{what} is missing; set {variable} or {variable}_FILE", field=variable)
    return value


def is_given(variable: str) -> bool:
    """Whether `<variable>_FILE` or `<variable>` is set."""
    return bool(os.environ.get(f"{variable}_FILE") or os.environ.get(variable))


def read_database_url(given: str | None, variable: str = "FOLDWISE_DATABASE_URL") -> str:
    """Return the URL that was given, otherwise read it from the environment or its file.

    Args:
        given: value of the option, or None.
        variable: name of the environment variable to read otherwise.

    Raises:
        InvalidInput, NotFound: as `read_secret`.
    """
    return given or read_secret(variable, what="the URL of the database")
