"""The commands of a page of the documentation, as a person would copy them."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def shell_blocks(page: str) -> list[str]:
    """The blocks of a page, by its path in the project, that are marked as shell, in their order."""
    text = (PROJECT / page).read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
