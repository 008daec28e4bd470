"""The git revision and image digest of the running code, which are stored with a result."""

from __future__ import annotations

import os


def running_revision() -> str | None:
    """`FOLDWISE_REVISION`, set when an image is built, and `FOLDWISE_IMAGE_DIGEST`, set when it is run.

    They are joined by `@`, as in `1f0c9d2@sha256:...`; None if neither is set.
    """
    known = [os.environ.get("FOLDWISE_REVISION"), os.environ.get("FOLDWISE_IMAGE_DIGEST")]
    return "@".join(part for part in known if part) or None
