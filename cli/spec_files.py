"""A study's spec from a preset, a file and single settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.cache_presets import CachedClips, complete_spec
from services.contracts import StudySpec
from services.errors import InvalidInput, NotFound
from services.presets import CACHE_PRESETS, get_preset
from services.search_space import first_problem, load_space
from services.yaml_text import parse_yaml

FindClips = Callable[[str], CachedClips]
"""Finds the clip cache that a study names, such as `lab` or `lab/3f9a21bc77d0`."""


def build_spec(
    *,
    preset: str | None,
    spec: Path | None,
    space: Path | None,
    name: str | None,
    cache: str | None,
    settings: list[str],
    clips: FindClips,
) -> StudySpec:
    """Build a spec from a preset, then a file, then single settings; later ones win.

    Without a preset, and without a file that names a protocol, the study is fitted to its clip cache.

    Raises:
        InvalidInput, NotFound: naming the field and its value.
        CacheMismatch: the study is fitted to a cache that does not exist.
    """
    if preset is None and spec is None and cache is None:
        raise InvalidInput(
            "no study is given; use --cache NAME for a study that fits a clip cache, or --preset NAME, or "
            "--spec FILE",
            field="preset",
        )
    data: dict[str, Any] = {}
    if preset is not None and preset not in CACHE_PRESETS:
        data = get_preset(preset).model_dump(mode="json")
    from_file = {} if spec is None else _read_mapping(spec)
    data.update(from_file)
    if space is not None:
        data["space"] = load_space(space).model_dump(mode="json")
    for setting in settings:
        apply_setting(data, setting)
    data.update({k: v for k, v in (("name", name), ("cache", cache)) if v is not None})
    fitting = next((each for each in CACHE_PRESETS if each == preset), None)
    if fitting is not None or (preset is None and "protocol" not in from_file):
        data = complete_spec(data, clips(_cache_of(data)), fitting)
    try:
        return StudySpec.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error


def _cache_of(data: dict[str, Any]) -> str:
    cache = data.get("cache")
    if not isinstance(cache, str):
        raise InvalidInput(
            f"cache is {cache!r}; name the clip cache that the study is for with --cache NAME", field="cache"
        )
    return cache


def read_file(path: Path, field: str) -> Any:
    """The content of a YAML or JSON file.

    Raises:
        NotFound: it cannot be read.
        InvalidInput: it is neither, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", field=field) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not text in UTF-8", field=field) from error
    return parse_yaml(text, str(path), field)


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_file(path, "spec")
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no mapping; write the study's fields as NAME: VALUE", field="spec")
    return content


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Set the field that KEY=VALUE names, with a dotted key for nested mappings.

    Raises:
        InvalidInput: it is not KEY=VALUE, or a part of its key is not a mapping.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        raise InvalidInput(f"--set {setting!r}: write KEY=VALUE, such as trials=50")
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InvalidInput(f"--set {setting!r}: {parent} has no fields; set {parent} itself")
        data = inner
    if last == "kind":
        # Another kind of sampler or protocol has other fields.
        data.clear()
    data[last] = read_value("--set", setting, value)


def read_value(option: str, setting: str, value: str) -> Any:
    """Parse the right side of an option's KEY=VALUE as YAML.

    Raises:
        InvalidInput: it is not YAML.
    """
    try:
        return parse_yaml(value, repr(value))
    except InvalidInput as error:
        raise InvalidInput(
            f"{option} {setting!r}: {error.message}; quote the value to pass it as text"
        ) from error
