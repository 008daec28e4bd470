"""Folds counted from an equal trial; economies of their own; what a fold was asked, in its provenance"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from services.seeds import fold_seed, sha256_of

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The columns as they are here and now: the code's tables are those of a later day.
studies = sa.table(
    "studies",
    sa.column("id", sa.Integer),
    sa.column("spec", sa.JSON),
    sa.column("fingerprint", sa.Text),
    sa.column("split_hash", sa.Text),
    schema="foldwise",
)
trials = sa.table(
    "trials",
    sa.column("id", sa.BigInteger),
    sa.column("study_id", sa.Integer),
    sa.column("parameters", sa.JSON),
    sa.column("parameters_hash", sa.Text),
    schema="foldwise",
)
results = sa.table(
    "results",
    sa.column("trial_id", sa.BigInteger),
    sa.column("fold", sa.Integer),
    sa.column("payload", sa.JSON),
    sa.column("sha256", sa.Text),
    schema="foldwise",
)


def upgrade() -> None:
    op.add_column("trials", sa.Column("parameters_hash", sa.Text(), nullable=True), schema="foldwise")
    connection = op.get_bind()
    for study in connection.execute(sa.select(studies)).all():
        for trial in connection.execute(sa.select(trials).where(trials.c.study_id == study.id)).all():
            _hash_parameters(connection, trial)
            _complete_provenance(connection, study, trial)
        spec = _with_economies(study.spec)
        connection.execute(sa.update(studies).where(studies.c.id == study.id).values(spec=spec))
    op.alter_column("trials", "parameters_hash", nullable=False, schema="foldwise")
    op.create_index(
        "ix_trials_study_id_parameters_hash", "trials", ["study_id", "parameters_hash"], schema="foldwise"
    )
    op.alter_column("results", "lease_id", nullable=True, schema="foldwise")
    op.add_column("results", sa.Column("reused_from", sa.BigInteger(), nullable=True), schema="foldwise")
    op.create_foreign_key(
        "fk_results_reused_from_fold",
        "results",
        "results",
        ["reused_from", "fold"],
        ["trial_id", "fold"],
        source_schema="foldwise",
        referent_schema="foldwise",
    )
    op.create_check_constraint(
        "ck_results_origin", "results", "(lease_id IS NULL) <> (reused_from IS NULL)", schema="foldwise"
    )


def _hash_parameters(connection: sa.Connection, trial: Any) -> None:
    connection.execute(
        sa.update(trials).where(trials.c.id == trial.id).values(parameters_hash=sha256_of(trial.parameters))
    )


def _complete_provenance(connection: sa.Connection, study: Any, trial: Any) -> None:
    """Add what workers of the first revision did not say and could not do otherwise."""
    of_trial = sa.select(results).where(results.c.trial_id == trial.id)
    for result in connection.execute(of_trial).all():
        known = {
            "compute": study.spec["compute"],
            "memory_format": "contiguous",
            "fingerprint": study.fingerprint,
            "split_hash": study.split_hash,
            "seed": fold_seed(
                study_seed=study.spec["seed"],
                parameters=trial.parameters,
                fold=result.fold,
                fingerprint=study.fingerprint,
            ),
        }
        payload = {**result.payload, "provenance": {**result.payload["provenance"], **known}}
        connection.execute(
            sa.update(results)
            .where(results.c.trial_id == trial.id, results.c.fold == result.fold)
            .values(payload=payload, sha256=sha256_of(payload))
        )


def _with_economies(spec: dict[str, Any]) -> dict[str, Any]:
    """`stop_when_perfect` moves from the training settings to economies, which follow them; order is kept."""
    moved: dict[str, Any] = {}
    for field, value in spec.items():
        if field != "training" or "stop_when_perfect" not in value:
            moved[field] = value
            continue
        moved[field] = {name: setting for name, setting in value.items() if name != "stop_when_perfect"}
        moved["economies"] = {"stop_when_perfect": value["stop_when_perfect"]}
    return moved
