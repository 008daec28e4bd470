"""Makes the parts of the chart that follow from others: values.schema.json, and the README's table of values.

`python -m helm.generate` writes them; with `--check` it only says whether they are as they should be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from helm.values_model import ChartValues

CHART = Path(__file__).parent / "foldwise"

_TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)
_KEY = re.compile(r"^( *)([A-Za-z]+):")


def main() -> int:
    """Write what differs; the exit code is 1 with `--check` where something does."""
    wanted = {CHART / "values.schema.json": schema(), CHART / "README.md": readme()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is not what values.yaml and values_model.py make; run `make chart`")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


def schema() -> str:
    """values.schema.json: a JSON Schema of draft 7, which is what Helm 3 knows."""
    made = ChartValues.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = made.pop("$defs")
    document = {"$schema": "http://json-schema.org/draft-07/schema#", **made, "definitions": definitions}
    return json.dumps(_without_titles(document), indent=1) + "\n"


def readme() -> str:
    """README.md with its table of values made anew."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    rows = "".join(f"| `{key}` | {_shown(default)} | {about} |\n" for key, default, about in described_values())
    return _TABLE.sub(lambda _: f"\n| value | default | is |\n|---|---|---|\n{rows}\n", text)


def described_values() -> Iterator[tuple[str, Any, str]]:
    """Every key of values.yaml that has a description: dotted key, default, description."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    above: list[tuple[int, str]] = []
    about = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            about = stripped.removeprefix("# -- ")
            continue
        found = _KEY.match(line)
        if found is None:
            continue
        indent = len(found[1])
        above = [*((depth, key) for depth, key in above if depth < indent), (indent, found[2])]
        if about:
            keys = [key for _, key in above]
            value = values
            for key in keys:
                value = value[key]
            yield ".".join(keys), value, about
        about = ""


def _shown(default: Any) -> str:
    return f"`{json.dumps(default)}`"


def _without_titles(node: Any) -> Any:
    # pydantic names every field a second time.
    if isinstance(node, dict):
        return {
            key: _without_titles(value)
            for key, value in node.items()
            if not (key in {"title", "description"} and isinstance(value, str))
        }
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    return node


if __name__ == "__main__":
    sys.exit(main())
