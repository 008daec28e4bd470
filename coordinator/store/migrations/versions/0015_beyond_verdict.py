"""Results say what they predicted, and whether a verdict rests on fewer folds

Stored specs stay as they are, because an earlier version that still runs rejects fields that it does not know.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "results",
        sa.Column("beyond_verdict", sa.Boolean(), nullable=False, server_default=sa.false()),
        schema="foldwise",
    )
    op.add_column(
        "results",
        sa.Column(
            "predictions_sha256",
            sa.Text(),
            sa.Computed("encode(sha256((payload -> 'epochs')::jsonb::text::bytea), 'hex')", persisted=True),
            nullable=False,
        ),
        schema="foldwise",
    )
