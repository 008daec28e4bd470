"""How a new study fits its clips: takes from them what it leaves out, and says what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.studies import parsed_spec
from coordinator.store.tables import StudyFoldRow, StudyRow
from services.cache_presets import complete_spec
from services.clip_cache import find_cache
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.folds import AllClips, HeldOut
from services.presets import clip_differences
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


def warnings_at_creation(session: Session, study: StudyRow, cache_root: Path) -> tuple[str, ...]:
    """Sentences about a study's clips: what is wrong with them, or not as in the paper, though it can run."""
    return tuple(_warnings(session, study, cache_root))


def _warnings(session: Session, study: StudyRow, cache_root: Path) -> Iterator[str]:
    spec = parsed_spec(study)
    if not isinstance(spec.protocol, AllClips | HeldOut):
        labels = session.scalars(select(StudyFoldRow.labels).where(StudyFoldRow.study_id == study.id))
        folds_of = Counter(label for of_fold in labels for label in set(of_fold))
        for label, folds in sorted(folds_of.items()):
            if folds == 1:
                yield (
                    f"the clips of class {study.classes[label]!r} are all in one fold: no network that is "
                    "tested on them was trained on this class, so they all count as wrong"
                )
    manifest = find_cache(cache_root, f"{study.dataset}/{study.fingerprint}")
    if (different := clip_differences(spec, manifest.dataset, manifest.settings)) is not None:
        yield different
