"""Generates the parts of the chart that follow from `ChartValues` and from the defaults in values.yaml.

`ChartValues` describes each value once. This module copies the descriptions to values.schema.json, to the
comments of values.yaml and to the README's tables. `python -m helm.generate` writes these files; `--check` only
reports whether they are current.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from helm.values_model import ChartValues

CHART = Path(__file__).parent / "foldwise"

_TABLES = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)
_KEY = re.compile(r"^( *)([A-Za-z]+):")
_COMMENTS = re.compile(r"^ *# -- .*\n(?: *#    .*\n)*", re.MULTILINE)
_WIDTH = 110
"""Maximum characters of a comment line in values.yaml."""


class Value(NamedTuple):
    """A row of the README's tables."""

    key: str
    """Dotted; `[]` follows the name of a list whose items have keys."""

    default: str
    """As Markdown."""

    description: str


def main() -> int:
    """Write the files that are not current; with `--check` write nothing and return 1 if there are any."""
    wanted = {
        CHART / "values.schema.json": schema(),
        CHART / "values.yaml": values(),
        CHART / "README.md": readme(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} does not match the descriptions in helm/ and the defaults; run `make chart`")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


def schema() -> str:
    """values.schema.json, in JSON Schema draft 7, the draft that Helm 3 supports."""
    document = {"$schema": "http://json-schema.org/draft-07/schema#", **_inlined_schema()}
    return json.dumps(document, indent=1) + "\n"


def values() -> str:
    """values.yaml with the description of each key as a comment above the key."""
    lines = []
    for line, path in _lines_with_keys(_COMMENTS.sub("", _read("values.yaml"))):
        description = _description(path)
        if description:
            indent = " " * (len(line) - len(line.lstrip()))
            lines += textwrap.wrap(
                description,
                _WIDTH,
                initial_indent=f"{indent}# -- ",
                subsequent_indent=f"{indent}#    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with a table for the values outside sections, and one for each section."""
    nodes = _inlined_schema()["properties"]
    defaults = _defaults()
    outside = [value for key in defaults if "properties" not in nodes[key] for value in described_values(key)]
    parts = [_table(outside)]
    for key in defaults:
        if "properties" in nodes[key]:
            parts.append(f"### {key}\n\n{nodes[key]['description']}\n\n{_table(described_values(key))}")
    text = "\n" + "\n".join(parts) + "\n"
    return _TABLES.sub(lambda _: text, _read("README.md"))


def described_values(key: str) -> Iterator[Value]:
    """The values below a top-level key of values.yaml, in its order, each list before the keys of its items."""
    yield from _rows(_inlined_schema()["properties"][key], _defaults()[key], key)


def _rows(node: dict[str, Any], default: Any, key: str) -> Iterator[Value]:
    if "properties" in node:
        for name, below in default.items():
            yield from _rows(node["properties"][name], below, f"{key}.{name}")
        return
    yield Value(key, _as_code(default), node["description"])
    yield from _item_rows(node.get("items", {}), f"{key}[]")


def _item_rows(node: dict[str, Any], key: str) -> Iterator[Value]:
    for name, below in node.get("properties", {}).items():
        if "properties" in below:
            yield from _item_rows(below, f"{key}.{name}")
        else:
            default = _as_code(below["default"]) if "default" in below else "required"
            yield Value(f"{key}.{name}", default, below["description"])


def _table(rows: Iterable[Value]) -> str:
    lines = [f"| `{key}` | {default} | {description} |\n" for key, default, description in rows]
    return "| value | default | description |\n|---|---|---|\n" + "".join(lines)


def _as_code(default: Any) -> str:
    return f"`{json.dumps(default)}`"


def _lines_with_keys(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each line with the path of the key that it begins, [] where it begins none."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _KEY.match(line)
        if found is None:
            yield line, []
            continue
        indent = len(found[1])
        above = [*((depth, key) for depth, key in above if depth < indent), (indent, found[2])]
        yield line, [key for _, key in above]


def _description(path: list[str]) -> str | None:
    """None where the schema does not know the key, as within `resources`."""
    node: dict[str, Any] = {"properties": _inlined_schema()["properties"]}
    for key in path:
        node = node.get("properties", {}).get(key, {})
    return node.get("description")


@cache
def _inlined_schema() -> dict[str, Any]:
    # Draft 7 ignores all keys beside a `$ref`, a description too: each reference is replaced by its definition.
    made = ChartValues.model_json_schema(by_alias=True)
    definitions = made.pop("$defs")

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = dict(node)
        if "$ref" in node:
            node = definitions[node.pop("$ref").removeprefix("#/$defs/")] | node
        # pydantic repeats the name of each field as its title.
        if isinstance(node.get("title"), str):
            del node["title"]
        if isinstance(node.get("description"), str):
            node = {"description": " ".join(node.pop("description").split()), **node}
        return {key: inlined(value) for key, value in node.items()}

    whole: dict[str, Any] = inlined(made)
    return whole


def _defaults() -> dict[str, Any]:
    defaults: dict[str, Any] = yaml.safe_load(_read("values.yaml"))
    return defaults


def _read(name: str) -> str:
    return (CHART / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
