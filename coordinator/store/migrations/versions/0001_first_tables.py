"""First tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("clips", sa.Integer(), nullable=False),
        sa.Column("fold_count", sa.Integer(), nullable=False),
        sa.Column("split_hash", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("name", name="uq_studies_name"),
        schema="foldwise",
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column(
            "first_seen",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "last_seen", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
        schema="foldwise",
    )
    op.create_table(
        "study_folds",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("fold", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("clip_ids", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["foldwise.studies.id"], name="fk_study_folds_study_id"),
        sa.PrimaryKeyConstraint("study_id", "fold", name="pk_study_folds"),
        schema="foldwise",
    )
    op.create_table(
        "trials",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("pruned", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["foldwise.studies.id"], name="fk_trials_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.UniqueConstraint("study_id", "number", name="uq_trials_study_id_number"),
        schema="foldwise",
    )
    op.create_table(
        "folds",
        sa.Column("trial_id", sa.BigInteger(), nullable=False),
        sa.Column("fold", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["foldwise.trials.id"], name="fk_folds_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "fold", name="pk_folds"),
        schema="foldwise",
    )
    op.create_index(
        "ix_folds_state",
        "folds",
        ["state"],
        unique=False,
        schema="foldwise",
        postgresql_where=sa.text("state <> 'done'"),
    )
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("trial_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["foldwise.trials.id"], name="fk_outbox_trial_id"),
        sa.PrimaryKeyConstraint("seq", name="pk_outbox"),
        schema="foldwise",
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trial_id", sa.BigInteger(), nullable=False),
        sa.Column("fold", sa.Integer(), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column(
            "granted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("step_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["trial_id", "fold"],
            ["foldwise.folds.trial_id", "foldwise.folds.fold"],
            name="fk_leases_trial_id_fold",
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["foldwise.workers.id"], name="fk_leases_worker_id"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.UniqueConstraint("trial_id", "fold", "term", name="uq_leases_trial_id_fold_term"),
        schema="foldwise",
    )
    op.create_index(
        "ix_leases_live_worker",
        "leases",
        ["worker_id"],
        unique=False,
        schema="foldwise",
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_index(
        "uq_leases_live",
        "leases",
        ["trial_id", "fold"],
        unique=True,
        schema="foldwise",
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_table(
        "claims",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["foldwise.leases.id"], name="fk_claims_lease_id"),
        sa.PrimaryKeyConstraint("key", name="pk_claims"),
        schema="foldwise",
    )
    op.create_table(
        "results",
        sa.Column("trial_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("fold", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("best_epoch", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.Column("clips", sa.Integer(), nullable=False),
        sa.Column("confusion", sa.JSON(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=False),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("correct BETWEEN 0 AND clips", name="ck_results_correct"),
        sa.ForeignKeyConstraint(["lease_id"], ["foldwise.leases.id"], name="fk_results_lease_id"),
        sa.ForeignKeyConstraint(
            ["trial_id", "fold"],
            ["foldwise.folds.trial_id", "foldwise.folds.fold"],
            name="fk_results_trial_id_fold",
        ),
        sa.PrimaryKeyConstraint("trial_id", "fold", name="pk_results"),
        sa.UniqueConstraint("lease_id", name="uq_results_lease_id"),
        schema="foldwise",
    )
