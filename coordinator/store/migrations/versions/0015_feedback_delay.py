"""Studies have a feedback delay, and results say what they predicted and whether they count

Studies of earlier versions have no delay: their trials know whatever had ended when they were suggested.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The spec keeps its text, because a search space needs the order of its keys.
    op.execute(
        "UPDATE foldwise.studies SET spec ="
        " regexp_replace(spec::text, '}\\s*$', ', \"feedback_delay\": null}')::json"
        " WHERE spec->'feedback_delay' IS NULL"
    )
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
