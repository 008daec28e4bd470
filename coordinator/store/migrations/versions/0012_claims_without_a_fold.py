"""A claim that got no fold is remembered too, so that its late duplicate gets none"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("claims", "lease_id", nullable=True, schema="foldwise")
    op.add_column(
        "claims",
        sa.Column(
            "answered_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        schema="foldwise",
    )
