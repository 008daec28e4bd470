"""A new study that leaves out its protocol takes this and more from its clips."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from services.cache_presets import complete_spec
from services.clip_cache import find_cache
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.search_space import first_problem


def fit_to_cache(spec: StudySpec, cache_root: Path) -> StudySpec:
    """A spec that names no protocol, with what else it leaves out made to fit its clip cache.

    Raises:
        CacheMismatch: there is no such cache.
        InvalidInput: the fitted spec is not valid.
    """
    if "protocol" in spec.model_fields_set:
        return spec
    given = spec.model_dump(mode="json", exclude_unset=True)
    try:
        return StudySpec.model_validate(complete_spec(given, find_cache(cache_root, spec.cache)))
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
