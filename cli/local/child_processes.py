"""Child processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import signal
import sys


def stop_with_parent(how: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends; for `preexec_fn`, on Linux."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(how))
