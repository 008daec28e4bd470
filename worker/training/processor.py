"""The model of this machine's processor, which decides how a CPU rounds."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_MAX_LENGTH = 128
"""Maximum number of characters of the name."""


@cache
def processor_name() -> str | None:
    """The model, such as `Intel(R) Xeon(R) Processor, family 6, model 207`; None if the system does not say.

    Virtual machines often hide the trade name, so family and model are part of it.
    """
    said = _first_processor()
    family, model = said.get("cpu family"), said.get("model")
    parts = [
        said.get("model name") or platform.machine(),
        f"family {family}" if family else "",
        f"model {model}" if model else "",
    ]
    name = "".join(c for c in ", ".join(part for part in parts if part) if c.isprintable())
    return name[:_MAX_LENGTH] or None


def _first_processor() -> dict[str, str]:
    """What Linux says about the first processor, by the names that it uses; empty elsewhere."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
