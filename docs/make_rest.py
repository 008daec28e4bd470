"""Makes rest.md from the coordinator's OpenAPI description.

`python -m docs.make_rest` writes it; with `--check` it only says whether it is as it should be.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import groupby
from pathlib import Path
from typing import Any

from coordinator.app import create_app
from coordinator.routes import body_limits
from coordinator.settings import CoordinatorSettings

PAGE = Path(__file__).parent / "rest.md"

Schema = Mapping[str, Any]

_HEAD = """\
# REST

Made from `/openapi.json` by `make rest`; every coordinator has that description of itself. How the
calls work together is in [the reference](reference.md#rest), scopes and tokens in [security](security.md).

```sh
curl --header "Authorization: Bearer $FOLDWISE_TOKEN" "$FOLDWISE_URL/api/v1/studies"
```
"""

_KINDS = {
    "studies": "Studies",
    "events": "Events",
    "tokens": "Tokens",
    "system": "Service, workers and catalogues",
    "workers": "The workers' protocol",
}


def main() -> int:
    """Write the page; the exit code is 1 with `--check` where it is not what the service says."""
    text = page(description())
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        if stale:
            print(f"{PAGE.name} is not what the service says of itself; run `make rest`")
        return int(stale)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def description() -> Schema:
    """The OpenAPI description; no database is asked."""
    unused = secrets.token_hex()
    settings = CoordinatorSettings(
        database_url="postgresql://nobody/nothing",
        cache_root=Path(),
        admin_token=unused,
        worker_token=unused,
    )
    return create_app(settings).openapi()


def page(api: Schema) -> str:
    """The whole page in Markdown."""
    return "\n".join(
        [_HEAD, *_errors(api), *_body_sizes(), *_operations(api), *_objects(api["components"]["schemas"])]
    )


def _errors(api: Schema) -> Iterator[str]:
    answers = {
        status: answer["description"]
        for operations in api["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if _is_error(status)
    }
    yield "## Errors\n"
    yield (
        "`application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, which says what to do "
        "next, and the `field` at fault where there is one.\n"
    )
    yield from _table(("status", "when"), sorted(answers.items()))


def _body_sizes() -> Iterator[str]:
    yield "## Sizes of bodies\n"
    yield "A larger body is answered with 413. A list is checked up to its first wrong item.\n"
    sizes = (
        ("`PUT /leases/{lease_id}/result`", body_limits.RESULT_BYTES),
        ("`POST /studies`, `.../clone`, `.../enqueue`", body_limits.SPEC_BYTES),
        ("`POST /studies/import`", body_limits.IMPORT_BYTES),
        ("all others", body_limits.DEFAULT_BYTES),
    )
    yield from _table(("request", "largest body"), [(name, _size(number)) for name, number in sizes])


def _size(number: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number // factor} {unit}"
    return f"{number} bytes"


def _operations(api: Schema) -> Iterator[str]:
    listed = [
        (operation["tags"][0], f"{method.upper()} {path}", operation)
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    ]
    order = list(_KINDS)
    listed.sort(key=lambda each: order.index(each[0]))
    for kind, operations in groupby(listed, key=lambda each: each[0]):
        yield f"## {_KINDS[kind]}\n"
        for _, title, operation in operations:
            yield f"### `{title}`\n"
            yield from _operation(operation)


def _operation(operation: Schema) -> Iterator[str]:
    yield _lines(operation.get("description", "")) + "\n"
    parameters = [
        (
            f"`{parameter['name']}`",
            parameter["in"],
            _type(parameter["schema"]),
            "required" if parameter.get("required") else _default(parameter["schema"]),
            _lines(parameter.get("description", "")),
        )
        for parameter in operation.get("parameters", ())
    ]
    if parameters:
        yield from _table(("parameter", "in", "type", "default", "is"), parameters)
    if body := operation.get("requestBody"):
        yield f"Body: {_contents(body['content'])}\n"
    answers = [
        f"{status} {_contents(answer.get('content', {}))}".strip()
        for status, answer in operation["responses"].items()
        if not _is_error(status)
    ]
    errors = [status for status in operation["responses"] if _is_error(status)]
    yield f"Answers: {'; '.join(answers)}{'; or ' + ', '.join(sorted(errors)) if errors else ''}\n"


def _objects(schemas: Schema) -> Iterator[str]:
    yield "## Objects\n"
    for name, schema in sorted(schemas.items()):
        yield f"### {name}\n"
        if about := schema.get("description"):
            yield f"{_lines(about)}\n"
        if "properties" not in schema:
            yield f"{_type(schema)}\n"
            continue
        required = schema.get("required", ())
        rows = [
            (
                f"`{field}`",
                _type(about),
                "required" if field in required else _default(about),
                _lines(about.get("description", "")),
            )
            for field, about in schema["properties"].items()
        ]
        yield from _table(("field", "type", "default", "is"), rows)
        for example in schema.get("examples", ())[:1]:
            yield f"```json\n{json.dumps(example, indent=2)}\n```\n"


def _contents(content: Schema) -> str:
    return ", ".join(
        _type(about.get("schema", {})) if kind == "application/json" else f"`{kind}`"
        for kind, about in content.items()
    )


def _type(schema: Schema) -> str:
    """A schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if values := [schema["const"]] if "const" in schema else schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        items = schema.get("items") or {"anyOf": schema.get("prefixItems", [{}])}
        return f"list of {_type(items)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(kind) + _limits(schema)


def _limits(schema: Schema) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:.10g}" for key, sign in signs.items() if key in schema]
    return f" ({', '.join(limits)})" if limits else ""


def _default(schema: Schema) -> str:
    default = json.dumps(schema.get("default"))
    # FastAPI leaves a default of null out.
    if "default" not in schema and {"type": "null"} not in schema.get("anyOf", ()):
        return "its own defaults"
    return f"`{default}`" if len(default) <= _LONGEST_DEFAULT else "its own defaults"


_LONGEST_DEFAULT = 60


def _is_error(status: str) -> bool:
    return int(status) >= HTTPStatus.BAD_REQUEST


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
    yield ""


def _lines(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
