"""Seeds derived from what they are used for, so that no random state has to be stored or passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: a float is not finite, which JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order."""
    return int(sha256_of(list(parts))[:16], 16) >> 1


def fold_seed(*, study_seed: int, parameters: Mapping[str, Any], fold: int, fingerprint: str) -> int:
    """The seed of one fold's initial weights, batch order and dropout.

    Equal parameters on equal clips get equal seeds, whatever the trial's number, so a fold can be replayed.

    Args:
        study_seed: the `seed` of the study's spec.
        parameters: canonical parameters of the trial, by name.
        fold: index of the fold, from 0.
        fingerprint: of the clip cache.
    """
    # Stored seeds were derived with this last 0: without it every seed would change.
    return derive_seed("fold", study_seed, dict(parameters), fold, fingerprint, 0)


def augmentation_seed(*, study_seed: int, clip_id: str, window: int = 0) -> int:
    """The seed of the augmented copies of a clip's window: the same for every fold and trial of a study."""
    # Copies of clips with one window keep the seeds that they had before clips could have several.
    return derive_seed("augmentation", study_seed, clip_id, *([window] if window else []))
