"""The commands of a page of the documentation, as a person would copy them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def shell_blocks(page: str) -> list[str]:
    """The blocks of a page, by its path in the project, that are marked as shell, in their order."""
    text = (PROJECT / page).read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def type_blocks(blocks: Sequence[str], environment: Mapping[str, str]) -> str:
    """What bash says when these are typed one after the other, in the folder of the project.

    Raises:
        AssertionError: one of the commands has failed.
    """
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-x"],
        input="".join(blocks),
        env=environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
