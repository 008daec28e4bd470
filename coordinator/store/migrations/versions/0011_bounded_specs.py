"""Numbers of stored specs are within the bounds that specs have now, so that every study can be read"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STUDIES = sa.table("studies", sa.column("id", sa.Integer), sa.column("spec", sa.JSON), schema="foldwise")


def upgrade() -> None:
    connection = op.get_bind()
    for study_id, spec in connection.execute(sa.select(STUDIES.c.id, STUDIES.c.spec)).all():
        if _bounded(spec):
            connection.execute(sa.update(STUDIES).where(STUDIES.c.id == study_id).values(spec=spec))


def _bounded(spec: dict[str, Any]) -> bool:
    bounds = [(spec, "trial_seconds", 1e9), (spec, "study_seconds", 1e9)]
    sampler = spec.get("sampler") or {}
    bounds += [(sampler, "candidates", 10_000), (sampler, "startup_trials", 100_000)]
    for rule in spec.get("pruning") or ():
        bounds += [(rule, "startup_trials", 100_000), (rule, "warmup_folds", 100_000)]
    augmentation = (spec.get("training") or {}).get("augmentation") or {}
    bounds += [(augmentation, "contrast_low", 100), (augmentation, "contrast_high", 100)]
    too_large = [(part, key, bound) for part, key, bound in bounds if (part.get(key) or 0) > bound]
    for part, key, bound in too_large:
        part[key] = bound
    return bool(too_large)
