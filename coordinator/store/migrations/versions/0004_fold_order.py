"""The order of folds that a study has learnt, and which trials run in it"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("studies", sa.Column("fold_order", sa.JSON(), nullable=True), schema="foldwise")
    # Trials that are there run by index.
    op.add_column(
        "trials",
        sa.Column("learnt_order", sa.Boolean(), server_default=sa.false(), nullable=False),
        schema="foldwise",
    )
