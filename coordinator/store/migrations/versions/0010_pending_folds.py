"""The index of folds that are not done says whose they are, so that a trial's pending ones are found in it"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NOT_DONE = sa.text("state <> 'done'")


def upgrade() -> None:
    op.create_index(
        "ix_folds_not_done",
        "folds",
        ["state", "trial_id", "fold"],
        schema="foldwise",
        postgresql_where=NOT_DONE,
    )
    op.drop_index("ix_folds_state", "folds", schema="foldwise")
