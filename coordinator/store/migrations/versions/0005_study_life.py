"""Priorities, enqueued and inherited trials, imported results, deleted studies, events"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "studies",
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        schema="foldwise",
    )
    op.add_column(
        "studies", sa.Column("started_at", sa.DateTime(timezone=True), nullable=True), schema="foldwise"
    )
    op.execute("UPDATE foldwise.studies SET started_at = created_at WHERE state <> 'draft'")
    op.create_table(
        "enqueued",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["foldwise.studies.id"], name="fk_enqueued_study_id"),
        sa.PrimaryKeyConstraint("study_id", "number", name="pk_enqueued"),
        schema="foldwise",
    )
    op.create_table(
        "inherited_trials",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["foldwise.studies.id"], name="fk_inherited_trials_study_id"),
        sa.PrimaryKeyConstraint("study_id", "place", name="pk_inherited_trials"),
        schema="foldwise",
    )
    op.create_index("ix_claims_lease_id", "claims", ["lease_id"], schema="foldwise")
    op.add_column(
        "results",
        sa.Column("imported", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="foldwise",
    )
    # Revision 0002 gave the whole name, to which the naming convention added its prefix once more.
    op.drop_constraint("ck_results_ck_results_origin", "results", schema="foldwise")
    op.create_check_constraint(
        "origin",
        "results",
        "num_nonnulls(lease_id, reused_from) + imported::integer = 1",
        schema="foldwise",
    )
    op.create_index(
        "ix_results_reused_from_fold",
        "results",
        ["reused_from", "fold"],
        schema="foldwise",
        postgresql_where=sa.text("reused_from IS NOT NULL"),
    )
    op.create_table(
        "deleted_studies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_deleted_studies"),
        schema="foldwise",
    )
    op.create_table(
        "events",
        sa.Column(
            "xid",
            sa.BigInteger(),
            server_default=sa.text("pg_current_xact_id()::text::bigint"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("xid", "id", name="pk_events"),
        schema="foldwise",
    )
