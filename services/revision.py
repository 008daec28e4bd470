"""What is running: the git revision and image digest that a result is stored with."""

from __future__ import annotations

import os


def running_revision() -> str | None:
    """`FOLDWISE_REVISION`, set when an image is built, and `FOLDWISE_IMAGE_DIGEST`, set where it is run.

    Joined by `@`, as in `1f0c9d2@sha256:...`; None where neither is set.
    """
    known = [os.environ.get("FOLDWISE_REVISION"), os.environ.get("FOLDWISE_IMAGE_DIGEST")]
    return "@".join(part for part in known if part) or None
