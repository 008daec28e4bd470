"""Which trial of its study was complete first, second, and so on"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trials", sa.Column("completed", sa.Integer(), nullable=True), schema="foldwise")
    op.execute(
        """
        UPDATE foldwise.trials SET completed = counted.place
        FROM (
            SELECT id, row_number() OVER (PARTITION BY study_id ORDER BY ended_at, id) AS place
            FROM foldwise.trials WHERE state = 'complete'
        ) AS counted
        WHERE counted.id = trials.id
        """
    )
    op.create_index(
        "uq_trials_completed",
        "trials",
        ["study_id", "completed"],
        unique=True,
        postgresql_where=sa.text("completed IS NOT NULL"),
        schema="foldwise",
    )
