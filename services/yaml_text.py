"""Reads YAML and JSON as people write it: `1e-4` is a number, and a key that is given twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from services.errors import InvalidInput


def parse_yaml(text: str, source: str, field: str | None = None) -> Any:
    """Parse a YAML or JSON text.

    Args:
        text: the text.
        source: where it comes from, for the message.
        field: field of the error.

    Raises:
        InvalidInput: it is neither YAML nor JSON, or a mapping has a key twice; the message names the line.
    """
    try:
        # The loader constructs only plain values, like SafeLoader.
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" at line {mark.line + 1}" if mark else ""
        raise InvalidInput(f"{source} is neither YAML nor JSON{line}: {error.problem}", field=field) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{source} is neither YAML nor JSON", field=field) from error


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is given twice; remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants a point and a sign in such a number: 1.0e-4, 1.0e+5.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
