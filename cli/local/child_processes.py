"""Child processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Sequence


def foldwise_command(arguments: Sequence[str]) -> list[str]:
    """The command that runs foldwise with these arguments in another process."""
    # -P: a `worker.py` or `services/` in the user's current folder must not replace ours.
    return [sys.executable, "-P", "-m", "cli.main", *arguments]


def stop_with_parent(how: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends; for `preexec_fn`, on Linux."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(how))
