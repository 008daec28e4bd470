"""Leadership is a row with a term and an expiry, and studies remember which duties of the leader fail"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leader",
        sa.Column("single", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("round_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_leader")),
        sa.UniqueConstraint("term", name=op.f("uq_leader_term")),
        sa.CheckConstraint("single", name=op.f("ck_leader_single")),
        schema="foldwise",
    )
    op.execute(
        "INSERT INTO foldwise.leader (term, holder, expires_at, round_at)"
        " VALUES (0, '', clock_timestamp(), clock_timestamp())"
    )
    op.create_table(
        "failing_duties",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("duty", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column(
            "since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "last_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["foldwise.studies.id"],
            name=op.f("fk_failing_duties_study_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "duty", name=op.f("pk_failing_duties")),
        schema="foldwise",
    )
    op.create_index(
        "ix_leases_environment",
        "leases",
        ["ended_at"],
        schema="foldwise",
        postgresql_where=sa.text("outcome = 'environment'"),
    )
