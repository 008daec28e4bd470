"""The largest body that each kind of request may have; a larger one is answered with 413 before it is read."""

from __future__ import annotations

DEFAULT_BYTES = 64 * 2**10
"""All requests that are not named below."""

SPEC_BYTES = 4 * 2**20
"""A study, a clone or configurations to enqueue: up to 100,000 configurations."""

RESULT_BYTES = 16 * 2**20
"""A fold's predictions after every epoch."""

IMPORT_BYTES = 4 * 2**30
"""A file with a study, which is read line by line."""
