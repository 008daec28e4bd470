"""`python -m foldwise`: the command line, the same as `foldwise`."""

from __future__ import annotations

import os
import sys

# `python -m` puts the current folder first on the import path. A user's `worker.py` or `services/` in it must
# not replace ours.
if not sys.flags.safe_path and sys.path and sys.path[0] in {"", os.getcwd()}:
    del sys.path[0]

from cli.main import main

if __name__ == "__main__":
    main()
