"""Folds have clips that choose the epoch

Existing studies have none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("validation_clip_ids", "validation_labels"):
        op.add_column(
            "study_folds",
            sa.Column(name, sa.JSON(), nullable=False, server_default=sa.text("'[]'")),
            schema="foldwise",
        )
